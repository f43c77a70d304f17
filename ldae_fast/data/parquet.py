"""Parquet files in Hugging Face's image layout: `parquet:PATH`.

A struct column with a binary field `bytes` holds image files, an integer column the labels. Row
groups are read when an image of them is asked for, and kept while they fit into memory's share.
"""

import json
from collections import OrderedDict
from pathlib import Path
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .decode import jpeg_quality
from .errors import BadImage, DataError
from .source import EncodedSource, numbered_classes, part, patiently
from .splits import named_splits

KEPT_BYTES = 2 * 2**30  # of row groups in memory


class Parquet(EncodedSource):
    """PATH is a file, or a folder of them; without train and test files every tenth row is test."""

    def __init__(self, path: str, split: str, kept_bytes: int = KEPT_BYTES):
        self.name = f"parquet:{path}"
        files = parquet_files(Path(path), self.name)
        splits = named_splits(files)
        chosen = splits[split] if splits else files
        shards = {file: Shard(file) for file in files}
        self.classes = next(iter(shards.values())).class_names or numbered_classes(
            [shard.labels for shard in shards.values()], self.name
        )
        self.shards = [shards[file] for file in chosen]
        labels = np.concatenate([shard.labels for shard in self.shards])
        self.rows = np.arange(len(labels)) if splits else part(len(labels), split)
        self.labels = labels[self.rows]
        self.check_labels()
        self.starts = np.cumsum([0] + [len(shard.labels) for shard in self.shards])
        self.groups = RowGroups(kept_bytes)
        self.note = self.quality_note()

    def check_labels(self) -> None:
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise DataError(
                f"{self.name}: labels {self.labels.min()}..{self.labels.max()} came for "
                f"{len(self.classes)} named classes; leave unlabelled images out"
            )

    def locate(self, index: int) -> tuple["Shard", int]:
        row = self.rows[index]
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.shards[number], int(row - self.starts[number])

    def encoded(self, index: int) -> bytes:
        shard, row = self.locate(index)
        group = int(np.searchsorted(shard.group_starts, row, side="right")) - 1
        try:
            images = self.groups.get(shard, group)
        except (pa.ArrowException, OSError) as problem:
            if getattr(problem, "errno", None):  # the system's: the storage, not the file's content
                raise
            raise BadImage(self.describe(index), f"cannot be read ({problem})") from problem
        return images[row - shard.group_starts[group]].as_py() or b""

    def describe(self, index: int) -> str:
        shard, row = self.locate(index)
        return f"{shard.path}:{row}"

    def quality_note(self) -> str:
        """Says so where the images are JPEG, whose losses pixel statistics show."""
        try:
            if not len(self):
                return ""
            quality = jpeg_quality(patiently(lambda: self.encoded(0), self.describe(0)))
        except BadImage:
            return ""
        return f"Images stored as JPEG, quality about {quality}." if quality else ""


class Shard:
    """One file: where its images are, and all of its labels."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with pq.ParquetFile(path) as file:
                self.metadata, schema = file.metadata, file.schema_arrow
                self.image, self.label = columns(schema, path)
                labels = file.read([self.label], use_threads=False).column(0)
        except (pa.ArrowException, OSError) as problem:
            raise DataError(f"{path} cannot be read as Parquet ({problem})") from problem
        if labels.null_count:
            raise DataError(
                f"{path}: column {self.label} lacks {labels.null_count} labels; leave these "
                "images out"
            )
        self.labels = labels.to_numpy().astype(np.int64)
        self.class_names = class_names(schema, self.label)
        counts = [self.metadata.row_group(g).num_rows for g in range(self.metadata.num_row_groups)]
        self.group_starts = np.cumsum([0, *counts])[: len(counts)]

    def read_group(self, group: int) -> pa.Array:
        """The image files of one row group, a binary array.

        Not through a map: a storage that goes away under one kills the process.
        """
        with pq.ParquetFile(self.path, metadata=self.metadata) as file:
            table = file.read_row_group(group, [f"{self.image}.bytes"], use_threads=False)
        column = table.column(0).combine_chunks()
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        return pa.concat_arrays([chunk.field("bytes") for chunk in chunks])


class RowGroups:
    """The row groups read last, up to a number of bytes, for many threads."""

    def __init__(self, kept_bytes: int):
        self.limit, self.bytes = kept_bytes, 0
        self.lock = Lock()
        self.kept: OrderedDict[tuple[Path, int], pa.Array] = OrderedDict()

    def get(self, shard: Shard, group: int) -> pa.Array:
        key = shard.path, group
        with self.lock:  # two threads after one group: the second waits instead of reading too
            if key not in self.kept:
                self.kept[key] = images = shard.read_group(group)
                self.bytes += images.nbytes
                while self.bytes > self.limit and len(self.kept) > 1:
                    self.bytes -= self.kept.popitem(last=False)[1].nbytes
            self.kept.move_to_end(key)
            return self.kept[key]


def parquet_files(path: Path, name: str) -> list[Path]:
    if path.is_file():
        return [path]
    for folder in (path, path / "data"):  # where repositories of the hub keep them
        if files := sorted(folder.glob("*.parquet")):
            return files
    raise DataError(
        f"{name}: no .parquet file at {path}; name a file, or a folder with train-*.parquet and "
        "test-*.parquet"
    )


def columns(schema: pa.Schema, path: Path) -> tuple[str, str]:
    """Names of the image column and the label column; DataError where there is no one of a kind."""
    images = [field.name for field in schema if holds_images(field.type)]
    integers = [field.name for field in schema if pa.types.is_integer(field.type)]
    labels = [name for name in integers if name in ("label", "labels")] or integers
    for kind, found in (("struct column with a binary field 'bytes'", images),
                        ("integer column of labels", labels)):  # fmt: skip
        if len(found) != 1:
            came = ", ".join(f"{field.name} ({field.type})" for field in schema)
            raise DataError(
                f"{path}: expected one {kind}, found {len(found)}; its columns are {came}"
            )
    return images[0], labels[0]


def holds_images(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return False
    binary = (pa.types.is_binary, pa.types.is_large_binary)
    return any(f.name == "bytes" and any(test(f.type) for test in binary) for f in kind)


def class_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """The names that Hugging Face's own metadata gives the labels; () without them."""
    try:
        described = json.loads((schema.metadata or {})[b"huggingface"])
        names = described["info"]["features"][label]["names"]
        return tuple(str(name) for name in names)
    except (KeyError, TypeError, ValueError):
        return ()
