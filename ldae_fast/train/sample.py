"""Draws samples from a run: `ldae sample`."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ..config import SettingError
from ..evaluate.distance import Distance, Reference
from ..evaluate.frechet import Moments
from ..evaluate.generate import class_count, generate
from ..evaluate.protocol import Subject
from ..evaluate.sample import Sampling, levels_down
from ..report import pictures
from ..report.progress import Progress
from .probe import load_subject

SHOWN = 100  # samples in the picture at most
TOKENS = 16384  # that go through the network at once


def choose_labels(subject: Subject, ids: Tensor, label: int | None) -> Tensor | None:
    """(B,) the class asked for, or each in turn; None where the network is told no class."""
    classes = class_count(subject)
    if not classes:
        return None
    return (ids % classes if label is None else torch.full_like(ids, label)).to(subject.device)


def check(subject: Subject, count: int, how: Sampling, label: int | None, distance: bool) -> None:
    """SettingError with the first thing that this run cannot do."""
    if subject.config.objective.predict == "masked":
        raise SettingError("a masked autoencoder draws no samples; name the folder of another run")
    classes = class_count(subject)
    if distance and count < 2:
        raise SettingError(f"--count must be 2 or more for a distance; got {count}")
    if not classes and (label is not None or how.guidance):
        raise SettingError(
            "--label and --guidance need a class-conditional run, and this one is told no classes"
        )
    if label is not None and not 0 <= label < classes:
        raise SettingError(f"--label must be 0 to {classes - 1}; got {label}")
    levels_down(subject.objective.schedule, how.steps)


def images_of(
    subject: Subject, count: int, how: Sampling, label: int | None, line: Progress
) -> Iterator[Tensor]:
    """Samples 0 to count - 1, some at a time, (B, S, S, 3) uint8."""
    batch = max(1, TOKENS // len(subject.models["trained"].encoder.positions))
    for first in range(0, count, batch):
        ids = torch.arange(first, min(first + batch, count))

        def tick(share: float, first=first, ids=ids) -> None:
            done = first + share * len(ids)
            line.update(done / count, {"samples": f"{int(done):,}/{count:,}"})

        yield generate(subject, ids, how, choose_labels(subject, ids, label), tick)
        tick(1.0)


def draw_samples(
    path: Path,
    out: Path | None,
    count: int,
    how: Sampling,
    label: int | None,
    weights: str,
    reference: Reference | None = None,
) -> dict:
    """Writes a picture of the run's samples; returns what was drawn, and its distance if asked."""
    subject = load_subject(path, weights, {})
    check(subject, count, how, label, distance=reference is not None)
    out = out or path / "pictures" / "samples.png"
    distance = Distance(reference, subject, count) if reference else None
    shown, samples = torch.empty(0, dtype=torch.uint8), Moments()
    with Progress("sample") as line:
        for images in images_of(subject, count, how, label, line):
            shown = torch.cat([shown, images[: SHOWN - len(shown)].cpu()])
            if distance:
                samples.add(distance.network(images))
        facts = {"run": str(path), "weights": weights, "count": count, "label": label} | asdict(how)
        if distance:
            facts |= distance.of(samples.gaussian())
            if facts["caution"]:
                line.note(facts["caution"])
    words = f"{subject.config.recipe}, {weights} weights, {how.steps} steps, eta {how.eta:g}"
    if count > SHOWN:
        words += f", first {SHOWN} of {count:,}"
    pictures.sample_grid(out, shown.numpy(), words)
    return facts | {"picture": str(out)}
