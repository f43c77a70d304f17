"""Shapes and inputs that tests and benchmarks run the op on."""

from math import prod

import torch
from torch import Tensor

SHAPES = {  # name: (rows, D, hidden)
    "one": ((1, 1), 8, 16),
    "odd": ((3, 5), 7, 37),
    "prime": ((131,), 13, 61),
    "small": ((4, 64), 192, 768),
    "empty": ((0, 4), 8, 16),
}
BENCH = {
    "cpu-S": ((32, 256), 384, 1536),
    "gpu-S": ((256, 256), 384, 1536),
    "gpu-L": ((128, 256), 1024, 4096),
}
DIFFERENTIABLE = (0, 1, 2, 3, 4)
PRODUCTS = {"fwd": 2, "bwd": 4, "fwdbwd": 6}  # each of rows x D x hidden multiply-adds


def inputs(name: str, dtype: torch.dtype, seed: int = 0) -> tuple[list[Tensor], dict]:
    """x (..., D), weight1, bias1, weight2, bias2, with hidden values from -6 to 6."""
    rows, width, hidden = (SHAPES | BENCH)[name]
    g = torch.Generator().manual_seed(seed)
    shapes = [(*rows, width), (hidden, width), (hidden,), (width, hidden), (width,)]
    scales = [1, 1.5 * width**-0.5, 1, hidden**-0.5, 1]
    return [(s * torch.randn(n, generator=g)).to(dtype) for s, n in zip(scales, shapes)], {}


def work(name: str, dtype: torch.dtype, mode: str) -> tuple[int, int]:
    """(bytes, FLOPs) that "fwd", "bwd" or "fwdbwd" needs at least; FLOPs of the products alone.

    forward: x, the parameters, u, out. backward: dout, u, x, the parameters and the gradients.
    """
    rows, width, hidden = (SHAPES | BENCH)[name]
    count = prod(rows)
    parameters = 2 * width * hidden + hidden + width
    forward = 2 * count * width + count * hidden + parameters
    backward = 3 * count * width + count * hidden + 2 * parameters
    values = {"fwd": forward, "bwd": backward, "fwdbwd": forward + backward}[mode]
    return dtype.itemsize * values, PRODUCTS[mode] * 2 * count * width * hidden
