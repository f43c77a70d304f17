"""Attention by xformers.ops.memory_efficient_attention, where xformers is installed.

A wheel built for another torch imports, with a warning, and may then have a kernel or none: it is
imported at the first question only, silently, and asked for a pass over one small head.
"""

import functools
import importlib
import logging
import warnings

import torch
from torch import Tensor

from .sdpa import HALF, dense_rows, gpu_refusal


@functools.cache
def load() -> str:
    """Imports xformers.ops. Returns why it cannot be used, '' when it can."""
    log = logging.getLogger("xformers")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("xformers.ops")
    except Exception as error:  # a library for another CUDA fails in more ways than ImportError
        return f"xformers does not import ({error})"
    finally:
        log.setLevel(level)
    return ""


@torch.compiler.assume_constant_result
def missing() -> str:
    return load()


@functools.cache
def try_kernel(dtype: torch.dtype, head_dim: int, device: torch.device) -> str:
    """Runs a small pass, forward and backward. Returns why it fails, '' when it does not."""
    x = torch.zeros(1, 16, 1, head_dim, dtype=dtype, device=device, requires_grad=True)
    try:
        with torch.enable_grad():
            attention(x, x, x).sum().backward()
    except Exception as error:  # that it has none, or one for another GPU
        first, *_ = str(error).strip().split("\n")
        return (
            f"xformers has no kernel for {str(dtype)[6:]} and a head_dim of {head_dim} here "
            f"({first}); `python -m xformers.info` says what it was built for"
        )
    return ""


@torch.compiler.assume_constant_result
def kernel_missing(dtype: torch.dtype, head_dim: int, index: int) -> str:
    return try_kernel(dtype, head_dim, torch.device("cuda", index))


def refusal(q: Tensor) -> str:
    reason = gpu_refusal(q, 50, 256, (*HALF, torch.float32)) or missing()
    return reason or kernel_missing(q.dtype, q.shape[3], q.device.index)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q, k, v: (B, T, heads, head_dim). Returns the same shape and dtype."""
    ops = importlib.import_module("xformers.ops")
    return ops.memory_efficient_attention(*map(dense_rows, (q, k, v)))
