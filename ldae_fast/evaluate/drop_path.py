"""Drop path (stochastic depth, Huang et al., 2016): residual branches left out at random."""

import torch
from torch import Tensor

from ..kernels.normal import philox


def drop_path(seed: int, step: int, ids: Tensor, depth: int, rate: float) -> Tensor:
    """(B, depth, 2) float32 factors of both branches of each block: 0, or 1 / (1 - p).

    p rises linearly from 0 in the first block to `rate` in the last, so a factor's expectation is
    1. A function of (seed, step, sample id) alone, for ids (B,) int64 that differ.
    """
    words = philox(seed, step, ids, -(-2 * depth // 4)).flatten(1)[:, : 2 * depth]
    uniform = words.view(len(ids), depth, 2).double() * 2.0**-32
    p = torch.linspace(0, rate, depth, dtype=torch.float64, device=ids.device)[:, None]
    return ((uniform >= p) / (1 - p)).float()
