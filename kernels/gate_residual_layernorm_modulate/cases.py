"""Shapes and inputs that tests and benchmarks run the op on."""

import torch
from torch import Tensor

from ..layernorm_modulate import cases

SHAPES = cases.SHAPES


def inputs(name: str, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """x, y (B, T, D); gate, shift, scale (B, D)."""
    x, shift, scale = cases.inputs(name, dtype, seed)
    y, gate, _ = cases.inputs(name, dtype, seed + 1)
    return [x, y, gate, shift, scale]
