"""Tar shards in the WebDataset layout: `wds:PATTERN`, read at random by the members' offsets.

A sample is the members that share a name up to its first dot: an image, and its label in `.cls`.
"""

import glob
import itertools
import os
import re
from array import array
from pathlib import Path

import numpy as np

from .errors import DataError
from .source import EncodedSource, numbered_classes, part
from .splits import named_splits
from .tar import members

IMAGES = ("jpg", "jpeg", "png")
MAX_LABEL_BYTES = 32
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class Wds(EncodedSource):
    """PATTERN is a path with *, ? or ranges such as {000..012}.

    Shards named train and test (or val) make the splits, else every tenth sample is for testing.
    """

    def __init__(self, pattern: str, split: str):
        self.name = f"wds:{pattern}"
        files = expand(pattern, self.name)
        splits = named_splits(files)
        self.files = splits[split] if splits else files
        table = self.index()
        if not len(table):
            raise DataError(
                f"{self.name}: no samples in {len(self.files)} shards; expected pairs such as "
                "0001.jpg and 0001.cls"
            )
        self.classes = numbered_classes([table[:, 3]], self.name)
        table = table if splits else table[part(len(table), split)]
        self.places, self.labels = table[:, :3], np.ascontiguousarray(table[:, 3])

    def index(self) -> np.ndarray:
        """(N, 4) int64: shard, offset, size in bytes, label of each sample."""
        rows = array("q")
        for shard, path in enumerate(self.files):
            for offset, size, label in samples(path):
                rows.extend((shard, offset, size, label))
        return np.array(rows, np.int64).reshape(-1, 4)

    def marks(self) -> bytes:
        """The files' sizes."""
        return self.places[:, 2].tobytes()

    def encoded(self, index: int) -> bytes:
        shard, offset, size = (int(value) for value in self.places[index])
        with open(self.files[shard], "rb", buffering=0) as file:
            return os.pread(file.fileno(), size, offset)

    def describe(self, index: int) -> str:
        shard, offset, _ = self.places[index]
        return f"{self.files[shard]}:byte {offset}"


def samples(path: Path):
    """(offset, size, label) of each image of one shard."""
    try:
        with open(path, "rb", buffering=0) as file:
            for key, group in itertools.groupby(members(path), lambda member: split_key(member)[0]):
                parts = {split_key(member)[1]: member[1:] for member in group}
                image = next((parts[kind] for kind in IMAGES if kind in parts), None)
                if image and "cls" in parts:
                    yield *image, read_label(file.fileno(), *parts["cls"], path, key)
                elif image:
                    raise DataError(f"{path}: sample {key} has no label; expected {key}.cls")
    except OSError as problem:
        raise DataError(f"{path} cannot be read ({problem.strerror})") from problem


def split_key(member: tuple[str, int, int]) -> tuple[str, str]:
    folder, slash, name = member[0].rpartition("/")
    key, _, kind = name.partition(".")
    return folder + slash + key, kind.lower()


def read_label(descriptor: int, offset: int, size: int, path: Path, key: str) -> int:
    content = os.pread(descriptor, min(size, MAX_LABEL_BYTES), offset)
    if not re.fullmatch(rb"\s*\d{1,18}\s*", content):
        raise DataError(f"{path}: {key}.cls must hold a whole number; it holds {content!r}")
    return int(content)


def expand(pattern: str, name: str) -> list[Path]:
    """The shards that a pattern names; every number of a range must be there."""
    files: list[str] = []
    for single in ranges(pattern):
        found = sorted(glob.glob(single)) if glob.has_magic(single) else [single]
        files += [file for file in found if Path(file).is_file()]
        if not any(Path(file).is_file() for file in found):
            raise DataError(
                f"{name}: no file {single}; expected tar shards, such as wds:/data/train-*.tar or "
                "wds:/data/train-{000..012}.tar"
            )
    return [Path(file) for file in files]


def ranges(pattern: str) -> list[str]:
    """'a{08..10}' -> ['a08', 'a09', 'a10']; several ranges multiply out."""
    if not (found := RANGE.search(pattern)):
        return [pattern]
    first, last = found.groups()
    numbers = (str(n).zfill(len(first)) for n in range(int(first), int(last) + 1))
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [single for n in numbers for single in ranges(head + n + tail)]
