"""Whole heads in the compiled library: bfloat16, softmax and products together in the caches.

It runs on any CPU. It pays where the processor multiplies pairs of bfloat16 (AVX512-BF16) and has
no matrix units (AMX), whose products torch reaches by oneDNN, and where torch has no fast products
of bfloat16 at all.
"""

import torch
from torch import Tensor

from .. import native
from ..implementation import require_first_order
from .matmul import HALVES
from .sdpa import dense_rows

PAYS = not native.MISSING and (torch.ops.ldae.attention_heads_pay() or not HALVES[torch.bfloat16])


def refusal(q: Tensor) -> str:
    """Why the compiled heads cannot take q; '' when they can."""
    if q.device.type == "cpu" and q.dtype != torch.bfloat16:
        return f"it takes bfloat16, q is {q.dtype}"
    return native.refusal(q)


def register() -> None:
    """Tells torch the shapes and the derivative; the schemas come with the library."""

    @torch.library.register_fake("ldae::attention_heads")
    def _(q, k, v):
        batch, tokens, *_, heads, head = q.shape
        out = q.new_empty(batch, tokens, heads, head)
        return out, q.new_empty(batch, heads, tokens, tokens)

    @torch.library.register_fake("ldae::attention_heads_backward")
    def _(dout, weights, q, k, v):
        batch, tokens, heads, head = dout.shape
        return q.new_empty(batch, tokens, 3, heads, head)

    torch.library.register_autograd("ldae::attention_heads", differentiate, setup_context=keep)


def keep(ctx, inputs, output) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], *inputs)


def differentiate(ctx, dout, dweights):
    require_first_order("attention")
    weights, q, k, v = ctx.saved_tensors
    made = torch.ops.ldae.attention_heads_backward(dense_rows(dout), weights, q, k, v)
    return made.unbind(2) if k is not None else (made, None, None)


if not native.MISSING:
    register()


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q, k, v: (B, T, heads, head_dim). Returns the same shape and dtype."""
    return torch.ops.ldae.attention_heads(*map(dense_rows, (q, k, v)))[0]


def attention_packed(qkv: Tensor) -> Tensor:
    """qkv: (B, T, 3, heads, head_dim). Returns (B, T, heads, head_dim)."""
    return torch.ops.ldae.attention_heads(dense_rows(qkv), None, None)[0]
