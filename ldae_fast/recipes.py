"""The paper's rows and the sizes, each as one aligned table; nothing else knows them."""

import difflib
from dataclasses import replace

from .config import Config, SettingError, check, set_values

# Rows 7 to 13 of the trajectory (arXiv 2401.14404, section 4), each on top of the one above.
# fmt: off
COLUMNS = ("noise.schedule", "objective.predict", "objective.input", "objective.target", "objective.level_weight", "data.augment")  # noqa: E501
ROWS = {
    #             schedule    predict   input     target            level weight        augment
    "row7":     ("linear",   "noise",  "latent", "latent",         "one",              "center"),
    "row8":     ("linear",   "clean",  "latent", "latent",         "gamma_squared",    "center"),
    "row9":     ("unscaled", "clean",  "latent", "latent",         "inverse_variance", "center"),
    "row10":    ("unscaled", "clean",  "image",  "latent",         "inverse_variance", "center"),
    "row11":    ("unscaled", "clean",  "image",  "reconstruction", "inverse_variance", "center"),
    "row12":    ("unscaled", "clean",  "image",  "image",          "inverse_variance", "center"),
    "row13":    ("single",   "clean",  "image",  "image",          "inverse_variance", "center"),
    "ldae-aug": ("unscaled", "clean",  "image",  "image",          "inverse_variance", "random-resized-crop"),  # noqa: E501
}
ROWS["ldae"] = ROWS["row12"]
ROWS["demo"] = ROWS["row12"]

SIZE_COLUMNS = ("model.width", "model.depth", "model.decoder_depth", "model.heads")
SIZES = {
    #          width  encoder  decoder  heads
    "tiny":   (  192,       3,       3,     3),
    "small":  (  384,       3,       3,     6),
    "S":      (  384,      12,      12,     6),
    "B":      (  768,      12,      12,    12),
    "half-L": ( 1024,      12,      12,    16),  # the paper's DiT-L, cut in the middle
    "L":      ( 1024,      24,      24,    16),
}

# What follows from the image's side: the first row whose side is at least that large.
SCALE_COLUMNS = ("model.patch", "tokenizer.d", "optimizer.batch", "optimizer.base_lr", "optimizer.warmup")  # noqa: E501
SCALES = {
    # side    size       patch   d  batch  base lr  warm-up
    64:    ("tiny",   (     4,  16,   128,    3e-3,    0.08)),
    128:   ("S",      (     8,  32,   512,    2e-4,    0.10)),
    10**9: ("half-L", (    16,  32,  2048,    1e-4,    0.25)),
}
# fmt: on


def recipe_config(name: str, image_size: int, size: str = "") -> Config:
    """The settings of a recipe at an image side in pixels; `size` overrides the network's."""
    if name not in ROWS:
        near = difflib.get_close_matches(name, ROWS, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise SettingError(f"unknown recipe {name!r}: it must be one of {', '.join(ROWS)}{hint}")
    if size and size not in SIZES:
        raise SettingError(f"unknown --size {size!r}: it must be one of {', '.join(SIZES)}")
    if image_size < 1:
        raise SettingError(f"--image-size must be 1 or more; got {image_size}")
    usual, scale = next(row for side, row in SCALES.items() if image_size <= side)
    values = {"data.image_size": image_size}
    values |= dict(zip(SCALE_COLUMNS, scale))
    values |= dict(zip(SIZE_COLUMNS, SIZES[size or usual]))
    values |= dict(zip(COLUMNS, ROWS[name]))
    return set_values(replace(Config(), recipe=name), values)


def build_config(
    name: str, image_size: int, size: str = "", overrides: dict | None = None
) -> Config:
    """A checked config: the recipe at that image size, then the overrides by dotted name."""
    return check(set_values(recipe_config(name, image_size, size), overrides or {}))
