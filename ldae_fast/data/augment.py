"""Crops of an image to the side that the model sees: pure functions of the numbers handed in."""

import math

import numpy as np
import torch

from ldae_fast.kernels.normal.reference import philox

Box = tuple[float, float, float, float]  # left, top, right, bottom

# What F.interpolate calls, which lays its result out in planes and cannot write into a batch.
BICUBIC = torch.ops.aten._upsample_bicubic2d_aa.out


def uniforms(seed: int, epoch: int, indices: np.ndarray, n: int) -> np.ndarray:
    """(len(indices), n) float64 in [0, 1), each a function of (seed, epoch, index) alone."""
    ids = torch.from_numpy(np.ascontiguousarray(indices, dtype=np.int64))
    words = philox(seed, epoch, ids, -(-n // 4)).numpy()  # (len, blocks, 4)
    return words.reshape(len(ids), -1)[:, :n] * 2.0**-32


def cut(image: np.ndarray, box: Box, out: np.ndarray) -> None:
    """Fills out (S, S, 3) with the part `box` of (H, W, 3) uint8: bicubic, antialiased.

    The box is rounded to whole pixels. The interpreter's lock is free meanwhile.
    """
    (left, right), (top, bottom) = (
        span(first, last, side) for first, last, side in zip(box[:2], box[2:], image.shape[1::-1])
    )
    part = image[top:bottom, left:right]
    if part.shape == out.shape:
        out[:] = part
        return
    # Copied by numpy: torch would copy with all the threads that the training step needs.
    planes, target = (
        torch.from_numpy(array).permute(2, 0, 1)[None] for array in (part.copy(), out)
    )
    BICUBIC(planes, out.shape[:2], False, None, None, out=target)


def span(first: float, last: float, side: int) -> tuple[int, int]:
    """An interval inside 0..side, rounded to whole pixels, of which it keeps at least one."""
    start = min(round(first), side - 1)
    return start, max(start + 1, round(last))


def center_box(height: int, width: int) -> Box:
    """The largest central square."""
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def crop_box(
    height: int,
    width: int,
    u: np.ndarray,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """A random part of the image: its area from u[0], shape from u[1], place from u[2] and u[3].

    u is four numbers in [0, 1), `scale` the range of the area's share, `ratio` that of the shape.
    The shape is drawn, in log, from those in `ratio` (width / height) that fit into the image at
    this area: one draw where the usual recipe tries ten times.
    """
    area = height * width * (scale[0] + (scale[1] - scale[0]) * u[0])
    low, high = (min(max(r, ratio[0]), ratio[1]) for r in (area / height**2, width**2 / area))
    shape = math.exp(math.log(low) + (math.log(high) - math.log(low)) * u[1])
    w, h = math.sqrt(area * shape), math.sqrt(area / shape)
    fit = min(1.0, width / w, height / h)
    w, h = min(w * fit, width), min(h * fit, height)
    left, top = (width - w) * u[2], (height - h) * u[3]
    return left, top, min(left + w, width), min(top + h, height)
