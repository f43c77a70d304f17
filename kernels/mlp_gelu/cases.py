"""Shapes and inputs that tests and benchmarks run the op on."""

import torch
from torch import Tensor

SHAPES = {  # name: (rows, D, hidden)
    "one": ((1, 1), 8, 16),
    "odd": ((3, 5), 7, 37),
    "prime": ((131,), 13, 61),
    "small": ((4, 64), 192, 768),
    "empty": ((0, 4), 8, 16),
}


def inputs(name: str, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """x (..., D), weight1, bias1, weight2, bias2, with hidden values from -6 to 6."""
    rows, width, hidden = SHAPES[name]
    g = torch.Generator().manual_seed(seed)
    shapes = [(*rows, width), (hidden, width), (hidden,), (width, hidden), (width,)]
    scales = [1, 1.5 * width**-0.5, 1, hidden**-0.5, 1]
    return [(s * torch.randn(n, generator=g)).to(dtype) for s, n in zip(scales, shapes)]
