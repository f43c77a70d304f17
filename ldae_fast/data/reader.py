"""Samples of the asked size from a source: broken images replaced, small sets kept in memory."""

from collections.abc import Callable
from functools import partial
from threading import Lock

import numpy as np

from .augment import Box, center_box, crop_box, cut
from .errors import BadImage, DataError
from .source import Shrink, Source

BoxOf = Callable[[int, int], Box]  # of a height and a width

# Below this many images looked at, a share of broken ones says nothing about the set.
ENOUGH = 256
# Decoded pixels a wanted one, along a side: below two, a JPEG shrunk in decoding looks different.
SPARE = 2


class Reader:
    """Reads images of a source at one size; safe to call from many threads.

    Broken images are noted in source.bad, which all readers of the source share.
    """

    def __init__(
        self, source: Source, image_size: int, *, bad_images: str, cache_mb: int, min_crop: float
    ):
        self.source, self.size, self.scale = source, image_size, (min_crop, 1.0)
        self.raises = bad_images == "raise"
        self.bad = source.bad
        self.lock = Lock()
        count = len(source)
        self.seen = np.zeros(count, bool)
        self.looked = self.broken = 0  # by this reader
        self.origin = np.arange(count)  # whose pixels and label stand at each index
        self.cache = self.kept = None
        if count * image_size**2 * 3 <= cache_mb * 2**20:
            self.cache = np.empty((count, image_size, image_size, 3), np.uint8)
            self.kept = np.zeros(count, bool)

    def centered(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Central squares (B, S, S, 3) uint8 and labels (B,) int64 of the images asked for."""
        if self.cache is None:
            images = self.stack(indices, [center_box] * len(indices))
        else:
            for index in np.unique(indices[~self.kept[indices]]):
                self.fill(self.cache[index], int(index), center_box)
                self.kept[index] = True
            images = self.cache[indices]
        return images, self.source.labels[self.origin[indices]]

    def cropped(self, indices: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Random resized crops by u (B, 4) in [0, 1); shapes as centered()."""
        boxes = [partial(crop_box, u=row, scale=self.scale) for row in u.tolist()]
        images = self.stack(indices, boxes)
        return images, self.source.labels[self.origin[indices]]

    def stack(self, indices: np.ndarray, boxes: list[BoxOf]) -> np.ndarray:
        images = np.empty((len(indices), self.size, self.size, 3), np.uint8)
        for out, index, box_of in zip(images, indices, boxes):
            self.fill(out, int(index), box_of)
        return images

    def fill(self, out: np.ndarray, index: int, box_of: BoxOf) -> None:
        """Scales the part box_of(height, width) of an image into out (S, S, 3)."""

        def shrink(height: int, width: int) -> float:
            left, top, right, bottom = box_of(height, width)
            return min(right - left, bottom - top) / (SPARE * self.size)

        image = self.readable(index, shrink)
        cut(image, box_of(*image.shape[:2]), out)

    def readable(self, index: int, shrink: Shrink) -> np.ndarray:
        """The image at `index`, or the next one after it that can be read."""
        count = len(self.source)
        for other in ((index + step) % count for step in range(count)):
            if other in self.bad:  # another reader's find, perhaps one that replaces
                if self.raises:
                    raise DataError(f"{self.source.name}: {self.bad[other]}")
                continue
            try:
                image = self.source.shrunk(other, shrink)
            except BadImage as problem:
                self.refuse(other, problem)
                continue
            self.origin[index] = other
            self.count(other)
            return image
        raise DataError(f"{self.source.name}: no image can be read; {self.example()}")

    def refuse(self, index: int, problem: BadImage) -> None:
        if self.raises:
            raise DataError(f"{self.source.name}: {problem}") from problem
        self.count(index, str(problem))
        if self.looked >= min(ENOUGH, len(self.source)) and 2 * self.broken > self.looked:
            raise DataError(
                f"{self.source.name}: {self.broken} of the {self.looked} images read so far are "
                f"broken; {self.example()}"
            )

    def count(self, index: int, problem: str | None = None) -> None:
        with self.lock:
            self.looked += not self.seen[index]
            self.seen[index] = True
            if problem:
                self.broken += index not in self.bad
                self.bad[index] = problem

    def example(self) -> str:
        return "the first is " + next(iter(self.bad.values()))
