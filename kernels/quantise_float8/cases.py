"""Shapes and inputs that tests and benchmarks run the op on."""

import torch

SHAPES = {  # name: (T, K)
    "one": (1, 1),
    "odd": (3, 37),
    "prime": (131, 67),
    "small": (64, 96),
}
BENCH = {"gpu-L": (32768, 4096)}
DIFFERENTIABLE = ()


def inputs(name: str, dtype: torch.dtype, seed: int = 0) -> tuple[list, dict]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn((SHAPES | BENCH)[name], generator=g).to(dtype)], {"gradient": seed % 2 == 1}


def work(name: str, dtype: torch.dtype, mode: str) -> tuple[int, int]:
    """(bytes: x read twice, written twice in float8; no products)."""
    rows, columns = (SHAPES | BENCH)[name]
    return rows * columns * (2 * dtype.itemsize + 2), 0
