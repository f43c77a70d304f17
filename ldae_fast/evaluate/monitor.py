"""A kNN probe during training, on training images alone, kept to a small share of the time."""

import time

import torch

from ..data import Loader, Source
from ..noise import stream
from .features import FeatureSet, extract, select
from .knn import knn_top1
from .protocol import Subject
from .spectrum import effective_rank

SHARE = 0.02  # of the run's time


class Monitor:
    """Holds a fixed sample of training images and probes the encoder on it when allowed."""

    def __init__(self, subject: Subject, source: Source, images: int):
        self.subject, self.spent_s = subject, 0.0
        data = subject.config.data
        self.classes = len(source.classes)
        self.active = images >= 8 and self.classes > 1
        if self.active:
            loader = Loader(
                source, batch_size=min(images, len(source)), image_size=data.image_size,
                seed=stream(subject.config.seed, "monitor"), flip=False, workers=0,
                bad_images=data.bad_images, cache_mb=0,
            )  # fmt: skip
            self.batch = loader.batch(0)

    def allowed(self, elapsed_s: float) -> bool:
        """Whether the probes so far fit into SHARE of the run's time."""
        return self.active and self.spent_s <= SHARE * elapsed_s

    def probe(self) -> dict[str, float]:
        """kNN top-1 of the last quarter of the images among the others, and effective rank; of how
        many images each is."""
        start = time.perf_counter()
        config, encoders = self.subject.config.evaluate, {"now": self.subject.encoder("trained")}
        features = extract(encoders, self.pieces(), self.subject.device)["now"]
        bank, asked = split(features)
        top1 = knn_top1(bank, asked, self.classes, config.knn_k, config.knn_temperature,
                        self.subject.device)  # fmt: skip
        rank = effective_rank(features.values.to(self.subject.device))
        self.spent_s += time.perf_counter() - start
        return {"knn_top1": top1, "knn_top1_images": len(asked.labels), "effective_rank": rank,
                "effective_rank_images": len(features.labels)}  # fmt: skip

    def pieces(self):
        """The kept images in batches small enough for any device."""
        b = self.batch
        for rows in torch.arange(len(b.ids)).split(500):
            yield type(b)(b.images[rows], b.labels[rows], b.ids[rows], b.flip[rows])


def split(features: FeatureSet) -> tuple[FeatureSet, FeatureSet]:
    rows = torch.arange(len(features.labels))
    cut = len(rows) * 3 // 4
    return select(features, rows[:cut]), select(features, rows[cut:])
