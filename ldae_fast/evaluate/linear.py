"""The linear probe on cached features: many learning rates in one pass, chosen without the test.

BatchNorm without affine, then a linear classifier (section 3). Features are cached, so the
normalisation uses the whole training set's mean and variance.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import EvaluateConfig
from .features import FeatureSet

MULTIPLES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # of base_lr


@dataclass(frozen=True)
class LinearResult:
    """top1 on the test set as a fraction; lr and held_out: the choice and what it was made on."""

    top1: float
    lr: float
    held_out: dict[float, float]


def accuracy(heads: Tensor, features: FeatureSet, rows: Tensor) -> Tensor:
    """heads: (L, classes, D + 1). Returns (L,) fractions over those rows."""
    hits = torch.zeros(len(heads), device=heads.device)
    for some in rows.split(8192):
        hits += (logits(heads, features.values[some]).argmax(1) == features.labels[some]).sum(1)
    return hits / len(rows)


def logits(heads: Tensor, values: Tensor) -> Tensor:
    """(L, classes, D + 1) and (n, D) -> (L, classes, n): samples last, where a softmax is fast."""
    bias, weight = heads[..., -1].flatten(), heads[..., :-1].flatten(0, 1)
    return torch.addmm(bias[:, None], weight, values.T).view(*heads.shape[:2], -1)


def fit_heads(
    train: FeatureSet,
    rows: Tensor,
    classes: int,
    lrs: Tensor,
    config: EvaluateConfig,
    seed: int,
    tick: Callable[[float], None],
) -> Tensor:
    """One softmax head a learning rate, by Adam with cosine decay: (L, classes, D + 1).

    rows: (n,) int64, those of the training set that are looked at.
    """
    count, width, device = len(rows), train.values.shape[1], train.values.device
    heads = torch.zeros(len(lrs), classes, width + 1, device=device)
    first, second = torch.zeros_like(heads), torch.zeros_like(heads)
    batch = max(1, min(config.batch, count // 16))
    total = config.epochs * (count // batch)
    order = torch.Generator().manual_seed(seed)
    step = 0
    for _ in range(config.epochs):
        shuffled = torch.randperm(count, generator=order)[: count // batch * batch].to(device)
        for some in rows[shuffled].split(batch):
            grad = gradient(heads, train.values.index_select(0, some), train.labels[some])
            first.lerp_(grad, 0.1)
            second.lerp_(grad.square_(), 0.001)
            decay = 0.5 * (1 + math.cos(math.pi * step / total))
            step += 1
            rate = lrs.to(device) * decay * (1 - 0.999**step) ** 0.5 / (1 - 0.9**step)
            heads -= rate[:, None, None] * first / (second.sqrt() + 1e-8)
            tick(step / total)
    return heads


def gradient(heads: Tensor, values: Tensor, labels: Tensor) -> Tensor:
    """Gradient of the mean cross entropy of each head: softmax minus one-hot, times features."""
    error = logits(heads, values).softmax(1)
    error[:, labels, torch.arange(len(labels), device=labels.device)] -= 1
    error /= len(labels)
    weight = (error.flatten(0, 1) @ values).view(*heads.shape[:2], -1)
    return torch.cat([weight, error.sum(2, keepdim=True)], dim=2)


def standardised(train: FeatureSet, test: FeatureSet, device) -> tuple[FeatureSet, FeatureSet]:
    """On the device: zero mean and unit variance a feature, by the training set's statistics."""
    own, others = (f.values.to(device, copy=True) for f in (train, test))
    mean, std = own.mean(0), own.std(0).clamp_min(1e-6)
    for values in (own, others):  # in place: features of ImageNet should be there once
        values.sub_(mean).div_(std)
    return (
        FeatureSet(own, train.labels.to(device), train.images.to(device)),
        FeatureSet(others, test.labels.to(device), test.images.to(device)),
    )


def linear_probe(
    train: FeatureSet,
    test: FeatureSet,
    classes: int,
    config: EvaluateConfig,
    seed: int = 0,
    tick: Callable[[float], None] = lambda share: None,
    device: torch.device | str = "cpu",
) -> LinearResult:
    """Sweeps learning rates on nine tenths of the training images, chooses on the last tenth, fits
    again on all with the chosen rate, and only then looks at the test set.
    """
    train, test = standardised(train, test, device)
    held = train.images % 10 == 9  # every view of an image falls on the same side
    every = torch.arange(len(held), device=device)
    lrs = torch.tensor([config.base_lr * m for m in MULTIPLES])
    if held.any() and not held.all():
        heads = fit_heads(train, every[~held], classes, lrs, config, seed, lambda s: tick(0.6 * s))
        scores = accuracy(heads, train, every[held])
    else:
        scores = torch.zeros(len(lrs))
    best = int(scores.argmax())
    head = fit_heads(
        train, every, classes, lrs[best : best + 1], config, seed, lambda s: tick(0.6 + 0.4 * s)
    )
    held_out = {round(float(lr), 6): float(s) for lr, s in zip(lrs, scores)}
    top1 = accuracy(head, test, torch.arange(len(test.labels), device=device))
    return LinearResult(float(top1[0]), float(lrs[best]), held_out)
