"""Samples of the asked size from a source: broken images replaced, small sets kept in memory."""

from threading import Lock

import numpy as np

from .augment import center, random_resized_crop
from .errors import BadImage, DataError
from .source import Source

# Below this many images looked at, a share of broken ones says nothing about the set.
ENOUGH = 256


class Reader:
    """Reads images of a source at one size; safe to call from many threads.

    bad: index -> 'name: reason' of every broken image met.
    """

    def __init__(
        self, source: Source, image_size: int, *, bad_images: str, cache_mb: int, min_crop: float
    ):
        self.source, self.size, self.scale = source, image_size, (min_crop, 1.0)
        self.raises = bad_images == "raise"
        self.bad: dict[int, str] = {}
        self.lock = Lock()
        count = len(source)
        self.seen = np.zeros(count, bool)
        self.looked = 0
        self.origin = np.arange(count)  # whose pixels and label stand at each index
        self.cache = self.kept = None
        if count * image_size**2 * 3 <= cache_mb * 2**20:
            self.cache = np.empty((count, image_size, image_size, 3), np.uint8)
            self.kept = np.zeros(count, bool)

    def centered(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Central squares (B, S, S, 3) uint8 and labels (B,) int64 of the images asked for."""
        if self.cache is None:
            images = self.stack(indices, lambda image, row: center(image, self.size))
        else:
            for index in np.unique(indices[~self.kept[indices]]):
                self.cache[index] = center(self.whole(int(index)), self.size)
                self.kept[index] = True
            images = self.cache[indices]
        return images, self.source.labels[self.origin[indices]]

    def cropped(self, indices: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Random resized crops by u (B, 4) in [0, 1); shapes as centered()."""
        images = self.stack(
            indices, lambda image, row: random_resized_crop(image, self.size, u[row], self.scale)
        )
        return images, self.source.labels[self.origin[indices]]

    def stack(self, indices: np.ndarray, view) -> np.ndarray:
        images = np.empty((len(indices), self.size, self.size, 3), np.uint8)
        for row, index in enumerate(indices):
            images[row] = view(self.whole(int(index)), row)
        return images

    def whole(self, index: int) -> np.ndarray:
        """The image at `index`, or the next one after it that can be read."""
        count = len(self.source)
        for other in ((index + step) % count for step in range(count)):
            if other in self.bad:
                continue
            try:
                image = self.source.read(other)
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
        if self.looked >= min(ENOUGH, len(self.source)) and 2 * len(self.bad) > self.looked:
            raise DataError(
                f"{self.source.name}: {len(self.bad)} of the {self.looked} images read so far are "
                f"broken; {self.example()}"
            )

    def count(self, index: int, problem: str | None = None) -> None:
        with self.lock:
            self.looked += not self.seen[index]
            self.seen[index] = True
            if problem:
                self.bad[index] = problem

    def example(self) -> str:
        return "the first is " + next(iter(self.bad.values()))
