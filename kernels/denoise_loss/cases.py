"""Shapes and inputs that tests and benchmarks run the op on."""

from collections.abc import Callable

import torch

from ..patch_pca_noise import cases as noise
from . import denoise_loss_and_gradient

SHAPES = {  # name: (images as in patch_pca_noise's cases, "two" or "full" weights)
    "one": ("one", "two"),
    "odd": ("odd", "two"),
    "prime": ("prime", "two"),
    "small": ("small", "two"),
    "float": ("float", "two"),
    "full": ("full", "full"),
    "empty": ("empty", "two"),
}
BENCH = {name: (name, "two") for name in noise.BENCH}
DIFFERENTIABLE = (0,)


def inputs(name: str, dtype: torch.dtype, seed: int = 0) -> tuple[list, dict]:
    """pred (B, T, P), images, basis, level_weight; view, weights, flip, crop, size."""
    like, weights = (SHAPES | BENCH)[name]
    (images, basis, *_), options = noise.inputs(like, dtype, seed)
    _, height, width, channels, patch, _, _ = (noise.SHAPES | noise.BENCH)[like]
    height, width = options.get("size", height), options.get("size", width)
    g = torch.Generator().manual_seed(seed + 1)
    tokens = (height // patch) * (width // patch)
    pred = torch.randn(len(images), tokens, patch * patch * channels, generator=g).to(dtype)
    level = 0.3 + torch.rand(len(images), generator=g)
    kept = {k: options[k] for k in ("view", "flip", "crop", "size") if k in options}
    kept["weights"] = (1.0, 0.1) if weights == "two" else torch.rand(len(basis), generator=g)
    return [pred, images, basis, level], kept


def one_pass(impl: str, arguments: list, options: dict) -> Callable[[], tuple]:
    """Value and gradient of the mean loss by the function for trainers, without autograd."""
    batch = len(arguments[1])
    upstream = arguments[3].new_full((batch,), 1 / batch)
    return lambda: denoise_loss_and_gradient(*arguments, upstream, impl=impl, **options)


def least(shape: tuple, dtype: torch.dtype, mode: str) -> tuple[int, int]:
    """(bytes: prediction and image once, with the gradient once more; FLOPs of V_d e and back).

    shape: (B, H, W, C, patch, d, ...) as in patch_pca_noise's cases.
    """
    batch, height, width, channels, _patch, d, *_ = shape
    pixels = batch * height * width * channels
    passes = 1 if mode == "fwd" else 2
    return pixels * (1 + passes * dtype.itemsize), passes * 2 * pixels * d


def work(name: str, dtype: torch.dtype, mode: str) -> tuple[int, int]:
    """`least` of a named case."""
    return least((noise.SHAPES | noise.BENCH)[(SHAPES | BENCH)[name][0]], dtype, mode)
