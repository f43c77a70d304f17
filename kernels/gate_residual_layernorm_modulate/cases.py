"""Shapes and inputs that tests and benchmarks run the op on."""

from math import prod

import torch
from torch import Tensor

from ..layernorm_modulate import cases

SHAPES = cases.SHAPES
BENCH = cases.BENCH
DIFFERENTIABLE = (0, 1, 2, 3, 4)
# (B, T, D): x, y, h, out; then dh, dout, h, y, dx, dy. (B, D): the vectors; then gate, scale and
# the three gradients.
TENSORS = {"fwd": 4, "bwd": 6, "fwdbwd": 10}
VECTORS = {"fwd": 3, "bwd": 5, "fwdbwd": 8}
FLOPS = {"fwd": 10, "bwd": 18, "fwdbwd": 28}  # a value of x


def inputs(name: str, dtype: torch.dtype, seed: int = 0) -> tuple[list[Tensor], dict]:
    """x, y (B, T, D); gate, shift, scale (B, D)."""
    (x, shift, scale), _ = cases.inputs(name, dtype, seed)
    (y, gate, _), _ = cases.inputs(name, dtype, seed + 1)
    return [x, y, gate, shift, scale], {}


def least(shape: tuple, dtype: torch.dtype, mode: str) -> tuple[int, int]:
    """(bytes, FLOPs) that "fwd", "bwd" or "fwdbwd" needs at least; shape: (B, T, D)."""
    traffic = cases.moved(shape, dtype, TENSORS[mode], VECTORS[mode])
    return traffic, FLOPS[mode] * prod(shape)


def work(name: str, dtype: torch.dtype, mode: str) -> tuple[int, int]:
    """`least` of a named case."""
    return least((SHAPES | BENCH)[name], dtype, mode)
