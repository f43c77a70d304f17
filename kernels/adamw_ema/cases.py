"""Shapes and inputs that tests and benchmarks run the op on."""

import torch


def transformer(width: int, blocks: int) -> list[tuple[int, ...]]:
    """The parameter shapes of that many transformer blocks."""
    block = [(3 * width, width), (3 * width,), (width, width), (width,), (4 * width, width),
             (4 * width,), (width, 4 * width), (width,)]  # fmt: skip
    return block * blocks


SHAPES = {  # name: the parameters' shapes
    "one": [(1,)],
    "odd": [(3,), (5, 7), (), (2, 3, 11)],
    "prime": [(131, 17), (1031,)],
    "small": transformer(32, 2),
    "empty": [(0,), (4, 0), (3,)],
}
BENCH = {"cpu-small": transformer(384, 6), "gpu-L": transformer(1024, 4)}
DIFFERENTIABLE = ()
MUTATES = (0, 2, 3, 4)


def inputs(name: str, dtype: torch.dtype, seed: int = 0) -> tuple[list, dict]:
    """params, grads, exp_avgs, exp_avg_sqs, emas; the step's settings."""
    g = torch.Generator().manual_seed(seed)
    lists = [
        [torch.randn(shape, generator=g).to(dtype) for shape in (SHAPES | BENCH)[name]]
        for _ in range(5)
    ]
    lists[3] = [v.abs() for v in lists[3]]
    options = {"step": 3, "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.05,
               "ema_decay": 0.99, "grad_scale": torch.tensor(0.7)}  # fmt: skip
    return lists, options


def least(shape: list[tuple], dtype: torch.dtype, mode: str) -> tuple[int, int]:
    """(bytes: five values read and four written a parameter, FLOPs: about 15), for their shapes."""
    count = sum(torch.Size(one).numel() for one in shape)
    return 9 * count * dtype.itemsize, 15 * count


def work(name: str, dtype: torch.dtype, mode: str) -> tuple[int, int]:
    """`least` of a named case."""
    return least((SHAPES | BENCH)[name], dtype, mode)
