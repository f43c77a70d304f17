"""A part of a source's images, as a source."""

import numpy as np

from .decode import Shrink
from .source import Source


class Subset(Source):
    """The images of `source` at `indices` (N,), numbered anew from 0."""

    def __init__(self, source: Source, indices: np.ndarray):
        self.source, self.indices = source, indices
        self.name, self.note, self.classes = source.name, source.note, source.classes
        self.labels = source.labels[indices]

    def read(self, index: int) -> np.ndarray:
        return self.source.read(int(self.indices[index]))

    def shrunk(self, index: int, shrink: Shrink) -> np.ndarray:
        return self.source.shrunk(int(self.indices[index]), shrink)

    def describe(self, index: int) -> str:
        return self.source.describe(int(self.indices[index]))
