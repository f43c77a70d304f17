"""Attention by F.scaled_dot_product_attention: by one back end, or by the one torch picks."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..capability import capability
from ..implementation import without_autocast

HALF = (torch.bfloat16, torch.float16)


@without_autocast
def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q, k, v: (B, T, heads, head_dim). Returns the same shape and dtype."""
    q, k, v = (dense_rows(x).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def dense_rows(x: Tensor) -> Tensor:
    """x, copied only where a head's values lie apart: every kernel reads whole rows."""
    return x if x.stride(-1) == 1 else x.contiguous()


def held_to(backend: SDPBackend) -> Callable:
    """`attention` by that back end alone; torch raises when it cannot."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return attention(q, k, v)

    return run


flash = held_to(SDPBackend.FLASH_ATTENTION)
cudnn = held_to(SDPBackend.CUDNN_ATTENTION)
efficient = held_to(SDPBackend.EFFICIENT_ATTENTION)
math = held_to(SDPBackend.MATH)


def gpu_refusal(q: Tensor, least: int, widest: int, dtypes: tuple = HALF) -> str:
    """Why a CUDA kernel for these dtypes and head_dim <= widest, a multiple of 8, refuses q."""
    if q.device.type != "cuda":
        return f"it runs on a CUDA device, q is on {q.device}"
    if q.dtype not in dtypes:
        return f"it takes {', '.join(str(d)[6:] for d in dtypes)}, q is {q.dtype}"
    if q.shape[3] % 8 or q.shape[3] > widest:
        return f"it takes a head_dim that is a multiple of 8 up to {widest}, q has {q.shape[3]}"
    if capability(q.device.index) < least:
        return f"it needs compute capability {least / 10}, {q.device} is older"
    return ""


def flash_refusal(q: Tensor) -> str:
    if q.device.type == "cpu":
        return ""  # torch's tiled CPU kernel goes by this name
    if not torch.backends.cuda.is_flash_attention_available():
        return "this torch was built without FlashAttention"
    return gpu_refusal(q, 80, 256)


@torch.compiler.assume_constant_result
def only_warns() -> bool:
    return torch.is_deterministic_algorithms_warn_only_enabled()


def cudnn_refusal(q: Tensor) -> str:
    if torch.are_deterministic_algorithms_enabled() and not only_warns():
        return "torch asks for deterministic algorithms, and does not call cuDNN's backward one"
    return cudnn_forward_refusal(q)


def cudnn_forward_refusal(q: Tensor) -> str:
    if q.shape[1] == 1:
        return "cuDNN's attention takes no sequence of length 1"
    # cuDNN's backward stops at head_dim 128.
    return gpu_refusal(q, 80, 128)


def efficient_refusal(q: Tensor) -> str:
    return gpu_refusal(q, 50, 2**16, (*HALF, torch.float32))
