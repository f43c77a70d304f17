"""How far samples are from real images, by the features of a network."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ..config import SettingError
from ..data import Loader, Source, open_source
from ..report.progress import Progress
from .classifier_features import classifier_features
from .frechet import FeatureNetwork, Gaussian, Moments, digest, frechet_distance
from .inception import load_inception
from .protocol import Subject


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

    def __init__(self, reference: Reference, subject: Subject, count: int):
        self.subject = subject
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
        with Progress("classifier") as line:
            return classifier_features(
                train, config.data.image_size, reference.classifier, device, self.subject.workers,
                line.update,
            )  # fmt: skip

    def moments(self, source: Source, count: int) -> Gaussian:
        """The features of `count` images, drawn without replacement, since sets come by class."""
        data, found = self.subject.config.data, Moments()
        loader = Loader(
            source, batch_size=200, image_size=data.image_size, seed=0, flip=False, cache_mb=0,
            bad_images=data.bad_images, workers=self.subject.workers,
        )  # fmt: skip
        with Progress("real images") as line, closing(loader.iterate()) as batches:
            while found.count < count:
                images = next(batches).images[: count - found.count]
                found.add(self.network(images.to(self.subject.device)))
                line.update(found.count / count, {"features": f"{found.count:,}/{count:,}"})
        try:
            return found.gaussian()
        except ValueError as problem:
            raise SettingError(f"--frechet {source.name}: {problem}") from problem

    def of(self, samples: Gaussian) -> dict:
        """The distance, named by its network, beside that of as many unseen real images."""
        name = self.network.name
        return self.facts | {
            name: frechet_distance(samples, self.real),
            f"{name}_of_test_images": frechet_distance(self.unseen, self.real),
            "network": digest(self.network),
            "train_images": self.real.count,
            "test_images": self.unseen.count,
            "caution": samples.caution or self.real.caution,
        }
