"""Decoded images in one file a split: `packed:PATH`, read by offset and checked on every read.

pack.json               format, source, note, classes; size and digest of every other file
train/images.bin        the images one after another, (H, W, 3) uint8 each
train/offset.npy ...    index arrays: offset int64, height and width int32, label int64,
test/...                crc32 uint32
"""

import hashlib
import itertools
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from . import open_source
from .errors import BadImage, DataError
from .prefetch import prefetch
from .source import Source, patiently

FORMAT = 1
SPLITS = ("train", "test")
COLUMNS = {
    "offset": np.int64, "height": np.int32, "width": np.int32, "label": np.int64,
    "crc32": np.uint32,
}  # fmt: skip
ADVICE = "copy or pack the data set again"


class Packed(Source):
    """Reads by pread, not through a map: a file cut short under a map would kill the process."""

    def __init__(self, path: str, split: str):
        self.name, self.folder = f"packed:{path}", Path(path) / split
        about = read_about(Path(path))
        self.note, self.classes = about["note"], tuple(about["classes"])
        columns = [
            read_column(Path(path), f"{split}/{name}.npy", about["files"], kind)
            for name, kind in COLUMNS.items()
        ]
        if len({len(column) for column in columns}) != 1:
            raise DataError(f"{self.folder}: the index arrays differ in length; {ADVICE}")
        self.offset, self.height, self.width, self.labels, self.crc32 = columns
        self.images = self.folder / "images.bin"
        self.check(about["files"][f"{split}/images.bin"]["bytes"])
        self.descriptor = os.open(self.images, os.O_RDONLY | os.O_CLOEXEC)

    def check(self, expected: int) -> None:
        """The index must describe images.bin from its first byte to its last."""
        if not self.images.is_file():
            raise DataError(f"{self.images} is missing; {ADVICE}")
        size = self.images.stat().st_size
        if size != expected:
            raise DataError(f"{self.images} has {size} bytes, expected {expected}; {ADVICE}")
        sizes = self.height.astype(np.int64) * self.width * 3
        ends = np.cumsum(sizes)
        whole = (
            all((side > 0).all() for side in (self.height, self.width))
            and np.array_equal(self.offset, ends - sizes)
            and (ends[-1] if len(ends) else 0) == size
            and ((self.labels >= 0) & (self.labels < len(self.classes))).all()
        )
        if not whole:
            raise DataError(f"{self.folder}: the index does not fit images.bin; {ADVICE}")

    def read(self, index: int) -> np.ndarray:
        shape = int(self.height[index]), int(self.width[index]), 3
        size = shape[0] * shape[1] * 3
        where = self.descriptor, size, int(self.offset[index])
        data = patiently(lambda: os.pread(*where), self.describe(index))
        if len(data) != size or zlib.crc32(data) != self.crc32[index]:
            raise BadImage(self.describe(index), f"does not match its checksum; {ADVICE}")
        return np.frombuffer(data, np.uint8).reshape(shape)

    def marks(self) -> bytes:
        """The checksums."""
        return self.crc32.tobytes()

    def describe(self, index: int) -> str:
        return f"{self.images}:{index}"

    def __del__(self):
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def read_about(folder: Path) -> dict:
    """pack.json, verified: what it claims to hold is there and of the right types."""
    path = folder / "pack.json"
    try:
        about = json.loads(path.read_bytes())
        claimed = about.pop("sha256")
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path} is missing; expected a folder made by `ldae pack`") from None
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as problem:
        raise DataError(f"{path} cannot be read ({problem}); {ADVICE}") from None
    if claimed != own_digest(about):
        raise DataError(f"{path} does not match its checksum; {ADVICE}")
    if about.get("format") != FORMAT:
        raise DataError(f"{path} has format {about.get('format')}, expected {FORMAT}; {ADVICE}")
    if not well_formed(about):
        raise DataError(f"{path} lacks what a packed data set needs; {ADVICE}")
    return about


def well_formed(about: dict) -> bool:
    files, classes = about.get("files"), about.get("classes")
    wanted = [f"{split}/{name}.npy" for split in SPLITS for name in COLUMNS]
    return (
        isinstance(about.get("note"), str)
        and isinstance(classes, list)
        and all(isinstance(name, str) for name in classes)
        and isinstance(files, dict)
        and all(isinstance(entry, dict) for entry in files.values())
        and all("sha256" in files.get(name, ()) for name in wanted)
        and all("bytes" in files.get(f"{split}/images.bin", ()) for split in SPLITS)
    )


def own_digest(about: dict) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def read_column(folder: Path, name: str, listed: dict, kind: type) -> np.ndarray:
    """One index array, (N,) of `kind`, once its digest has been verified."""
    path = folder / name
    try:
        if hashlib.sha256(path.read_bytes()).hexdigest() != listed[name]["sha256"]:
            raise DataError(f"{path} does not match its checksum; {ADVICE}")
        # Mapped, because a map refuses a header that promises more than the file holds.
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as problem:
        raise DataError(f"{path} is missing ({problem.strerror}); {ADVICE}") from None
    except ValueError as problem:
        raise DataError(f"{path} is no array of numbers ({problem}); {ADVICE}") from None
    if not isinstance(mapped, np.ndarray) or mapped.dtype != kind or mapped.ndim != 1:
        raise DataError(f"{path} is no one-dimensional {np.dtype(kind)} array; {ADVICE}")
    return np.array(mapped)


def pack(
    spec: str,
    out: str | Path,
    *,
    max_side: int | None = None,
    image_size: int = 32,
    workers: int = 2,
    cache_dir: str | Path | None = None,
    show: Callable[[float, dict], None] = lambda share, fields: None,
) -> dict[str, str]:
    """Decodes the data set `spec` into the new folder `out`; returns place -> reason of bad images.

    Images whose short side exceeds max_side (pixels) are scaled down to it. Broken images are left
    out. `out` appears whole or not at all; DataError where it is there already. show(share of the
    images that were read, fields), after each.
    """
    out = Path(os.path.abspath(out))
    if out.exists():
        raise DataError(f"{out} is there already; name a new folder to pack into")
    sources = {s: open_source(spec, s, image_size, cache_dir=cache_dir) for s in SPLITS}
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{out.name}.", suffix=".tmp", dir=out.parent))
    done, count = itertools.count(1), sum(map(len, sources.values()))

    def tick() -> None:
        number = next(done)
        show(number / count, {"images": f"{number:,}/{count:,}"})

    try:
        files, bad = {}, {}
        for split, source in sources.items():
            (temporary / split).mkdir()
            files |= write_split(source, temporary, split, max_side, workers, bad, tick)
        write_about(temporary, sources["train"], files, bad)
        for folder in (temporary / "train", temporary / "test", temporary):
            sync(folder)
        os.rename(temporary, out)
        sync(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return bad


def write_split(
    source: Source,
    folder: Path,
    split: str,
    max_side: int | None,
    workers: int,
    bad: dict,
    tick: Callable[[], None],
) -> dict:
    """Writes one split; adds to `bad`; returns the entries of its files for pack.json."""
    rows, offset = [], 0
    path = folder / split / "images.bin"
    with open(path, "wb") as file:
        images = prefetch(lambda i: readable(source, i, max_side), range(len(source)), workers, 16)
        for index, image in enumerate(images):
            tick()
            if isinstance(image, BadImage):
                bad[image.name] = image.reason
                continue
            data, (height, width, _) = image.tobytes(), image.shape
            rows.append((offset, height, width, source.labels[index], zlib.crc32(data)))
            offset += file.write(data)
        flush(file)
    if not rows:
        raise DataError(f"{source.name}: no image for {split} can be read; nothing was packed")
    entries = {f"{split}/images.bin": {"bytes": offset}}
    for (name, kind), values in zip(COLUMNS.items(), zip(*rows)):
        with open(folder / split / f"{name}.npy", "w+b") as file:
            np.save(file, np.array(values, kind), allow_pickle=False)
            flush(file)
            file.seek(0)
            digest = hashlib.sha256(file.read()).hexdigest()
        entries[f"{split}/{name}.npy"] = {"sha256": digest}
    return entries


def readable(source: Source, index: int, max_side: int | None) -> np.ndarray | BadImage:
    try:
        image = source.read(index)
    except BadImage as problem:
        return problem
    height, width = image.shape[:2]
    if max_side is None or min(height, width) <= max_side:
        return image
    factor = max_side / min(height, width)
    size = tuple(max(max_side, round(side * factor)) for side in (width, height))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def write_about(folder: Path, source: Source, files: dict, bad: dict) -> None:
    about = {
        "format": FORMAT, "source": source.name, "note": source.note,
        "classes": list(source.classes), "files": files, "left_out": bad,
    }  # fmt: skip
    with open(folder / "pack.json", "w") as file:
        json.dump({**about, "sha256": own_digest(about)}, file, indent=1)
        flush(file)


def flush(file) -> None:
    file.flush()
    os.fsync(file.fileno())


def sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
