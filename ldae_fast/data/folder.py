"""Folders of JPEG and PNG files, one subfolder a class: `folder:PATH`."""

import os
from pathlib import Path

import numpy as np

from .errors import DataError
from .source import EncodedSource, held_out

SUFFIXES = (".jpg", ".jpeg", ".png")


class Folder(EncodedSource):
    """PATH/train and PATH/test or PATH/val, whichever has the classes of train; without them every
    tenth image of each class is for testing."""

    def __init__(self, path: str, split: str):
        self.name = f"folder:{path}"
        root, held, split_here = roots(Path(path), self.name)
        listed = images_by_class(root, self.name)
        self.classes = tuple(listed)
        if empty := [name for name in subfolders(root) if name not in listed]:
            more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
            self.note = f"Left out, as folders without an image: {', '.join(empty[:5])}{more}."
        if split_here:
            mark = split == "test"
            chosen = {
                name: [f for f, test in zip(files, held_out(len(files))) if test == mark]
                for name, files in listed.items()
            }
        else:
            chosen = listed if split == "train" else self.same_classes(held)
        self.paths = [file for files in chosen.values() for file in files]
        number = {name: label for label, name in enumerate(self.classes)}
        labels = [number[name] for name, files in chosen.items() for _ in files]
        self.labels = np.array(labels, np.int64)

    def same_classes(self, held: Path) -> dict[str, list[str]]:
        listed = images_by_class(held, self.name)
        if strange := sorted(set(listed) - set(self.classes)):
            raise DataError(
                f"{held} has classes that the training images lack: {', '.join(strange[:5])}"
            )
        return listed

    def marks(self) -> bytes:
        """The files' names, without the folders, so that these may be moved."""
        return os.fsencode("\0".join(map(os.path.basename, self.paths)))

    def encoded(self, index: int) -> bytes:
        with open(self.paths[index], "rb") as file:
            return file.read()

    def describe(self, index: int) -> str:
        return self.paths[index]


def roots(path: Path, name: str) -> tuple[Path, Path, bool]:
    """(training root, test root, whether both are one root, to be split here)."""
    if not path.is_dir():
        raise DataError(f"{name}: there is no folder {path}; name one with a subfolder for a class")
    root = path / "train" if (path / "train").is_dir() else path
    held = [folder for name in ("test", "val") if (folder := path / name).is_dir()]
    if root == path or not held:
        return root, root, True
    known = set(subfolders(root))
    for folder in held:  # ImageNet's test/ has no classes, its val/ may have them
        if (own := subfolders(folder)) and known.issuperset(own):
            return root, folder, False
    return root, held[0], False  # and what is wrong with it is said where it is read


def subfolders(root: Path) -> list[str]:
    """Names of the folders in `root`, sorted, without hidden ones."""
    return sorted(f.name for f in root.iterdir() if f.is_dir() and not f.name.startswith("."))


def images_by_class(root: Path, name: str) -> dict[str, list[str]]:
    """Class name -> sorted paths of its images, sorted by name; classes without any are left out.

    Raises DataError where there are no class folders, or no image in them.
    """
    folders = subfolders(root)
    if not folders:
        raise DataError(
            f"{name}: {root} has no subfolders; put the images of each class into a folder of its "
            "own (one folder is enough)"
        )
    listed = {name: files for name in folders if (files := images_under(root / name))}
    if not listed:
        raise DataError(
            f"{name}: no image under {root}; expected files ending in {', '.join(SUFFIXES)}"
        )
    return listed


def images_under(folder: Path) -> list[str]:
    return sorted(
        os.path.join(parent, file)
        for parent, _, files in os.walk(folder, onerror=refuse)
        for file in files
        if file.lower().endswith(SUFFIXES) and not file.startswith(".")
    )


def refuse(problem: OSError) -> None:
    """A folder that is passed over would be a class that is not learnt, or only a part of it."""
    raise DataError(
        f"{problem.filename} cannot be listed ({problem.strerror}); make the folder readable, or "
        "move it out of the data"
    ) from problem
