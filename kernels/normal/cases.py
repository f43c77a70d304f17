"""Shapes and inputs that tests and benchmarks run the op on."""

import torch

SHAPES = {  # name: (B, elements)
    "one": (1, 1),
    "odd": (3, 37),
    "prime": (5, 1031),
    "small": (4, 1024),
    "empty": (0, 8),
    "none": (3, 0),
}
BENCH = {  # B = 64 images of 256 tokens with d = 32, B = 256 of them on a GPU
    "cpu-d32": (64, 8192),
    "gpu-d32": (256, 8192),
}
DIFFERENTIABLE = ()


def inputs(name: str, dtype: torch.dtype, seed: int = 0) -> tuple[list, dict]:
    """seed, step, sample_ids (B,), elements; the result's dtype."""
    batch, elements = (SHAPES | BENCH)[name]
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(-(2**62), 2**62, (batch,), generator=g)
    return [2**63 + 11 + seed, 2**31 + 5, ids, elements], {"dtype": dtype}


def work(name: str, dtype: torch.dtype, mode: str) -> tuple[int, int]:
    """(bytes written, FLOPs): about 25 a normal besides the integers."""
    batch, elements = (SHAPES | BENCH)[name]
    return batch * elements * dtype.itemsize + 8 * batch, 25 * batch * elements
