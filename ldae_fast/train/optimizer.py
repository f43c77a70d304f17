"""AdamW with the weights' moving average, and the learning rate over a run."""

import math

import torch
from torch import Tensor

from ..config import OptimizerConfig
from ..ops import adamw_ema


class AdamWEMA(torch.optim.Optimizer):
    """torch.optim.AdamW plus `state[p]["ema"]`, the moving average of each parameter.

    The average warms up: its decay is min(ema, (1 + step) / (10 + step)), so that a short run does
    not average over its own initial weights.
    """

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, ema=0.9999):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "ema": ema}
        super().__init__(params, defaults)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = {
                    "step": torch.zeros(()),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                    "ema": p.detach().clone(),
                }

    @torch.no_grad()
    def step(self, closure=None, *, grad_scale: Tensor | None = None):
        """One update of every parameter that has a gradient, each multiplied by `grad_scale`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self.update(group, params, grad_scale)
        return loss

    def update(self, group: dict, params: list[Tensor], grad_scale: Tensor | None) -> None:
        states = [self.state[p] for p in params]
        torch._foreach_add_([s["step"] for s in states], 1)
        step = int(states[0]["step"])
        adamw_ema(
            params,
            [p.grad for p in params],
            *([s[name] for s in states] for name in ("exp_avg", "exp_avg_sq", "ema")),
            step=step,
            lr=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            ema_decay=min(group["ema"], (1 + step) / (10 + step)),
            grad_scale=torch.ones((), device=params[0].device)
            if grad_scale is None
            else grad_scale,
        )


def learning_rate(config: OptimizerConfig, progress: float) -> float:
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
