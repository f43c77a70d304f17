"""A study in its folder: begun or taken up, run job by job, reported after each."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO

from ..config import Config, SettingError, decides_results, set_values
from ..recipes import build_config, recipe_config
from ..report.format import percent, span
from ..report.progress import Progress
from ..report.study import write_reports
from ..train.checkpoint import replace_durably
from ..train.folder import RunError, locked, read_settings
from ..train.signals import Interrupted, stop_signals
from .arms import Study, read
from .children import Children, places, run_jobs
from .jobs import Ask, Job, plan_jobs
from .summary import summarise

ASKED, LOCK = "study.json", "study.lock"
SHARED = {"tokenizer.d", "model.decoder_depth"}  # rows differ in them, but may have them alike


def check_settings(study: Study, ask: Ask) -> dict[str, str]:
    """The arms that are left out since these settings do not admit them, each with the reason.

    Raises SettingError where none is left, or where a setting belongs to an arm.
    """
    problems, asked = {}, set_values(Config(), ask.settings)
    recipes = {a.recipe: recipe_config(a.recipe, ask.image_size, ask.size) for a in study.arms}
    first, *others = recipes
    for name in sorted(ask.settings.keys() - SHARED):
        other = next((r for r in others if read(recipes[r], name) != read(recipes[first], name)), 0)
        if other:
            raise SettingError(
                f"--{name} is what this study varies ({first} and {other} differ in it); leave it "
                "out"
            )
    for arm in study.arms:
        clash = {
            name for name in ask.settings.keys() & arm.settings.keys()
            if set_values(asked, {name: arm.settings[name]}) != asked
        }  # fmt: skip
        if clash:
            raise SettingError(
                f"--{min(clash)} is what this study varies ({arm.name} sets it); leave it out"
            )
        try:
            side = int(arm.settings.get("data.image_size", ask.image_size))
            build_config(arm.recipe, side, ask.size, {**ask.settings, **arm.settings})
        except SettingError as problem:
            problems[arm.name] = str(problem)
    if len(problems) == len(study.arms):
        raise SettingError(next(iter(problems.values()), "this image size admits no arm at all"))
    return problems if study.optional else {}


@contextmanager
def claimed(out: Path, asked: Mapping) -> Iterator[IO]:
    """The folder, new or of the same study, held against a second one; yields the lock."""
    if out.exists() and not out.is_dir():
        raise RunError(f"--out {out} is a file; name a folder that does not exist yet")
    path = out / ASKED
    if path.exists():
        held, wanted = compared(read_settings(path)), compared(asked)
        for name in sorted(wanted.keys() | held.keys()):
            if wanted.get(name) != held.get(name):
                raise RunError(
                    f"--out {out} holds a study with {name} {shown(held.get(name))}, not "
                    f"{shown(wanted.get(name))}; give the same words, or name a new folder"
                )
    elif out.is_dir() and any(p.name != LOCK for p in out.iterdir()):
        raise RunError(f"--out {out} already holds other files; name a new or empty folder")
    out.mkdir(parents=True, exist_ok=True)
    busy = (
        f"--out {out} is in use by another `ldae trajectory` or a run that it left; wait for it to "
        "end"
    )
    with locked(out / LOCK, busy) as lock:
        if not path.exists():
            replace_durably(path, json.dumps(asked, indent=2).encode() + b"\n")
        yield lock


def compared(asked: Mapping) -> dict:
    """What makes it the same study: all but the settings that decide no result."""
    settings = asked.get("settings")
    if not isinstance(settings, Mapping):
        return dict(asked)
    return {**asked, "settings": {k: v for k, v in settings.items() if decides_results(k)}}


def finished_seeds(out: Path) -> dict[str, int]:
    """How many seeds of each arm a study's folder has results of: up to the last finished one."""
    files = [*out.glob("runs/*/result.json"), *out.glob("probes/*.json")]
    names = [f.parent.name if f.name == "result.json" else f.stem for f in files]
    found: dict[str, int] = {}
    for name in names:
        arm, _, seed = name.rpartition("-s")
        if seed.isdecimal():
            found[arm] = max(found.get(arm, 0), int(seed) + 1)
    return found


def shown(value: object) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"--{k} {v}" for k, v in value.items()) or "none"
    return str(value) if value not in (None, "") else "none"


def run_study(
    study: Study, ask: Ask, seeds: Mapping[str, int], out: Path, side_by_side: int, command: str
) -> dict[str, str]:
    """Runs what is not done yet and reports. Returns the sentence of each job that failed.

    seeds: of the arms to run, by name; what the folder holds of others is reported too.
    Raises Interrupted once children have saved, where the study was asked to stop.
    """
    asked = {"title": study.title, **asdict(ask)}
    rooms = places(ask.device, side_by_side)
    left_out = check_settings(study, ask)
    arms = [arm for arm in study.arms if arm.name not in left_out]
    jobs = plan_jobs(arms, seeds, out, ask)
    before = finished_seeds(out)
    told_of = {arm.name: max(seeds.get(arm.name, 0), before.get(arm.name, 0)) for arm in arms}
    shown_jobs = plan_jobs(arms, told_of, out, ask)
    problems: dict[str, str] = {}

    def report() -> None:
        told = asked | {"command": command}
        write_reports(out, summarise(study, shown_jobs, problems, left_out, told))

    with (
        claimed(out, asked) as lock,
        Progress("trajectory") as line,
        stop_signals() as stopped,
        Children(rooms, lock) as children,
    ):

        def show(running: list[Job]) -> None:
            over = sum(job.done for job in jobs) + len(problems)
            now = {"now": ", ".join(job.name for job in running)} if running else {}
            step = running[0].last_log_step() if running else {}
            line.update(None, {"runs": f"{over}/{len(jobs)}"} | now | step)

        def over(job: Job, problem: str) -> None:
            if problem:
                problems[job.name] = problem
            line.note(f"{job.name}: {problem or outcome(job.result())}")
            report()

        report()
        run_jobs(jobs, children, stopped, show, over)
        if stopped:
            children.stop()
            done = sum(job.done for job in jobs)
            report()
            raise Interrupted(
                f"stopped with {done} of {len(jobs)} runs finished, in {out}; the same command "
                "goes on",
                stopped[0],
            )
    return problems


def outcome(result: Mapping) -> str:
    took = f", trained for {span(result['seconds'])}" if "seconds" in result else ""
    return f"linear top-1 {percent(result['linear_top1'])}{took}"
