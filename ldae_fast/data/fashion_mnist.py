"""Fashion-MNIST from Debian's package: 60,000 and 10,000 grey pictures of clothes, 10 classes."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from .debian import package_files
from .errors import DataError
from .source import Source

PACKAGE = "dataset-fashion-mnist"
PREFIX = {"train": "train", "test": "t10k"}
PAD = 2  # 28 -> 32 pixels, a side that patches divide
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


class FashionMnist(Source):
    """Grey 28 x 28 images as RGB, padded with black to 32 x 32."""

    def __init__(self, split: str, cache: Path):
        files = {path.name: path for path in package_files(PACKAGE, cache)}
        self.name, self.classes = "fashion-mnist", CLASSES
        self.grey = read_idx(files, f"{PREFIX[split]}-images-idx3-ubyte.gz", 3)  # (N, 28, 28)
        self.labels = read_idx(files, f"{PREFIX[split]}-labels-idx1-ubyte.gz", 1).astype(np.int64)
        self.split = split

    def read(self, index: int) -> np.ndarray:
        return np.repeat(np.pad(self.grey[index], PAD)[..., None], 3, axis=2)

    def describe(self, index: int) -> str:
        return f"fashion-mnist {self.split}:{index}"


def read_idx(files: dict[str, Path], name: str, rank: int) -> np.ndarray:
    """The array of a gzipped idx file: two zero bytes, type 8 (uint8), rank, sizes, values."""
    if name not in files:
        raise DataError(f"Debian package {PACKAGE} has no file {name}; install it again")
    try:
        with gzip.open(files[name]) as file:
            magic = file.read(4)
            shape = tuple(np.frombuffer(file.read(4 * rank), ">u4").tolist())
            values = np.frombuffer(file.read(math.prod(shape)), np.uint8).reshape(shape)
    except (OSError, EOFError, ValueError, zlib.error) as problem:
        raise DataError(f"{files[name]} is damaged ({problem}); install {PACKAGE} again") from None
    if magic != bytes((0, 0, 8, rank)):
        raise DataError(f"{files[name]} is no idx file of rank {rank}; install {PACKAGE} again")
    return values
