"""Attention by xformers.ops.memory_efficient_attention, where xformers is installed.

Its wheel serves torch's own kernels when its library was built for another torch and does not load,
and warns of that at import: it is imported at the first question only, and silently.
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


def refusal(q: Tensor) -> str:
    return gpu_refusal(q, 50, 256, (*HALF, torch.float32)) or missing()


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q, k, v: (B, T, heads, head_dim). Returns the same shape and dtype."""
    ops = importlib.import_module("xformers.ops")
    return ops.memory_efficient_attention(*map(dense_rows, (q, k, v)))
