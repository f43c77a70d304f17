"""A linear layer whose three products run in float8, scaled by each tensor's largest value.

x and the weight are kept in e4m3 (3 mantissa bits, up to 448), gradients in e5m2 (2 bits, 32 powers
of two), as in "FP8 Formats for Deep Learning" (Micikevicius et al., arXiv 2209.05433). Each is made
float8 once, by `ops.quantise_float8`, which also turns it for the product of the backward pass.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernels.quantise_float8.reference import quantise
from .kernels.quantise_float8.triton_kernel import CAPABILITY
from .ops import quantise_float8

MULTIPLE = 16  # of rows, inputs and outputs: the product's alignment


def refusal(setting: str, device: torch.device) -> str:
    """Why `device` cannot run optimizer.precision float8 or float8-emulated; '' if it can."""
    if setting == "float8-emulated":
        return "" if device.type == "cpu" else f"{setting} is for a CPU; take float8 on {device}"
    have = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    if have >= CAPABILITY:
        return ""
    what = f"{device} has {have[0]}.{have[1]}" if device.type == "cuda" else f"this is a {device}"
    return (
        f"{setting} needs a GPU of compute capability 8.9 or later and {what}; take bfloat16, or "
        "float8-emulated, which gives its losses on a CPU, slowly"
    )


def definition(a: Tensor, b: Tensor, a_dtype: torch.dtype, b_dtype: torch.dtype) -> Tensor:
    """a (M, K) b^T (M, N) of b (N, K), both quantised, the product itself exact: float64."""
    (a, a_scale), (b, b_scale) = quantise(a, a_dtype), quantise(b, b_dtype)
    return (a.double() @ b.double().T) * (a_scale.double() * b_scale.double())


def product(a: tuple, b: tuple, bias: Tensor | None = None, *, fast: bool = False) -> Tensor:
    """a b^T in bfloat16, for pairs from `quantise` of (M, K) and (N, K), plus bias (N,) bfloat16.

    Both matrices have K innermost, the one layout that Hopper multiplies. fast: lets its tensor
    cores add up in fewer bits.
    """
    (a, a_scale), (b, b_scale) = a, b
    return torch._scaled_mm(
        a, b.t(), a_scale, b_scale, bias, out_dtype=torch.bfloat16, use_fast_accum=fast
    )


class Linear(torch.autograd.Function):
    """x (T, K) in bfloat16, weight (N, K) in bfloat16, bias (N,) -> (T, N) in bfloat16."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        qx, turned_x, x_scale = quantise_float8(x)
        qw, turned_w, w_scale = quantise_float8(weight)
        ctx.save_for_backward(turned_x, x_scale, turned_w, w_scale)
        ctx.bias_dtype = bias.dtype
        return product((qx, x_scale), (qw, w_scale), bias.to(torch.bfloat16), fast=True)

    @staticmethod
    def backward(ctx, dout: Tensor):
        x, x_scale, weight, w_scale = ctx.saved_tensors  # (K, T) and (K, N)
        q, turned, scale = quantise_float8(dout, gradient=True)
        dx = product((q, scale), (weight, w_scale))
        dweight = product((turned, scale), (x, x_scale))
        return dx, dweight, dout.sum(0, dtype=torch.float32).to(ctx.bias_dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """F.linear in float8: x (..., K), weight (N, K), bias (N,) -> (..., N) in bfloat16.

    Any float dtype comes in and is first rounded to bfloat16. Forward e4m3 times e4m3; backward
    e5m2 times e4m3, and the bias's gradient a float32 sum. What is not finite in x, weight or the
    gradient leaves nothing finite in the products with it. Raises ValueError where rows, K or N is
    not a multiple of 16.

    >>> x, weight = torch.randn(4, 8, 16), torch.randn(32, 16)
    >>> linear(x, weight, torch.zeros(32)).shape
    torch.Size([4, 8, 32])
    """
    rows, (outputs, inputs) = x.shape[:-1], weight.shape
    sizes = rows.numel(), inputs, outputs
    if any(size % MULTIPLE for size in sizes):
        raise ValueError(
            f"float8 linear: rows, inputs and outputs must be multiples of {MULTIPLE}; got {sizes}"
        )
    flat, weight = (v.to(torch.bfloat16) for v in (x.reshape(sizes[0], inputs), weight))
    if not flat.numel():
        return F.linear(flat, weight, bias.to(torch.bfloat16)).view(*rows, outputs)
    return Linear.apply(flat, weight, bias).view(*rows, outputs)
