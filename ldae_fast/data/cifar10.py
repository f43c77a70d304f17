"""CIFAR-10 from the binary archive that its authors publish (the other one is made of pickles)."""

import hashlib
import os
import sys
import tarfile
import tempfile
import urllib.request
from pathlib import Path

import numpy as np

from .errors import DataError
from .source import Source

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
ARCHIVE = URL.rpartition("/")[2]
FILES = {
    "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "test": ("test_batch.bin",),
}
IMAGES_A_FILE = 10_000
RECORD = 1 + 3 * 32 * 32  # bytes: the label, then red, green and blue planes
TIMEOUT_S = 30
CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


class Cifar10(Source):
    """32 x 32 colour images, 50,000 for training and 10,000 for testing."""

    def __init__(self, split: str, cache: Path):
        folder = cache / "cifar-10"
        self.name, self.classes, self.files = "cifar10", CLASSES, FILES[split]
        if not all(whole(folder / name) for name in self.files):
            extract(archive(cache), folder)
        records = np.concatenate([np.fromfile(folder / name, np.uint8) for name in self.files])
        self.records = records.reshape(-1, RECORD)
        self.labels = self.records[:, 0].astype(np.int64)
        if self.labels.max() >= len(CLASSES):
            raise DataError(f"{folder} is damaged: label {self.labels.max()} came; delete it")

    def read(self, index: int) -> np.ndarray:
        planes = self.records[index, 1:].reshape(3, 32, 32)
        return np.ascontiguousarray(planes.transpose(1, 2, 0))

    def describe(self, index: int) -> str:
        return f"{self.files[index // IMAGES_A_FILE]}:{index % IMAGES_A_FILE}"


def whole(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == IMAGES_A_FILE * RECORD


def archive(cache: Path) -> Path:
    """The verified archive in the cache: put there by hand, or downloaded now."""
    path = cache / ARCHIVE
    if not path.is_file():
        download(path)
    with open(path, "rb") as file:
        found = hashlib.md5(usedforsecurity=False)
        while block := file.read(1 << 20):
            found.update(block)
    if found.hexdigest() != MD5:
        raise DataError(
            f"{path} is not the published archive (md5 {found.hexdigest()}, expected {MD5}); "
            "delete it and try again"
        )
    return path


def download(path: Path) -> None:
    """Into a file beside `path`, which then takes its name: no torn archive stays behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        try:
            with urllib.request.urlopen(URL, timeout=TIMEOUT_S) as response:
                copy(response, file)
            os.replace(file.name, path)
        except OSError as problem:
            os.unlink(file.name)
            raise DataError(
                f"cifar10 could not be downloaded from {URL} ({problem}): put that file into "
                f"{path.parent} yourself, or use a copy as --data parquet:PATH"
            ) from problem


def copy(response, file) -> None:
    total, done = int(response.headers.get("Content-Length") or 0), 0
    while block := response.read(1 << 20):
        done += file.write(block)
        if sys.stderr.isatty():
            print(f"\r{ARCHIVE}: {done >> 20} of {total >> 20} MiB", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if done < total:
        raise OSError(f"the connection ended after {done} of {total} bytes")


def extract(path: Path, folder: Path) -> None:
    """Takes the six files of images out of the archive, each under a temporary name first."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {name for names in FILES.values() for name in names}
    with tarfile.open(path, "r:gz") as tar:
        for member in tar:
            name = Path(member.name).name
            if name in wanted and member.isreg():
                with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
                    file.write(tar.extractfile(member).read())
                os.replace(file.name, folder / name)
