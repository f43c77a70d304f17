"""The paper's rows and the sizes, each as one aligned table; nothing else knows them."""

import difflib
from dataclasses import replace

from .config import MOST_SIDE, Config, SettingError, check, from_dict, parse, set_values

# The trajectory (arXiv 2401.14404, section 4), each row on top of the one above.
# fmt: off
COLUMNS = ("noise.schedule", "objective.predict", "objective.input", "objective.target", "objective.level_weight", "data.augment")  # noqa: E501
ROWS = {
    #             schedule    predict   input     target            level weight        augment
    "row0":     ("ddpm",     "noise",  "latent", "latent",         "one",              "center"),
    "row1":     ("ddpm",     "noise",  "latent", "latent",         "one",              "center"),
    "row2":     ("ddpm",     "noise",  "latent", "latent",         "one",              "center"),
    "row3":     ("ddpm",     "noise",  "latent", "latent",         "one",              "center"),
    "row4":     ("linear",   "noise",  "latent", "latent",         "one",              "center"),
    "row5":     ("linear",   "noise",  "latent", "latent",         "one",              "center"),
    "row6":     ("linear",   "noise",  "latent", "latent",         "one",              "center"),
    "row7":     ("linear",   "noise",  "latent", "latent",         "one",              "center"),
    "row8":     ("linear",   "clean",  "latent", "latent",         "gamma_squared",    "center"),
    "row9":     ("unscaled", "clean",  "latent", "latent",         "inverse_variance", "center"),
    "row10":    ("unscaled", "clean",  "image",  "latent",         "inverse_variance", "center"),
    "row11":    ("unscaled", "clean",  "image",  "reconstruction", "inverse_variance", "center"),
    "row12":    ("unscaled", "clean",  "image",  "image",          "inverse_variance", "center"),
    "row13":    ("single",   "clean",  "image",  "image",          "inverse_variance", "center"),
    "ldae-aug": ("unscaled", "clean",  "image",  "image",          "inverse_variance", "random-resized-crop"),  # noqa: E501
    "mae":      ("unscaled", "masked", "image",  "image",          "one",              "center"),
}
ROWS["ldae"] = ROWS["row12"]
ROWS["demo"] = ROWS["row12"]

# What the rows before patch-wise PCA have beside: class labels and other tokenizers. Their d is 16
# at any size [I: the paper's accuracies match its Table 2 only so].
EARLY_COLUMNS = ("model.conditional", "tokenizer.kind", "tokenizer.perceptual", "tokenizer.adversarial", "tokenizer.d")  # noqa: E501
EARLY_ROWS = {
    #        conditional  tokenizer    perceptual  adversarial   d
    "row0": (True,       "conv-vae",          1.0,         0.5,  16),
    "row1": (False,      "conv-vae",          1.0,         0.5,  16),
    "row2": (False,      "conv-vae",          0.0,         0.5,  16),
    "row3": (False,      "conv-vae",          0.0,         0.0,  16),
    "row4": (False,      "conv-vae",          0.0,         0.0,  16),
    "row5": (False,      "patch-vae",         0.0,         0.0,  16),
    "row6": (False,      "patch-ae",          0.0,         0.0,  16),
}
# The row whose tokenizer `ldae tokenizer KIND` makes.
KIND_ROWS = {"conv-vae": "row3", "patch-vae": "row5", "patch-ae": "row6", "pca": "row7", "pixel": "row7"}  # noqa: E501

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
    # side        size       patch   d  batch  base lr  warm-up
    64:        ("tiny",   (     4,  16,   128,    3e-3,    0.08)),
    128:       ("S",      (     8,  32,   512,    2e-4,    0.10)),
    MOST_SIDE: ("half-L", (    16,  32,  2048,    1e-4,    0.25)),
}

# What the convolutional tokenizer takes from the image's side: Latent Diffusion's at 256 pixels.
CONV_COLUMNS = ("tokenizer.channels", "tokenizer.steps", "tokenizer.batch", "tokenizer.lr", "tokenizer.classifier_steps")  # noqa: E501
CONV_SCALES = {
    # side      channels    steps  batch       lr  classifier steps
    64:        (      16,     500,    64,    1e-3,    500),
    128:       (      64,  20_000,    64,    3e-4,  10_000),
    MOST_SIDE: (     128, 200_000,    32, 1.44e-4,  50_000),  # 4.5e-6 an image of the batch
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
    if not 1 <= image_size <= MOST_SIDE:
        raise SettingError(f"--image-size must be from 1 to {MOST_SIDE:,}; got {image_size:,}")
    usual, scale = next(row for side, row in SCALES.items() if image_size <= side)
    values = {"data.image_size": image_size}
    values |= dict(zip(SCALE_COLUMNS, scale))
    values |= dict(zip(SIZE_COLUMNS, SIZES[size or usual]))
    values |= dict(zip(COLUMNS, ROWS[name]))
    conv = next(row for side, row in CONV_SCALES.items() if image_size <= side)
    values |= dict(zip(CONV_COLUMNS, conv))
    values |= dict(zip(EARLY_COLUMNS, EARLY_ROWS.get(name, ())))
    if values["objective.predict"] == "masked":  # a light decoder: 8 blocks for ViT-L, as in MAE
        values["model.decoder_depth"] = max(1, values["model.depth"] // 3)
    return set_values(replace(Config(), recipe=name), values)


def build_config(
    name: str, image_size: int, size: str = "", overrides: dict | None = None
) -> Config:
    """A checked config: the recipe at that image size, then the overrides by dotted name."""
    return check(set_values(recipe_config(name, image_size, size), overrides or {}))


def saved_config(settings: dict) -> Config:
    """A checked config from a saved one; what that lacks is its recipe's."""
    data = settings.get("data")
    side = data.get("image_size", 32) if isinstance(data, dict) else 32
    base = recipe_config(str(settings.get("recipe", "ldae")), parse("data.image_size", int, side))
    return from_dict(settings, base)
