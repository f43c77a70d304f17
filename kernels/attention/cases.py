"""Shapes, inputs and work that tests and benchmarks run the op on."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SHAPES = {  # name: (B, T, heads, head_dim)
    "one": (1, 1, 1, 8),
    "odd": (3, 5, 2, 12),
    "prime": (2, 67, 3, 16),
    "small": (4, 64, 3, 64),
    "large": (2, 40, 2, 16),  # scores up to about 60
    "empty": (0, 5, 2, 8),
}
BENCH = {
    "cpu-s": (8, 256, 6, 64),
    "gpu-l": (128, 256, 16, 64),
    "gpu-b": (256, 256, 12, 64),
    "gpu-wide": (128, 256, 8, 128),
}
DIFFERENTIABLE = (0, 1, 2)


def inputs(name: str, dtype: torch.dtype, seed: int = 0) -> tuple[list[Tensor], dict]:
    """q, k, v (B, T, heads, head_dim); no options."""
    g = torch.Generator().manual_seed(seed)
    shape = (SHAPES | BENCH)[name]
    q, k, v = (torch.randn(shape, generator=g) for _ in range(3))
    return [x.to(dtype) for x in (16 * q if name == "large" else q, k, v)], {}


def least(shape: tuple, dtype: torch.dtype, mode: str) -> tuple[int, int]:
    """(bytes, FLOPs): each tensor once; two products forward, four backward, none recomputed.

    shape: (B, T, heads, head_dim); mode: "fwd", "bwd" or "fwdbwd".
    """
    tensor = math.prod(shape) * dtype.itemsize
    product = 2 * math.prod(shape) * shape[1]
    # Forward q, k, v -> out; backward q, k, v, dout -> dq, dk, dv.
    tensors, products = {"fwd": (4, 2), "bwd": (7, 4), "fwdbwd": (11, 6)}[mode]
    return tensors * tensor, products * product


def work(name: str, dtype: torch.dtype, mode: str) -> tuple[int, int]:
    """`least` of a named case."""
    return least((SHAPES | BENCH)[name], dtype, mode)


def plain(q, k, v):
    """What torch alone gives, at its most exact: fused in 16 bits, where products and a softmax
    round the scores, and those in float32."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if q.dtype.itemsize == 2:
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    return ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2)
