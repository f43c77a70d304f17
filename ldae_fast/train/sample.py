"""Draws samples from a run, and on request measures how far they are from real images."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..config import SettingError
from ..data import Source, in_order, open_source
from ..evaluate.classifier_features import classifier_features
from ..evaluate.frechet import FeatureNetwork, Gaussian, Moments, frechet_distance
from ..evaluate.generate import class_count, generate
from ..evaluate.inception import load_inception
from ..evaluate.protocol import Subject
from ..evaluate.sample import Sampling, levels_down
from ..report import pictures
from ..report.progress import Progress
from .probe import load_subject

SHOWN = 100  # samples in the picture at most
TOKENS = 16384  # that go through the network at once


@dataclass(frozen=True)
class Reference:
    """Real images to measure the distance to, and whose features: those of the Inception-v3 in a
    file, or of a classifier, kept in a file or not.
    """

    data: str
    inception: Path | None = None
    classifier: Path | None = None


class Distance:
    """Features of real images, and the distance of others from them."""

    def __init__(self, reference: Reference, subject: Subject, count: int, line: Progress):
        self.subject, self.line = subject, line
        size = subject.config.data.image_size
        train, test = (open_source(reference.data, split, size) for split in ("train", "test"))
        self.network = self.open_network(reference, train)
        self.real = self.moments(train, len(train))
        self.unseen = self.moments(test, min(count, len(test)))
        self.facts = {"data": reference.data, "note": train.note}

    def open_network(self, reference: Reference, train: Source) -> FeatureNetwork:
        device, config = self.subject.device, self.subject.config
        if reference.inception:
            return load_inception(reference.inception).to(device)
        return classifier_features(
            train, config.data.image_size, reference.classifier, device, config.speed.workers,
            lambda share, fields: self.line.update(share, {"classifier": "training"} | fields),
        )  # fmt: skip

    def moments(self, source: Source, count: int) -> Gaussian:
        """The features of the first `count` images."""
        data, found = self.subject.config.data, Moments()
        batches = in_order(
            source, data.image_size, batch_size=200, bad_images=data.bad_images,
            workers=self.subject.config.speed.workers,
        )  # fmt: skip
        with closing(batches):
            while found.count < count:
                images = next(batches).images[: count - found.count]
                found.add(self.network(images.to(self.subject.device)))
                self.line.update(found.count / count, {"real images": found.count})
        return found.gaussian()

    def of(self, samples: Gaussian) -> dict:
        """The distance, named by its network, beside that of as many unseen real images."""
        name = self.network.name
        return self.facts | {
            name: frechet_distance(samples, self.real),
            f"{name}_of_test_images": frechet_distance(self.unseen, self.real),
            "features": getattr(self.network, "digest", name),
            "train_images": self.real.count,
            "test_images": self.unseen.count,
            "caution": samples.caution,
        }


def choose_labels(subject: Subject, ids: Tensor, label: int | None) -> Tensor | None:
    """(B,) the class asked for, or each in turn; None where the network is told no class."""
    classes = class_count(subject)
    if not classes:
        return None
    return (ids % classes if label is None else torch.full_like(ids, label)).to(subject.device)


def check(subject: Subject, count: int, how: Sampling, label: int | None, distance: bool) -> None:
    """SettingError with the first thing that this run cannot do."""
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
    shown, samples = torch.empty(0, dtype=torch.uint8), Moments()
    with Progress("sample") as line:
        distance = Distance(reference, subject, count, line) if reference else None
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
    pictures.sample_grid(out, shown.numpy(), words)
    return facts | {"picture": str(out)}
