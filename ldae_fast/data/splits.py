"""Which files of a data set belong to which split, judged by their names."""

import re
from collections.abc import Sequence
from pathlib import Path

WORDS = {
    "train": ("train", "training"),
    "test": ("test",),
    "validation": ("val", "valid", "validation"),
}


def has_word(path: Path, kind: str) -> bool:
    words = "|".join(WORDS[kind])
    return re.search(rf"(?<![a-z])({words})(?![a-z])", path.name.lower()) is not None


def named_splits(files: Sequence[Path]) -> dict[str, list[Path]] | None:
    """{'train': files, 'test': files}, or None where the names give no train and test part.

    Files named validation are the test part unless others are named test; a file whose name says
    nothing is for training.
    """
    test = [f for f in files if has_word(f, "test")]
    validation = [f for f in files if has_word(f, "validation") and f not in test]
    train = [f for f in files if f not in test and f not in validation]
    held = test or validation
    return {"train": train, "test": held} if train and held else None
