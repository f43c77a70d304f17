"""Attention by the FlashAttention 3 and 4 packages, where they are installed."""

import functools
import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from .sdpa import dense_rows, gpu_refusal

PACKAGES = {"flash3": "flash_attn_interface", "flash4": "flash_attn.cute"}


@functools.cache
def load(name: str) -> str:
    """Imports the package. Returns why it cannot be used, '' when it can."""
    try:
        module = importlib.import_module(PACKAGES[name])
    except Exception as error:  # a library for another CUDA fails in more ways than ImportError
        return f"{PACKAGES[name]} does not import ({error})"
    return "" if hasattr(module, "flash_attn_func") else f"{PACKAGES[name]} has no flash_attn_func"


@torch.compiler.assume_constant_result
def missing(name: str) -> str:
    return load(name)


def by_package(name: str) -> tuple[Callable, Callable]:
    """(attention, refusal) of one package; both take (B, T, heads, head_dim)."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        function = importlib.import_module(PACKAGES[name]).flash_attn_func
        out = function(*map(dense_rows, (q, k, v)))
        return out[0] if isinstance(out, tuple) else out  # some versions return logsumexp too

    def refusal(q: Tensor) -> str:
        return gpu_refusal(q, 90, 128) or missing(name)

    return attention, refusal


flash3, flash3_refusal = by_package("flash3")
flash4, flash4_refusal = by_package("flash4")
