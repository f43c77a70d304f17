"""cuDNN's forward pass with our own backward, each the faster of the two on Hopper.

cuDNN's own backward takes three kernels, adds up dq in an order of its own, and leaves dq, dk and
dv apart, which a packed projection has to bring together again.
"""

import torch
from torch import Tensor

from ..capability import capability
from ..triton_launch import MISSING
from . import sdpa, triton_kernel
from .sdpa import dense_rows

HOPPER = 90
FEWEST = 129  # tokens; a shorter head leaves most of our backward's tile empty


def refusal(q: Tensor) -> str:
    reason = sdpa.cudnn_forward_refusal(q) or triton_kernel.refusal(q)
    if reason:
        return reason
    if q.shape[1] < FEWEST:
        return f"it takes at least {FEWEST} tokens, q has {q.shape[1]}"
    if q.shape[3] > triton_kernel.WIDEST:  # wider heads take more than one kernel of ours
        return f"it takes a head_dim of up to {triton_kernel.WIDEST}, q has {q.shape[3]}"
    if capability(q.device.index) != HOPPER:
        return f"it is for compute capability 9.0, {q.device} has another"
    return ""


if not MISSING:

    @torch.library.triton_op("ldae_triton::attention_cudnn_forward", mutates_args=())
    def operator(q: Tensor, k: Tensor | None, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """(out (B, T, heads, head_dim), log2 of the weights' sum (B, heads, T))."""
        q, k, v = (x.transpose(1, 2) for x in triton_kernel.split(q, k, v))
        out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)
        return out.transpose(1, 2).contiguous(), lse.view(q.shape[:3]) * triton_kernel.LOG2E

    triton_kernel.differentiate_by_ours(operator)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q, k, v: (B, T, heads, head_dim). Returns the same shape and dtype."""
    return operator(*map(dense_rows, (q, k, v)))[0]


def attention_packed(qkv: Tensor) -> Tensor:
    """qkv: (B, T, 3, heads, head_dim). Returns (B, T, heads, head_dim)."""
    return operator(dense_rows(qkv), None, None)[0]
