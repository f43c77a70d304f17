"""MixUp (Zhang et al., 2018) and CutMix (Yun et al., 2019): images and their targets, mixed.

One draw a batch, a function of (seed, step); each image is mixed with its mirror place's in the
batch, the first with the last.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import FinetuneConfig

SWITCH = 0.5  # share of the batches that CutMix takes where both are on


def smooth_targets(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """(B, classes) float32: 1 - smoothing on the label, and smoothing spread evenly over all."""
    return F.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes


def mix(
    images: Tensor, targets: Tensor, config: FinetuneConfig, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """images (B, C, H, W) float, targets (B, classes), each row a distribution, as is what returns.

    The share of the own image is drawn from Beta(a, a), a = config.mixup or config.cutmix; 0 turns
    one off.
    """
    dice = np.random.default_rng([seed, step])
    cut = config.cutmix > 0 and (config.mixup <= 0 or dice.random() < SWITCH)
    alpha = config.cutmix if cut else config.mixup
    if alpha <= 0:
        return images, targets
    share = dice.beta(alpha, alpha)
    other = images.flip(0)
    if cut:
        height, width = images.shape[2:]
        top, bottom, left, right = box(height, width, 1 - share, *dice.random(2))
        images = images.clone()
        images[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        images = torch.lerp(other, images, share)
    return images, torch.lerp(targets.flip(0), targets, share)


def box(height: int, width: int, area: float, u: float, v: float) -> tuple[int, int, int, int]:
    """top, bottom, left, right of a rectangle of about `area`, a share, and the image's shape.

    Its centre lies anywhere, at (u, v) in [0, 1); what sticks out of the image is cut off.
    """
    side = area**0.5
    edges = []
    for length, at in ((height, u), (width, v)):
        middle, reach = int(at * length), round(side * length)
        low = middle - reach // 2
        edges += [max(0, low), min(length, low + reach)]
    return tuple(edges)
