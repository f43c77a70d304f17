"""Samples of latents from any denoiser, by DDPM or DDIM steps from the noisiest level down.

The forward process is z_t = gamma_t z_0 + sigma_t eps (section 3) with sigma_t / gamma_t rising, so
that for s < t it is a chain, z_t = a z_s + sqrt(sigma_t^2 - a^2 sigma_s^2) eps with
a = gamma_t / gamma_s. Whatever c from 0 to sigma_s,

    z_s = gamma_s z_0 + sqrt(sigma_s^2 - c^2) (z_t - gamma_t z_0) / sigma_t + c eps'

has the right distribution N(gamma_s z_0, sigma_s^2 I) given z_0, and a step puts the denoiser's z_0
there. Bayes' rule on the chain gives

    c^2 = (sigma_s^2 / sigma_t^2) (sigma_t^2 - a^2 sigma_s^2),

the ancestral step of DDPM (Ho et al., 2020); c = 0 is DDIM (Song et al., 2021), eta c lies between.
Nothing asks for gamma_t^2 + sigma_t^2 = 1. On the unscaled schedule a = 1, and the DDPM step reads

    z_s = z_0 + (sigma_s^2 / sigma_t^2) (z_t - z_0) + sigma_s sqrt(1 - sigma_s^2 / sigma_t^2) eps'.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..config import SettingError
from ..noise import Schedule, stream
from ..ops import normal

# z_t (B, T, d), t (B,) int64, labels (B,) int64 or None -> the noise or z_0, (B, T, d)
Predict = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn. eta: 1 is DDPM, 0 is DDIM. guidance: w of `guided`."""

    steps: int = 100
    eta: float = 1.0
    guidance: float = 0.0
    seed: int = 0


def levels_down(schedule: Schedule, steps: int) -> list[int]:
    """steps + 1 evenly spaced levels, from the noisiest that holds any signal to 0.

    Where gamma_T = 0 that is T - 1: what predicts the noise says nothing about z_0 at T.
    """
    if schedule.levels < 2:
        raise SettingError(
            "a run with one noise level cannot be sampled from, since samples come down many; "
            "name a run of another --noise.schedule, such as row12's"
        )
    top = int(schedule.gamma.gt(0).nonzero().max())
    if not 1 <= steps <= top:
        raise SettingError(f"--steps must be 1 to {top}, the run's noise levels; got {steps}")
    return [round(top * k / steps) for k in range(steps, -1, -1)]


def guided(predict: Predict, weight: float) -> Predict:
    """Classifier-free guidance (Ho and Salimans, 2022): (1 + w) conditional - w unconditional."""
    if weight == 0:
        return predict

    def both(z_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        return (1 + weight) * predict(z_t, t, labels) - weight * predict(z_t, t, None)

    return both


def step_weights(schedule: Schedule, t: int, s: int, eta: float) -> tuple[float, float, float]:
    """What z_0, z_t and fresh noise are multiplied by to make z_s; see the file's head."""
    gamma_t, sigma_t = float(schedule.gamma[t]), float(schedule.sigma[t])
    gamma_s, sigma_s = float(schedule.gamma[s]), float(schedule.sigma[s])
    chain = sigma_t**2 - (gamma_t / gamma_s * sigma_s) ** 2
    c = eta * sigma_s / sigma_t * math.sqrt(chain)
    kept = math.sqrt(sigma_s**2 - c**2) / sigma_t
    return gamma_s - kept * gamma_t, kept, c


def descend(
    predict: Predict,
    predicts: str,
    schedule: Schedule,
    z: Tensor,
    levels: list[int],
    eta: float,
    noise: Callable[[int], Tensor],
    labels: Tensor | None = None,
    tick: Callable[[float], None] = lambda share: None,
) -> Tensor:
    """z_0 from z (B, T, d) at levels[0], down to levels[-1] = 0.

    predicts: 'noise' or 'clean', what `predict` gives. noise: level -> standard normals like z.
    """
    for done, (t, s) in enumerate(pairwise(levels)):
        tick(done / (len(levels) - 1))
        z_0 = predict(z, torch.full((len(z),), t, device=z.device), labels)
        if predicts == "noise":
            z_0 = (z - float(schedule.sigma[t]) * z_0) / float(schedule.gamma[t])
        of_clean, of_noisy, of_noise = step_weights(schedule, t, s, eta)
        z = of_clean * z_0 + of_noisy * z
        if of_noise:
            z = z + of_noise * noise(s)
    return z


@torch.no_grad()
def sample(
    predict: Predict,
    predicts: str,
    schedule: Schedule,
    variance: Tensor,
    ids: Tensor,
    tokens: int,
    how: Sampling,
    labels: Tensor | None = None,
    tick: Callable[[float], None] = lambda share: None,
) -> Tensor:
    """Latents (B, tokens, d) in variance's dtype, one a sample id, on the device of ids (B,).

    variance: (d,) of the data's latents. The start is N(0, (gamma_T^2 variance + sigma_T^2) I), the
    data's own spread a component. On ddpm and linear nearly all of it is noise. On the unscaled
    schedule it is not: z_T = z_0 + sqrt(2) eps still holds the picture's large forms, which a
    start of independent tokens lacks, so samples lack them too.

    Noise is a function of (seed, level, sample id): a sample does not depend on its batch.
    """
    levels = levels_down(schedule, how.steps)
    key = stream(how.seed, "sample")

    def noise(level: int) -> Tensor:
        drawn = normal(key, level, ids, tokens * len(variance), dtype=variance.dtype)
        return drawn.view(len(ids), tokens, -1)

    gamma, sigma = float(schedule.gamma[levels[0]]), float(schedule.sigma[levels[0]])
    start = (gamma**2 * variance + sigma**2).sqrt() * noise(levels[0])
    predict = guided(predict, how.guidance)
    return descend(predict, predicts, schedule, start, levels, how.eta, noise, labels, tick)
