"""Batches: a pure function of (seed, step), whatever the number of worker threads."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .augment import uniforms
from .errors import DataError
from .order import Order
from .prefetch import prefetch
from .reader import Reader
from .source import Source

AUGMENTS = ("center", "random-resized-crop")
DRAWS = 5  # of a sample: flip, then the crop's area, shape, left and top


@dataclass(frozen=True)
class Batch:
    """images (B, S, S, 3) uint8; labels, ids (B,) int64; flip (B,) bool, still to be applied.

    `ids` are the indices asked for, also where a broken image was replaced by another.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    flip: Tensor


def mirror(images: Tensor, flip: Tensor) -> Tensor:
    """images (B, H, W, C), those where flip (B,) is set from right to left."""
    return torch.where(flip[:, None, None, None], images.flip(2), images)


class Loader:
    """Endless shuffled batches of one source, each image once an epoch, nothing dropped.

    augment   'center' or 'random-resized-crop' (parts of at least `min_crop` of the area)
    flip      whether half of the samples are marked to be mirrored
    workers   threads of iterate(); 0 reads in line
    bad_images  'replace' by the next readable image, label and all, or 'raise' DataError
    cache_mb  central crops are kept in memory where all of them take at most this many MiB
    wait_s    seconds that the consumer has waited so far
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        image_size: int,
        seed: int,
        augment: str = "center",
        flip: bool = True,
        workers: int = 2,
        bad_images: str = "replace",
        cache_mb: int = 2048,
        min_crop: float = 0.2,
    ):
        check(source, batch_size, image_size, workers, bad_images)
        if augment not in AUGMENTS:
            raise DataError(f"augment must be one of {', '.join(AUGMENTS)}; got {augment!r}")
        self.batch_size, self.seed, self.workers = batch_size, seed, workers
        self.crops, self.flip = augment == "random-resized-crop", flip
        self.reader = Reader(
            source, image_size, bad_images=bad_images, min_crop=min_crop,
            cache_mb=0 if self.crops else cache_mb,
        )  # fmt: skip
        self.order = Order(seed, len(source))
        self.wait_s = 0.0

    def batch(self, step: int) -> Batch:
        """Batch number `step`: samples step * B onward of the endless order."""
        start = step * self.batch_size
        pieces = self.order.slices(start, start + self.batch_size)
        ids = np.concatenate([indices for _, indices in pieces])
        draws = np.concatenate([uniforms(self.seed, *piece, DRAWS) for piece in pieces])
        return make_batch(self.reader, ids, draws, self.crops, self.flip)

    def iterate(self, start: int = 0) -> Iterator[Batch]:
        """Batches start, start + 1, ... without end; close() ends the worker threads."""
        batches = prefetch(self.batch, itertools.count(start), self.workers)
        try:
            while True:
                asked = time.perf_counter()
                batch = next(batches)
                self.wait_s += time.perf_counter() - asked
                yield batch
        finally:
            batches.close()


def in_order(
    source: Source,
    image_size: int,
    *,
    batch_size: int,
    workers: int = 2,
    view: int = 0,
    seed: int = 0,
    bad_images: str = "replace",
    min_crop: float = 0.2,
) -> Iterator[Batch]:
    """The whole source once, by index; the last batch may be smaller.

    View 0 is the central square, unmirrored. View k is a random resized crop, mirrored or not, as
    (seed, k, index) decides.
    """
    check(source, batch_size, image_size, workers, bad_images)
    reader = Reader(source, image_size, bad_images=bad_images, cache_mb=0, min_crop=min_crop)
    return prefetch(
        lambda start: ordered(reader, start, batch_size, view, seed),
        range(0, len(source), batch_size),
        workers,
    )


def ordered(reader: Reader, start: int, batch_size: int, number: int, seed: int) -> Batch:
    ids = np.arange(start, min(start + batch_size, len(reader.source)))
    return make_batch(reader, ids, uniforms(seed, number, ids, DRAWS), number > 0, number > 0)


def make_batch(
    reader: Reader, ids: np.ndarray, draws: np.ndarray, crops: bool, flip: bool
) -> Batch:
    """The batch of images `ids` (B,) as the numbers `draws` (B, DRAWS) have it."""
    images, labels = reader.cropped(ids, draws[:, 1:]) if crops else reader.centered(ids)
    mirrored = (draws[:, 0] < 0.5) & flip
    return Batch(*(torch.from_numpy(array) for array in (images, labels, ids, mirrored)))


def check(source: Source, batch_size: int, image_size: int, workers: int, bad_images: str) -> None:
    for name, value, least in (
        ("batch_size", batch_size, 1), ("image_size", image_size, 1), ("workers", workers, 0)
    ):  # fmt: skip
        if value < least:
            raise DataError(f"{name} must be at least {least}; got {value}")
    if bad_images not in ("replace", "raise"):
        raise DataError(f"bad_images must be 'replace' or 'raise'; got {bad_images!r}")
    if len(source) == 0:
        raise DataError(f"{source.name} has no images")
