"""What trajectory.json holds: every run, every arm over its seeds, every claim with its test."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import chain
from statistics import mean

from ..report.metrics import read_metrics
from .arms import Arm, Study
from .jobs import Job
from .statistics import compare, spread, verdict

MEASURED = ("linear_top1", "ema_linear_top1", "knn_top1", "effective_rank", "explained_variance",
            "steps", "seconds", "chance", "baselines", "verdict", "note", "perceptual")  # fmt: skip
Scores = dict[str, dict[int, float]]  # linear top-1 by arm and seed


def summarise(
    study: Study,
    jobs: Iterable[Job],
    problems: Mapping[str, str],
    left_out: Mapping[str, str],
    asked: Mapping,
) -> dict:
    """problems: the sentence of each failed job, by name. All accuracies are fractions of 1."""
    runs = [run_record(job, problems.get(job.name, "")) for job in jobs]
    scores: Scores = {arm.name: {} for arm in study.arms}
    for run in runs:
        if run["linear_top1"] is not None and run["row"] in scores:
            scores[run["row"]][run["seed"]] = run["linear_top1"]
    behind = not_learning(study, runs)
    return {
        "title": study.title,
        **asked,
        "finished": sum(run["state"] == "finished" for run in runs),
        "of": len(runs),
        "note": next((run["note"] for run in runs if run.get("note")), ""),
        "rows": [row_record(arm, study, runs, scores) for arm in study.arms],
        "hypotheses": hypotheses(study, scores, behind),
        "orderings": orderings(study, scores, behind),
        "left_out": dict(left_out),
        "runs": runs,
    }


def run_record(job: Job, problem: str) -> dict:
    """One run; what it has not measured is None."""
    result = job.result()
    state = "finished" if result else "failed" if problem else "waiting"
    record = {"run": job.name, "row": job.arm.name, "seed": job.seed, "recipe": job.arm.recipe,
              "settings": dict(job.arm.settings), "state": state}  # fmt: skip
    record |= {key: (result or {}).get(key) for key in MEASURED}
    record["final_loss"] = final_loss(job, result or {})
    return record | ({"problem": problem} if state == "failed" else {})


def final_loss(job: Job, result: Mapping) -> float | None:
    """The last logged one where the run was taken up again after its last step."""
    if job.after or result.get("final_loss") is not None or not result:
        return result.get("final_loss")
    return next((r["loss"] for r in reversed(read_metrics(job.run.metrics)) if "loss" in r), None)


def row_record(arm: Arm, study: Study, runs: list[dict], scores: Scores) -> dict:
    """One arm over its seeds; follows: the arm that it is a step from, None for a first one."""
    mine = [run for run in runs if run["row"] == arm.name]
    average, std = spread(list(scores[arm.name].values()))
    knn = [run["knn_top1"] for run in mine if run["knn_top1"] is not None]
    return {
        "row": arm.name,
        "label": arm.label,
        "follows": next((before for before, after in study.pairs if after == arm.name), None),
        "mean": average,
        "std": std,
        "n": len(scores[arm.name]),
        "by_seed": scores[arm.name],
        "knn_mean": spread(knn)[0],
        "paper": arm.paper,
        "state": next((s for s in ("failed", "waiting") if s in [r["state"] for r in mine]),
                      "finished" if mine else "left out"),
    }  # fmt: skip


def not_learning(study: Study, runs: Iterable[Mapping]) -> set[str]:
    """Arms that are no better than their untrained encoders, on average over their seeds.

    A way to probe is one of them where what it probes is.
    """
    gains: dict[str, list[float]] = {}
    for run in runs:
        if run["linear_top1"] is not None and "untrained" in (run["baselines"] or {}):
            gain = run["linear_top1"] - run["baselines"]["untrained"]
            gains.setdefault(run["row"], []).append(gain)
    behind = {name for name, found in gains.items() if mean(found) <= 0}
    return {arm.name for arm in study.arms if (arm.of or arm).name in behind}


def hypotheses(study: Study, scores: Scores, behind: set[str]) -> list[dict]:
    """Each claim that was stated in advance, whether this study has its arms or not."""
    told = []
    for claim in study.hypotheses:
        pairs = claim.pairs or ((claim.better, claim.worse),)
        sides = [(scores.get(a, {}), scores.get(b, {})) for a, b in pairs]
        # One seed's pairs share what the seed decides: they are one observation together.
        better, worse = {}, {}
        for seed in {seed for a, b in sides for seed in a.keys() & b.keys()}:
            both = [(a[seed], b[seed]) for a, b in sides if seed in a and seed in b]
            better[seed], worse[seed] = map(mean, zip(*both))
        found = compare(better, worse)
        said = verdict(found, behind.isdisjoint(chain(*pairs)))
        told.append(asdict(claim) | asdict(found) | {"verdict": said})
    return told


def orderings(study: Study, scores: Scores, behind: set[str]) -> list[dict]:
    """Neighbours whose order the paper tells: equal figures there tell none."""
    told = []
    for before, after in study.pairs:
        a, b = study.named(before), study.named(after)
        if None in (a.paper, b.paper) or a.paper == b.paper:
            continue
        step = b.paper - a.paper
        better, worse = (b, a) if step > 0 else (a, b)
        found = compare(scores[better.name], scores[worse.name])
        told.append(
            {"better": better.name, "better_label": better.label, "worse": worse.name,
             "worse_label": worse.label, "paper_difference": abs(step)}
            | asdict(found) | {"verdict": verdict(found, behind.isdisjoint((before, after)))}
        )  # fmt: skip
    return told
