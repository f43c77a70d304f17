"""How many classes a conditional network is told of: those of the data, each with an image."""

from dataclasses import replace

import numpy as np

from ..config import Config, SettingError
from ..data import DataError, Source


def with_classes(config: Config, source: Source) -> Config:
    """The config with the data's classes where model.conditional is set, else the config itself.

    Raises DataError where labels are missing or have gaps, SettingError where the config was made
    for another number of classes.
    """
    if not config.model.conditional:
        return config
    classes = len(source.classes)
    absent = np.setdiff1d(np.arange(classes), source.labels)
    if classes < 2 or len(absent):
        came = f"class {absent[0]} has no image" if len(absent) else f"there is {classes} class"
        raise DataError(
            f"{source.name}: model.conditional needs two or more classes and an image of each, but "
            f"{came}; mend the labels or set --model.conditional false"
        )
    if config.model.classes not in (0, classes):
        raise SettingError(
            f"model.classes is {config.model.classes}, but {source.name} has {classes} classes; "
            "leave it at 0 or use the data that it was made for"
        )
    return replace(config, model=replace(config.model, classes=classes))
