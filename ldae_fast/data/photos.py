"""Crops of 27 photographs from Debian's wallpaper packages: real images without a download page.

The label is the photograph. Training crops come from its left half, test crops from its right half,
so no pixel is in both.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from .debian import package_files
from .errors import DataError
from .source import Source

SHORT_SIDE = 384  # pixels, of a scaled photograph
MAX_IMAGE_SIZE = 512
PACKAGES = (  # name, folder of the photographs, their number
    ("lomiri-wallpapers-16.04", "usr/share/backgrounds", 15),
    ("mate-backgrounds", "usr/share/backgrounds/mate/nature", 12),
)
NOTE = (
    "27 photographs, each a class, train and test crops from different halves: this tests texture "
    "and colour, not object recognition."
)


class Photos(Source):
    """One split's crops, each a slice of a photograph held in memory."""

    def __init__(self, split: str, image_size: int, cache: Path):
        if image_size > MAX_IMAGE_SIZE:
            raise DataError(
                f"photos has images of up to {MAX_IMAGE_SIZE} pixels a side; got {image_size}"
            )
        self.name, self.note, self.size = "photos", NOTE, image_size
        # A portrait's half must hold a crop too.
        photos = scaled_photos(max(SHORT_SIDE, 2 * image_size), cache)
        self.classes = tuple(photos)
        self.photos = list(photos.values())
        corners = [grid(*photo.shape[:2], image_size, split) for photo in self.photos]
        self.corners = np.concatenate(corners)  # (N, 2) top, left
        self.labels = np.repeat(np.arange(len(corners)), [len(c) for c in corners])

    def read(self, index: int) -> np.ndarray:
        (top, left), size = self.corners[index], self.size
        return self.photos[self.labels[index]][top : top + size, left : left + size]

    def describe(self, index: int) -> str:
        top, left = self.corners[index]
        return f"{self.classes[self.labels[index]]} at row {top}, column {left}"


def grid(height: int, width: int, size: int, split: str) -> np.ndarray:
    """Top left corners (n, 2) int64 of the crops: dense on the left, side by side on the right."""
    stride = max(4, size // 4) if split == "train" else size
    first, last = (0, width // 2) if split == "train" else (width // 2, width)
    tops = np.arange(0, height - size + 1, stride)
    lefts = np.arange(first, last - size + 1, stride)
    return np.stack(np.meshgrid(tops, lefts, indexing="ij"), axis=-1).reshape(-1, 2)


def scaled_photos(short_side: int, cache: Path) -> dict[str, np.ndarray]:
    """Name -> (H, W, 3) uint8, sorted by name; kept in the cache once scaled."""
    files = [path for package in PACKAGES for path in photographs(*package, cache)]
    folder = cache / f"photos-{short_side}"
    photos = {
        path.stem: kept(path, short_side, folder / f"{path.stem}.npy")
        for path in sorted(files, key=lambda path: path.stem)
    }
    for photo in photos.values():
        photo.flags.writeable = False  # read() hands out slices of it
    return photos


def photographs(package: str, folder: str, count: int, cache: Path) -> list[Path]:
    files = package_files(package, cache)
    found = [
        path for path in files if path.suffix == ".jpg" and str(path.parent).endswith("/" + folder)
    ]
    if len(found) != count:
        raise DataError(
            f"photos: Debian package {package} should hold {count} photographs in /{folder}, but "
            f"has {len(found)}; use --data folder:PATH for photographs of your own"
        )
    return found


def kept(path: Path, short_side: int, target: Path) -> np.ndarray:
    try:
        photo = np.load(target, allow_pickle=False)
        if photo.dtype == np.uint8 and photo.ndim == 3 and min(photo.shape[:2]) == short_side:
            return photo
    except (OSError, ValueError, EOFError):
        pass
    photo = scaled(path, short_side)
    save(photo, target)
    return photo


def scaled(path: Path, short_side: int) -> np.ndarray:
    with Image.open(path, formats=("JPEG",)) as image:
        factor = short_side / min(image.size)
        width, height = (max(short_side, round(side * factor)) for side in image.size)
        small = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
        return np.asarray(small)


def save(photo: np.ndarray, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
        np.save(file, photo, allow_pickle=False)
    os.replace(file.name, target)
