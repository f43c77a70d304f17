"""What every data set is to the rest of the package: images by index, labels, class names."""

import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import cached_property

import numpy as np

from .decode import Shrink, decode, whole
from .errors import BadImage, DataError

MAX_CLASSES = 1_000_000
HOLD_OUT = 10
LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
PAUSES_S = (0.1, 1.0, 5.0, 25.0)  # between tries at a storage that does not answer


class Source(ABC):
    """One split of a data set. Reads may come from any number of threads at once.

    name     what messages call the set, e.g. 'folder:/data/birds'
    note     one sentence to stand beside every figure, '' if there is none
    labels   (N,) int64, each in [0, len(classes))
    classes  the names of the classes
    """

    name: str
    note: str = ""
    labels: np.ndarray
    classes: tuple[str, ...]

    @cached_property
    def bad(self) -> dict[int, str]:
        """index -> 'name: reason' of every broken image that a reader has met so far."""
        return {}

    @cached_property
    def digest(self) -> str:
        """Of what stands at each index: its class, and what `marks` says. No image is read."""
        labels = np.ascontiguousarray(self.labels, np.int64).tobytes()
        parts = (json.dumps(self.classes).encode(), labels, self.marks())
        lengths = json.dumps([len(part) for part in parts]).encode()
        return hashlib.sha256(b"".join((lengths, *parts))).hexdigest()[:16]

    def marks(self) -> bytes:
        """What tells the images apart, in order, as far as that is known without reading them."""
        return b""

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """The image, (H, W, 3) uint8 RGB. Raises BadImage."""

    def shrunk(self, index: int, shrink: Shrink) -> np.ndarray:
        """read(), or at up to shrink(height, width) times less a side where that costs less."""
        return self.read(index)

    @abstractmethod
    def describe(self, index: int) -> str:
        """Where the image lies, for messages: a path, or file:row."""


class EncodedSource(Source):
    """A source of image files: a subclass says where their bytes are."""

    @abstractmethod
    def encoded(self, index: int) -> bytes:
        """The image file's bytes. May raise OSError."""

    def read(self, index: int) -> np.ndarray:
        return self.shrunk(index, whole)

    def shrunk(self, index: int, shrink: Shrink) -> np.ndarray:
        name = self.describe(index)
        return decode(patiently(lambda: self.encoded(index), name), name, shrink)


def patiently(read: Callable[[], bytes], name: str) -> bytes:
    """What `read` gives, tried again while the storage does not answer.

    Raises BadImage for a file that is gone or closed to us, which leaves the others readable, and
    DataError where nothing comes: a storage that is away for a minute must not pass for a set of
    broken images.
    """
    for pause in (0.0, *PAUSES_S):
        time.sleep(pause)
        try:
            return read()
        except LASTING as problem:
            raise BadImage(name, f"cannot be read ({problem.strerror or problem})") from problem
        except OSError as problem:
            said = problem.strerror or str(problem)
    raise DataError(
        f"{name}: cannot be read ({said}), tried for {sum(PAUSES_S):.0f} s; see to the storage, "
        "then run the command again, or `ldae resume` where a run was training"
    )


def broken_images(*sources: Source) -> list[str]:
    """'name: reason' of every broken image that was met in any of the sources, by name."""
    return sorted({reason for source in sources for reason in source.bad.values()})


def unread_classes(source: Source) -> list[str]:
    """Names of the classes all of whose images are broken, once every one was read."""
    read = np.delete(source.labels, list(source.bad))
    return [source.classes[label] for label in np.setdiff1d(source.labels, read)]


def held_out(count: int) -> np.ndarray:
    """(count,) bool: the test part of an unsplit set, every tenth item.

    Of two to nine items it is the last, so that a small set has both parts.
    """
    mask = np.arange(count) % HOLD_OUT == HOLD_OUT - 1
    if 2 <= count < HOLD_OUT:
        mask[-1] = True
    return mask


def part(count: int, split: str) -> np.ndarray:
    """Indices, int64, of one split of `count` unsplit items."""
    mask = held_out(count)
    return np.flatnonzero(mask if split == "test" else ~mask)


def numbered_classes(labels: Iterable[np.ndarray], where: str) -> tuple[str, ...]:
    """Class names '0', '1', ... for integer labels; raises DataError for labels out of range."""
    filled = [array for array in labels if len(array)]
    low = min((int(array.min()) for array in filled), default=0)
    high = max((int(array.max()) for array in filled), default=-1)
    if low < 0 or high >= MAX_CLASSES:
        raise DataError(
            f"{where}: labels must lie in 0..{MAX_CLASSES - 1}, but {low if low < 0 else high} came"
            "; number the classes from 0 and leave unlabelled images out"
        )
    return tuple(str(label) for label in range(high + 1))
