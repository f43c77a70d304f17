"""Noise schedules: how much signal and noise each level carries, and which level a sample gets.

z_t = gamma_t z_0 + sigma_t eps (arXiv 2401.14404, equation 1); t = 0 is clean.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .kernels.normal import philox

SCHEDULES = ("ddpm", "linear", "unscaled", "single")
LEVEL_WEIGHTS = ("one", "gamma_squared", "inverse_variance")


@dataclass(frozen=True)
class Schedule:
    """gamma, sigma: (levels + 1,) float64, indexed by t = 0 (clean) .. levels (most noise)."""

    gamma: Tensor
    sigma: Tensor

    @property
    def levels(self) -> int:
        return len(self.gamma) - 1

    def to(self, device) -> "Schedule":
        return Schedule(self.gamma.to(device), self.sigma.to(device))

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """gamma_t and sigma_t as float32 for t (B,) int64, on the schedule's device."""
        return self.gamma[t].float(), self.sigma[t].float()

    def level_weight(self, kind: str, t: Tensor) -> Tensor:
        """lambda_t (B,) float32: 1, gamma_t^2 (row 8) or 1 / (1 + sigma_t^2) (rows 9 to 13)."""
        gamma, sigma = self.at(t)
        if kind == "gamma_squared":
            return gamma**2
        return 1 / (1 + sigma**2) if kind == "inverse_variance" else torch.ones_like(gamma)


def make_schedule(
    name: str, levels: int = 1000, single_sigma: float = math.sqrt(1 / 3)
) -> Schedule:
    """One of SCHEDULES.

    ddpm: gamma_t^2 = prod_{s<=t} (1 - beta_s), beta linear from 1e-4 to 0.02.
    linear: gamma_t^2 falls linearly from 1 to 0; both have sigma_t^2 = 1 - gamma_t^2.
    unscaled: gamma_t = 1, sigma_t linear from 0 to sqrt(2).
    single: one level with gamma = 1 and sigma = single_sigma.
    """
    fraction = torch.linspace(0, 1, levels + 1, dtype=torch.float64)
    one = torch.ones_like(fraction)
    if name == "single":
        return Schedule(one[:2], torch.tensor([0.0, single_sigma], dtype=torch.float64))
    if name == "unscaled":
        return Schedule(one, fraction * math.sqrt(2))
    if name == "linear":
        squared = 1 - fraction
    elif name == "ddpm":
        beta = torch.linspace(1e-4, 0.02, levels, dtype=torch.float64)
        squared = torch.cat([one[:1], torch.cumprod(1 - beta, 0)])
    else:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}; got {name!r}")
    return Schedule(squared.sqrt(), (1 - squared).sqrt())


def stream(seed: int, purpose: str) -> int:
    """A 64-bit seed for one purpose, so that no two kinds of draw share random numbers."""
    return int.from_bytes(
        hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest(), "little"
    )


def drop_labels(seed: int, step: int, sample_ids: Tensor, labels: Tensor, share: float) -> Tensor:
    """labels (B,) int64 with -1 in place of a share, drawn from (seed, step, sample id) alone."""
    bits = philox(stream(seed, "labels"), step, sample_ids, 1)[:, 0, 0]  # (B,) in [0, 2^32)
    return torch.where(bits < share * 2**32, -1, labels)


def draw_levels(seed: int, step: int, sample_ids: Tensor, levels: int) -> Tensor:
    """t (B,) int64, uniform in 1..levels, a function of (seed, step, sample id) alone."""
    bits = philox(stream(seed, "levels"), step, sample_ids, 1)[:, 0, 0]  # (B,) in [0, 2^32)
    return 1 + bits * levels // 2**32
