"""Shapes and inputs that tests and benchmarks run the op on."""

import torch
from torch import Tensor

SHAPES = {  # name: (B, T, D)
    "one": (1, 1, 8),
    "odd": (3, 5, 37),
    "prime": (2, 17, 131),
    "small": (4, 64, 192),
    "empty": (0, 4, 16),
}


def inputs(name: str, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """x (B, T, D), shift (B, D), scale (B, D); x is off centre, as residual streams are."""
    batch, tokens, width = SHAPES[name]
    g = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(batch, tokens, width, generator=g) + 0.5
    shift, scale = (torch.randn(batch, width, generator=g) for _ in range(2))
    return [t.to(dtype) for t in (x, shift, scale)]
