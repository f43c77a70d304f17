"""One job a run: what `ldae` is told to do for it, and what its files say came out."""

import shutil
import signal
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..config import decides_results
from ..report.metrics import read_metrics
from ..train.checkpoint import list_checkpoints
from ..train.folder import RunFolder, read_settings
from .arms import Arm

BEGINS = "---"  # the line of a log with which an attempt begins


@dataclass(frozen=True)
class Ask:
    """What every run of a study is told; a budget above zero is the one that counts."""

    data: str
    image_size: int
    size: str
    device: str
    impl: str
    steps: int
    epochs: float
    minutes: float
    settings: Mapping[str, str]

    def training(self, arm: Arm, seed: int, out: Path) -> list[str]:
        """Words for `ldae` that train an arm."""
        words = ["train", arm.recipe, "--data", self.data, "--out", str(out), "--seed", str(seed)]
        words += ["--device", self.device, "--impl", self.impl]
        if self.size:
            words += ["--size", self.size]
        if self.steps:
            words += ["--steps", str(round(self.steps * arm.budget))]
        for name, amount in (("epochs", self.epochs), ("minutes", self.minutes)):
            if amount:
                words += [f"--{name}", str(amount * arm.budget)]
        side = {"data.image_size": str(self.image_size)}
        return words + flags({**side, **self.settings, **arm.settings})

    def probing(self, arm: Arm, run: Path, out: Path) -> list[str]:
        """Words for `ldae` that probe a run in an arm's way."""
        measured = {k: v for k, v in self.settings.items() if k.startswith("evaluate.")}
        words = ["probe", str(run), "--data", self.data, "--json", str(out)]
        return words + flags({**measured, **arm.settings})


def flags(settings: Mapping[str, str]) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", value)]


@dataclass(frozen=True)
class Job:
    """An arm under one seed, in the study's folder; `after` must have ended well before it."""

    arm: Arm
    seed: int
    study: Path
    ask: Ask
    after: "Job | None" = None

    @property
    def name(self) -> str:
        return f"{self.arm.name}-s{self.seed}"

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.study / "runs" / self.name)

    @property
    def log(self) -> Path:
        return self.study / "logs" / f"{self.name}.log"

    @property
    def output(self) -> Path:
        """The file that is there, whole, once the job is done."""
        if self.after:
            return self.study / "probes" / f"{self.name}.json"
        return self.run.result

    @property
    def done(self) -> bool:
        return self.output.exists()

    def result(self) -> dict | None:
        return read_settings(self.output) if self.done else None

    def command(self) -> list[str]:
        """Begins the job, or goes on with it. What a killed run left without a checkpoint goes."""
        if self.after:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            words = self.ask.probing(self.arm, self.after.run.path, self.output)
        elif list_checkpoints(self.run.checkpoints):
            changes = {k: v for k, v in self.ask.settings.items() if not decides_results(k)}
            words = ["resume", str(self.run.path), *flags(changes)]
        else:
            shutil.rmtree(self.run.path, ignore_errors=True)
            words = self.ask.training(self.arm, self.seed, self.run.path)
        return [sys.executable, "-m", "ldae_fast.cli", *words]

    def last_log_step(self) -> dict:
        """Step and loss of the newest line that the run has logged, {} before the first."""
        try:
            records = [r for r in read_metrics(self.run.metrics) if "loss" in r]
        except (OSError, ValueError):
            return {}
        return {k: records[-1][k] for k in ("step", "loss")} if records else {}

    def problem(self, status: int) -> str:
        """The sentence in which the job ended: from its log, or by the signal that killed it."""
        if status < 0:
            name = signal.Signals(-status).name
            memory = ", as the system does where memory runs out" if name == "SIGKILL" else ""
            return f"killed by {name}{memory}; its log is {self.log}"
        newest = self.log.read_text(errors="replace").rpartition(f"{BEGINS} ")[2]
        lines = [line for line in newest.splitlines()[1:] if line.strip()]
        said = [line.removeprefix("ldae: ") for line in lines if line.startswith("ldae: ")]
        return (said or lines or ["it said nothing"])[-1]


def plan_jobs(arms: Iterable[Arm], seeds: Mapping[str, int], study: Path, ask: Ask) -> list[Job]:
    """Seed by seed, so that an unfinished study has whole columns; a run before its probes."""
    arms, jobs = list(arms), {}
    for seed in range(max(seeds.values(), default=0)):
        for arm in (a for a in arms if seed < seeds.get(a.name, 0)):
            first = None
            if arm.of:
                first = jobs.setdefault((arm.of.name, seed), Job(arm.of, seed, study, ask))
            jobs[arm.name, seed] = Job(arm, seed, study, ask, first)
    return list(jobs.values())
