"""Crops of an image to the side that the model sees: pure functions of the numbers handed in."""

import math

import numpy as np
import torch
from PIL import Image

from ldae_fast.kernels.normal.reference import philox

# Shrinking by whole factors first is several times faster; at 3 the result hardly differs.
REDUCING_GAP = 3.0


def uniforms(seed: int, epoch: int, indices: np.ndarray, n: int) -> np.ndarray:
    """(len(indices), n) float64 in [0, 1), each a function of (seed, epoch, index) alone."""
    ids = torch.from_numpy(np.ascontiguousarray(indices, dtype=np.int64))
    words = philox(seed, epoch, ids, -(-n // 4)).numpy()  # (len, blocks, 4)
    return words.reshape(len(ids), -1)[:, :n] * 2.0**-32


def resize(image: np.ndarray, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    """The part `box` = (left, top, right, bottom) of (H, W, 3) uint8, as (size, size, 3) uint8."""
    scaled = Image.fromarray(image).resize(
        (size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=REDUCING_GAP
    )
    return np.asarray(scaled)


def center(image: np.ndarray, size: int) -> np.ndarray:
    """The largest central square, scaled to (size, size, 3); the very image if it has that size."""
    height, width = image.shape[:2]
    if height == width == size:
        return image
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    return resize(image, (left, top, left + side, top + side), size)


def crop_box(
    height: int, width: int, u: np.ndarray, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[float, float, float, float]:
    """A random part of the image: its area from u[0], shape from u[1], place from u[2] and u[3].

    The shape is drawn, in log, from those in `ratio` (width / height) that fit into the image at
    this area: one draw where the usual recipe tries ten times.
    """
    area = height * width * (scale[0] + (scale[1] - scale[0]) * u[0])
    low, high = np.clip((area / height**2, width**2 / area), *ratio)
    shape = math.exp(math.log(low) + (math.log(high) - math.log(low)) * u[1])
    w, h = math.sqrt(area * shape), math.sqrt(area / shape)
    fit = min(1.0, width / w, height / h)
    w, h = min(w * fit, width), min(h * fit, height)
    left, top = (width - w) * u[2], (height - h) * u[3]
    return left, top, min(left + w, width), min(top + h, height)


def random_resized_crop(
    image: np.ndarray,
    size: int,
    u: np.ndarray,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """A random part of (H, W, 3) uint8, scaled to (size, size, 3); u is four numbers in [0, 1)."""
    height, width = image.shape[:2]
    return resize(image, crop_box(height, width, u, scale, ratio), size)
