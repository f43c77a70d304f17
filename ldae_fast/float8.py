"""The products of a network's blocks in float8, about each tensor's largest value.

x and the weight are kept in e4m3 (3 mantissa bits, up to 448), gradients in e5m2 (2 bits, 32 powers
of two), as in "FP8 Formats for Deep Learning" (Micikevicius et al., arXiv 2209.05433). Each is made
float8 once, by `ops.quantise_float8`, which also turns it for the product of the backward pass. Its
largest value comes with GELU where GELU makes it, and a gradient's in one pass with the bias's
gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .kernels.mlp_gelu.middle import bias_gelu, bias_gelu_backward
from .kernels.quantise_float8 import largest_and_sums
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


def gradients(dout: Tensor, largest: Tensor, x: tuple, weight: tuple) -> tuple[Tensor, Tensor]:
    """(dx, dweight) of x weight^T, both given as (turned, scale); largest: that of |dout|."""
    q, turned, scale = quantise_float8(dout, gradient=True, largest=largest)
    return product((q, scale), weight), product((turned, scale), x)


class Linear(torch.autograd.Function):
    """x (T, K) in bfloat16, weight (N, K) in bfloat16, bias (N,) -> (T, N) in bfloat16."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        qx, *x_turned = quantise_float8(x)
        qw, *w_turned = quantise_float8(weight)
        ctx.save_for_backward(*x_turned, *w_turned)
        ctx.bias_dtype = bias.dtype
        return product((qx, x_turned[1]), (qw, w_turned[1]), bias.to(torch.bfloat16), fast=True)

    @staticmethod
    def backward(ctx, dout: Tensor):
        x, x_scale, weight, w_scale = ctx.saved_tensors  # (K, T) and (K, N)
        dout = dout.contiguous()
        largest, dbias = largest_and_sums(dout)
        dx, dweight = gradients(dout, largest, (x, x_scale), (weight, w_scale))
        return dx, dweight, dbias.to(ctx.bias_dtype)


class Perceptron(torch.autograd.Function):
    """x (T, K), weight1 (H, K), weight2 (N, H) in bfloat16, bias1, bias2 -> (T, N) in bfloat16."""

    @staticmethod
    def forward(
        ctx, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor,
        approximate: str,
    ) -> Tensor:  # fmt: skip
        qx, *x_turned = quantise_float8(x)
        q1, *turned1 = quantise_float8(weight1)
        q2, *turned2 = quantise_float8(weight2)
        u = product((qx, x_turned[1]), (q1, turned1[1]), fast=True)
        hidden, largest = bias_gelu(u, bias1, approximate)
        qh, *h_turned = quantise_float8(hidden, largest=largest)
        ctx.save_for_backward(*x_turned, *turned1, u, bias1, *h_turned, *turned2)
        ctx.approximate, ctx.bias_dtype = approximate, bias2.dtype
        return product((qh, h_turned[1]), (q2, turned2[1]), bias2.to(torch.bfloat16), fast=True)

    @staticmethod
    def backward(ctx, dout: Tensor):
        x, x_scale, w1, scale1, u, bias1, h, h_scale, w2, scale2 = ctx.saved_tensors
        dout = dout.contiguous()
        largest, dbias2 = largest_and_sums(dout)
        dhidden, dweight2 = gradients(dout, largest, (h, h_scale), (w2, scale2))
        du, dbias1, largest = bias_gelu_backward(dhidden, u, bias1, ctx.approximate)
        dx, dweight1 = gradients(du, largest, (x, x_scale), (w1, scale1))
        return dx, dweight1, dbias1, dweight2, dbias2.to(ctx.bias_dtype), None


def rows_of(x: Tensor, named: str, *weights: Tensor) -> Tensor:
    """x (..., K) as a matrix; ValueError where products with these weights take no such sizes.

    named: how to call the sizes.
    """
    sizes = (x.shape[:-1].numel(), x.shape[-1], *(w.shape[0] for w in weights))
    if any(size % MULTIPLE for size in sizes):
        raise ValueError(f"float8: {named} must be multiples of {MULTIPLE}; got {sizes}")
    return x.reshape(sizes[:2])


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
    rows = rows_of(x, "rows, inputs and outputs", weight)
    flat, w = (v.to(torch.bfloat16) for v in (rows, weight))
    if not flat.numel():
        return F.linear(flat, w, bias.to(torch.bfloat16)).view(*x.shape[:-1], len(w))
    return Linear.apply(flat, w, bias).view(*x.shape[:-1], len(w))


def mlp_gelu(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, *, approximate: str
) -> Tensor:
    """`ops.mlp_gelu` with products as in `linear`: x (..., K) -> (..., N) in bfloat16.

    weight1 (H, K), weight2 (N, H). The first product and GELU's values are rounded to bfloat16,
    what is between them is float32. Raises ValueError where rows, K, H or N is not a multiple of
    16.

    >>> x, weight1, weight2 = torch.randn(4, 8, 16), torch.randn(64, 16), torch.randn(32, 64)
    >>> mlp_gelu(x, weight1, torch.zeros(64), weight2, torch.zeros(32), approximate="tanh").shape
    torch.Size([4, 8, 32])
    """
    rows = rows_of(x, "rows, inputs, hidden values and outputs", weight1, weight2)
    flat, w1, w2 = (v.to(torch.bfloat16) for v in (rows, weight1, weight2))
    if not flat.numel():
        hidden = F.gelu(F.linear(flat, w1, bias1.to(torch.bfloat16)), approximate=approximate)
        return F.linear(hidden, w2, bias2.to(torch.bfloat16)).view(*x.shape[:-1], len(w2))
    return Perceptron.apply(flat, w1, bias1, w2, bias2, approximate).view(*x.shape[:-1], len(w2))


def replace_products(network: nn.Module) -> None:
    """Makes every block of the network multiply so, in place."""
    for block in network.blocks:
        block.linear, block.perceptron = linear, mlp_gelu
