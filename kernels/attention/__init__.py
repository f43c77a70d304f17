"""attention: full attention over short sequences, by the fastest back end for the device."""

from collections.abc import Callable

from torch import Tensor

from ..implementation import Implementation, choose, refuse, require_floats
from . import cpp, cudnn, flash, matmul, reference, sdpa, triton_kernel, xformers

IMPLEMENTATIONS = {
    "cpp": Implementation(cpp.attention, cpp.refusal),
    "matmul": Implementation(matmul.attention),
    "cudnn": Implementation(cudnn.attention, cudnn.refusal),
    "sdpa-cudnn": Implementation(sdpa.cudnn, sdpa.cudnn_refusal),
    "flash3": Implementation(flash.flash3, flash.flash3_refusal),
    "triton": Implementation(triton_kernel.attention, triton_kernel.refusal),
    "flash4": Implementation(flash.flash4, flash.flash4_refusal),
    "sdpa-flash": Implementation(sdpa.flash, sdpa.flash_refusal),
    "sdpa": Implementation(sdpa.attention),
    "sdpa-efficient": Implementation(sdpa.efficient, sdpa.efficient_refusal),
    "xformers": Implementation(xformers.attention, xformers.refusal),
    "sdpa-math": Implementation(sdpa.math),
    "reference": Implementation(reference.attention),
}


def packed(run: Callable) -> Callable:
    """An implementation over (B, T, 3, heads, head_dim), by views of its three parts."""
    return lambda qkv: run(*qkv.unbind(2))


PACKED = {name: Implementation(packed(one.run), one.refusal) for name, one in
          IMPLEMENTATIONS.items()}  # fmt: skip
PACKED["cpp"] = Implementation(cpp.attention_packed, cpp.refusal)
PACKED["matmul"] = Implementation(matmul.attention_packed)
PACKED["cudnn"] = Implementation(cudnn.attention_packed, cudnn.refusal)
PACKED["triton"] = Implementation(triton_kernel.attention_packed, triton_kernel.refusal)

# Fastest first, at T = 256 and head_dim 64. On a CPU as measured in bfloat16, forward + backward.
# The interpreter of the Triton kernel is for checking only, so it comes last there.
CPU_ORDER = ["matmul", "sdpa", "sdpa-flash", "sdpa-math", "reference"]
if cpp.PAYS:
    CPU_ORDER = ["cpp", *CPU_ORDER]
# On a GPU as measured on an H200 in bfloat16, forward and backward (bench/records/LOG.md): cudnn by
# its two kernels alone, and flash3, flash4 and xformers, which need packages of their own, not.
GPU_ORDER = ["cudnn", "sdpa-cudnn", "sdpa", "triton", "sdpa-flash", "sdpa-efficient", "matmul",
             "sdpa-math", "flash3", "flash4", "xformers", "reference"]  # fmt: skip


def ordered(table: dict[str, Implementation], order: list[str]) -> dict[str, Implementation]:
    """Every implementation, those in `order` first."""
    return {name: table[name] for name in dict.fromkeys([*order, *table])}


ON_CPU, ON_GPU = ordered(IMPLEMENTATIONS, CPU_ORDER), ordered(IMPLEMENTATIONS, GPU_ORDER)
PACKED_ON_CPU, PACKED_ON_GPU = ordered(PACKED, CPU_ORDER), ordered(PACKED, GPU_ORDER)


def attention(q: Tensor, k: Tensor, v: Tensor, *, impl: str = "auto") -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v, without mask or dropout (Vaswani et al., 2017).

    q, k, v: (B, T, heads, head_dim), of one float dtype (float16, bfloat16, float32 or float64), on
    one device. Returns the same shape in q's dtype. impl: "auto" or a name in IMPLEMENTATIONS.
    Raises ValueError naming a bad argument, or the reason why a named implementation cannot run.
    For a packed projection see `attention_packed`.

    >>> import torch
    >>> q, k, v = torch.randn(3, 2, 256, 6, 64)
    >>> attention(q, k, v).shape
    torch.Size([2, 256, 6, 64])
    """
    require_floats("attention", q=q, k=k, v=v)
    if q.dim() != 4:
        refuse("attention", "q", "(B, T, heads, head_dim)", q.shape)
    check_head(q, "q")
    for name, value in (("k", k), ("v", v)):
        if value.shape != q.shape:
            refuse("attention", name, q.shape, value.shape)
        if value.dtype != q.dtype:
            refuse("attention", f"{name}.dtype", q.dtype, value.dtype)
    run = choose("attention", impl, ON_GPU if q.is_cuda else ON_CPU, q)
    return run(q, k, v) if q.numel() else q + k + v  # empty too, and gradients reach all three


def attention_packed(qkv: Tensor, *, impl: str = "auto") -> Tensor:
    """`attention` of the three parts of one projection, read where they lie.

    qkv: (B, T, 3, heads, head_dim), q, k and v in this order: a Linear's output viewed so. Returns
    (B, T, heads, head_dim) in qkv's dtype. Raises ValueError as `attention` does. Source: Vaswani
    et al., 2017.

    >>> import torch
    >>> attention_packed(torch.randn(2, 256, 3, 6, 64)).shape
    torch.Size([2, 256, 6, 64])
    """
    require_floats("attention", qkv=qkv)
    if qkv.dim() != 5 or qkv.shape[2] != 3:
        refuse("attention", "qkv", "(B, T, 3, heads, head_dim)", qkv.shape)
    check_head(qkv, "qkv")
    table = PACKED_ON_GPU if qkv.is_cuda else PACKED_ON_CPU
    run = choose("attention", impl, table, qkv.select(2, 0))
    return run(qkv) if qkv.numel() else qkv.sum(2)


def check_head(x: Tensor, name: str) -> None:
    if x.shape[-1] == 0:
        refuse("attention", f"{name}'s head_dim", "at least 1", x.shape[-1])
