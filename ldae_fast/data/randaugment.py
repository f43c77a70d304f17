"""RandAugment (Cubuk et al., 2020): two random operations on an image, of one strength.

The usual set of fifteen, each stronger with the magnitude, 0 to 10. At 0 those that have a
strength leave the image as it is; AutoContrast, Equalize and Invert have none.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

LAYERS = 2
APPLIED = 0.5  # probability of each layer's operation
TOP = 10  # the largest magnitude
SPREAD = 0.5  # standard deviation of a layer's magnitude
DRAWS = 5 * LAYERS  # of an image
FILL = (128, 128, 128)  # where a moved image leaves nothing

Operation = Callable[[Image.Image, float], Image.Image]  # strength -1 .. 1


def affine(image: Image.Image, a: float, b: float, c: float, d: float, e: float, f: float):
    """Pixel (x, y) of the result is (a x + b y + c, d x + e y + f) of the image, interpolated."""
    matrix = (a, b, c, d, e, f)
    return image.transform(image.size, Image.Transform.AFFINE, matrix,
                           Image.Resampling.BILINEAR, fillcolor=FILL)  # fmt: skip


def rotate(image: Image.Image, s: float) -> Image.Image:
    return image.rotate(30 * s, Image.Resampling.BILINEAR, fillcolor=FILL)


def posterize(image: Image.Image, s: float) -> Image.Image:
    return ImageOps.posterize(image, 8 - round(4 * abs(s)))


def solarize(image: Image.Image, s: float) -> Image.Image:
    return ImageOps.solarize(image, 256 - round(256 * abs(s)))


def solarize_add(image: Image.Image, s: float) -> Image.Image:
    """Makes values below 128 brighter by up to 110."""
    table = [min(255, v + round(110 * abs(s))) if v < 128 else v for v in range(256)]
    return image.point(table * len(image.getbands()))


def enhance(kind: type) -> Operation:
    """Colour, contrast, brightness or sharpness times 0.1 to 1.9."""
    return lambda image, s: kind(image).enhance(1 + 0.9 * s)


OPERATIONS: dict[str, Operation] = {
    "auto-contrast": lambda image, s: ImageOps.autocontrast(image),
    "equalize": lambda image, s: ImageOps.equalize(image),
    "invert": lambda image, s: ImageOps.invert(image),
    "rotate": rotate,
    "posterize": posterize,
    "solarize": solarize,
    "solarize-add": solarize_add,
    "colour": enhance(ImageEnhance.Color),
    "contrast": enhance(ImageEnhance.Contrast),
    "brightness": enhance(ImageEnhance.Brightness),
    "sharpness": enhance(ImageEnhance.Sharpness),
    "shear-x": lambda image, s: affine(image, 1, 0.3 * s, 0, 0, 1, 0),
    "shear-y": lambda image, s: affine(image, 1, 0, 0, 0.3 * s, 1, 0),
    "translate-x": lambda image, s: affine(image, 1, 0, 0.45 * s * image.width, 0, 1, 0),
    "translate-y": lambda image, s: affine(image, 1, 0, 0, 0, 1, 0.45 * s * image.height),
}


def randaugment(image: np.ndarray, u: np.ndarray, magnitude: float) -> np.ndarray:
    """(H, W, 3) uint8 -> the same shape and type; u: DRAWS numbers in [0, 1), which decide all."""
    picture, operations = Image.fromarray(image), list(OPERATIONS.values())
    for which, applied, sign, first, second in np.reshape(u, (LAYERS, -1)):
        normal = math.sqrt(-2 * math.log(1 - first)) * math.cos(2 * math.pi * second)
        strength = min(max(magnitude + SPREAD * normal, 0), TOP) / TOP
        if applied < APPLIED:
            operate = operations[int(which * len(operations))]
            picture = operate(picture, strength if sign < 0.5 else -strength)
    return np.asarray(picture)
