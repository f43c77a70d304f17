"""Data sets: one word opens any of them, loaders make batches of them.

Images come out as uint8 RGB. Order and augmentation are pure functions of (seed, epoch, index).
Nothing in here unpickles, and no file it is given can run code.
"""

import difflib
import os
from importlib import import_module
from pathlib import Path

from .errors import BadImage, DataError
from .loader import Batch, Loader, in_order, mirror
from .source import Source

__all__ = [
    "BadImage",
    "Batch",
    "DataError",
    "Loader",
    "Source",
    "cache_folder",
    "in_order",
    "mirror",
    "open_source",
]

BUILT_IN = {"photos": "Photos", "fashion-mnist": "FashionMnist", "cifar10": "Cifar10"}
WITH_PATH = {"folder": "Folder", "parquet": "Parquet", "wds": "Wds", "packed": "Packed"}
KINDS = BUILT_IN | WITH_PATH  # kind -> the class in the file of that name


def open_source(
    spec: str, split: str, image_size: int, *, cache_dir: str | Path | None = None
) -> Source:
    """One split, 'train' or 'test', of the data set that `spec` names.

    `image_size` (pixels) is the side of the crops that `photos` is cut into; other sets keep their
    images' own sizes. `cache_dir` defaults to $LDAE_CACHE, else ~/.cache/ldae_fast. Raises
    DataError where the set cannot be had.
    """
    if split not in ("train", "test"):
        raise DataError(f"split must be 'train' or 'test'; got {split!r}")
    if image_size < 1:
        raise DataError(f"image_size must be at least 1; got {image_size}")
    kind, colon, path = spec.partition(":")
    if (kind in BUILT_IN and colon) or (kind in WITH_PATH and not path):
        came = f"{kind} takes no path" if colon and path else f"{kind} needs a path"
        raise DataError(f"{came}; {expected()}, got {spec!r}")
    if kind not in KINDS:
        raise DataError(unknown(spec, kind))
    source = build(kind, path, split, image_size, cache_folder(cache_dir))
    if len(source) == 0:
        raise DataError(f"{source.name} has no images for split '{split}'; add some")
    return source


def build(kind: str, path: str, split: str, image_size: int, cache: Path) -> Source:
    """The source of one kind, whose file is imported only now: pyarrow alone takes a while."""
    source = getattr(import_module("." + kind.replace("-", "_"), __name__), KINDS[kind])
    if kind == "photos":
        return source(split, image_size, cache)
    return source(split, cache) if kind in BUILT_IN else source(path, split)


def cache_folder(given: str | Path | None) -> Path:
    return Path(given or os.environ.get("LDAE_CACHE") or Path.home() / ".cache" / "ldae_fast")


def expected() -> str:
    return f"expected {', '.join(BUILT_IN)}, folder:PATH, parquet:PATH, wds:PATTERN or packed:PATH"


def unknown(spec: str, kind: str) -> str:
    near = difflib.get_close_matches(kind.lower(), KINDS, n=1)
    if Path(spec).is_dir():
        hint = f"; did you mean folder:{spec}?"
    else:
        hint = f"; did you mean {near[0]}?" if near else ""
    return f"there is no data set {spec!r}{hint} ({expected()})"
