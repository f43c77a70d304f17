"""Attention as plain matrix products, in the inputs' own dtype where the device multiplies it.

On a CPU and at short sequences this beats the tiled kernels: each product runs at the rate of the
matrix units, and the T x T scores are small. Scores have float32 at least: the exponential makes
the rounding of a large one an error of as many percent. Kept for the backward: q, k, v once, laid
out head by head, and the probabilities, in the dtype of the products. The passes between the
products work in place, in the compiled library where it takes the dtype.
"""

import torch
from torch import Tensor

from .. import native
from ..implementation import require_first_order, without_autocast

ONEDNN = torch.backends.mkldnn.is_available()  # a torch without it has not even its questions
HALVES = {
    torch.bfloat16: ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    torch.float16: ONEDNN and torch.ops.mkldnn._is_mkldnn_fp16_supported(),
}


def multiplied(x: Tensor) -> torch.dtype:
    """The dtype of products of x: its own, or float32 where torch's own on a CPU would be slow."""
    return x.dtype if x.is_cuda or HALVES.get(x.dtype, True) else torch.float32


def softmax_(scores: Tensor, scale: float) -> Tensor:
    """softmax(scale scores) over the last dimension, in the memory of `scores`."""
    if not native.refusal(scores):
        torch.ops.ldae.softmax_(scores, scale)
        return scores
    return torch.softmax(scores.mul_(scale), dim=-1, out=scores)


def softmax_backward_(gradient: Tensor, weights: Tensor, scale: float) -> Tensor:
    """The gradient of the scores from that of the weights, in the memory of the latter."""
    if not native.refusal(weights):
        torch.ops.ldae.softmax_backward_(gradient, weights, scale)
        return gradient
    return torch._softmax_backward_data(gradient, weights, -1, weights.dtype).mul_(scale)


# Products with out= stay in the inputs' dtype under a caller's autocast.
@torch.library.custom_op("ldae::attention_forward", mutates_args=())
def forward(heads: Tensor) -> tuple[Tensor, Tensor]:
    """q, k, v as (3, B * heads, T, head_dim), of a dtype that is multiplied -> (out
    (B * heads, T, head_dim), weights (B * heads, T, T))."""
    q, k, v = heads.contiguous()
    exact = torch.promote_types(q.dtype, torch.float32)
    scores = q.new_empty(q.shape[0], q.shape[1], q.shape[1], dtype=exact)
    torch.bmm(q.to(exact), k.to(exact).mT, out=scores)
    weights = softmax_(scores, q.shape[-1] ** -0.5).to(q.dtype)
    return torch.bmm(weights, v, out=torch.empty_like(v)), weights


@forward.register_fake
def _(heads):
    _, rows, tokens, head = heads.shape
    return heads.new_empty(rows, tokens, head), heads.new_empty(rows, tokens, tokens)


@torch.library.custom_op("ldae::attention_backward", mutates_args=())
def backward(dout: Tensor, heads: Tensor, weights: Tensor) -> Tensor:
    """The gradient of `heads`, from that of the output."""
    q, k, v = heads.contiguous()
    dout = dout.contiguous()
    result = torch.empty_like(heads, memory_format=torch.contiguous_format)
    scores = torch.bmm(dout, v.mT, out=torch.empty_like(weights))
    scores = softmax_backward_(scores, weights, q.shape[-1] ** -0.5)
    torch.bmm(scores, k, out=result[0])
    torch.bmm(scores.mT, q, out=result[1])
    torch.bmm(weights.mT, dout, out=result[2])
    return result


@backward.register_fake
def _(dout, heads, weights):
    return torch.empty_like(heads, memory_format=torch.contiguous_format)


def keep(ctx, inputs, output) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[0], output[1])


def differentiate(ctx, dout, dweights):
    require_first_order("attention")
    return backward(dout, *ctx.saved_tensors)


forward.register_autograd(differentiate, setup_context=keep)


def run(heads: Tensor) -> Tensor:
    """q, k, v as (3, B, heads, T, head_dim) -> (B, T, heads, head_dim)."""
    dtype = heads.dtype
    out, _ = forward(heads.to(multiplied(heads)).contiguous().flatten(1, 2))
    return out.to(dtype).unflatten(0, heads.shape[1:3]).transpose(1, 2)


@without_autocast  # whose stack refuses float16 on a CPU
def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q, k, v: (B, T, heads, head_dim). Returns the same shape and dtype."""
    return run(torch.stack([x.transpose(1, 2) for x in (q, k, v)]))


def attention_packed(qkv: Tensor) -> Tensor:
    """qkv: (B, T, 3, heads, head_dim). Returns (B, T, heads, head_dim)."""
    return run(qkv.permute(2, 0, 3, 1, 4))
