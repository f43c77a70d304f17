"""The learning rate over a run."""

import math

from ..config import FinetuneConfig, OptimizerConfig


def learning_rate(config: OptimizerConfig | FinetuneConfig, progress: float) -> float:
    """Linear warm-up, then half a cosine to zero; progress is the share of the run that is done.

    The peak is base_lr * batch / 256 (linear scaling rule).
    """
    peak = config.base_lr * config.batch / 256
    if progress < config.warmup:
        return peak * progress / config.warmup
    return (
        peak
        * 0.5
        * (
            1
            + math.cos(math.pi * min(1.0, (progress - config.warmup) / (1 - config.warmup + 1e-12)))
        )
    )
