"""Shapes and inputs that tests and benchmarks run the op on."""

from math import prod

import torch
from torch import Tensor

SHAPES = {  # name: (B, T, D)
    "one": (1, 1, 8),
    "odd": (3, 5, 37),
    "prime": (2, 17, 131),
    "small": (4, 64, 192),
    "empty": (0, 4, 16),
    "none": (2, 0, 16),
}
BENCH = {
    "cpu-S": (32, 256, 384),
    "gpu-S": (256, 256, 384),
    "gpu-L": (128, 256, 1024),
}
DIFFERENTIABLE = (0, 1, 2)
TENSORS = {"fwd": 2, "bwd": 3, "fwdbwd": 5}  # (B, T, D): x, out; then x, dout, dx
VECTORS = {"fwd": 2, "bwd": 3, "fwdbwd": 5}  # (B, D): shift, scale; then scale, dshift, dscale
FLOPS = {"fwd": 8, "bwd": 14, "fwdbwd": 22}  # a value of x


def inputs(name: str, dtype: torch.dtype, seed: int = 0) -> tuple[list[Tensor], dict]:
    """x (B, T, D), shift (B, D), scale (B, D); x is off centre, as residual streams are."""
    batch, tokens, width = (SHAPES | BENCH)[name]
    g = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(batch, tokens, width, generator=g) + 0.5
    shift, scale = (torch.randn(batch, width, generator=g) for _ in range(2))
    return [t.to(dtype) for t in (x, shift, scale)], {}


def moved(shape: tuple, dtype: torch.dtype, tensors: int, vectors: int) -> int:
    """Bytes of so many (B, T, D) and (B, D) tensors, each read or written once."""
    batch, tokens, width = shape
    return dtype.itemsize * batch * width * (tensors * tokens + vectors)


def least(shape: tuple, dtype: torch.dtype, mode: str) -> tuple[int, int]:
    """(bytes, FLOPs) that "fwd", "bwd" or "fwdbwd" needs at least; shape: (B, T, D)."""
    traffic = moved(shape, dtype, TENSORS[mode], VECTORS[mode])
    return traffic, FLOPS[mode] * prod(shape)


def work(name: str, dtype: torch.dtype, mode: str) -> tuple[int, int]:
    """`least` of a named case."""
    return least((SHAPES | BENCH)[name], dtype, mode)
