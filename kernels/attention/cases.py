"""Shapes and inputs that tests and benchmarks run the op on."""

import torch
from torch import Tensor

SHAPES = {  # name: (B, T, heads, head_dim)
    "one": (1, 1, 1, 8),
    "odd": (3, 5, 2, 12),
    "prime": (2, 67, 3, 16),
    "small": (4, 64, 3, 64),
}


def inputs(name: str, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """q, k, v (B, T, heads, head_dim)."""
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPES[name], generator=g).to(dtype) for _ in range(3)]
