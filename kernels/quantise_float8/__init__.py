"""quantise_float8: a matrix in float8 as both products with it want it."""

import torch
from torch import Tensor

from ..implementation import Implementation, choose, refuse, require_floats
from . import reference, triton_kernel

IMPLEMENTATIONS = {
    "triton": Implementation(triton_kernel.quantise_float8, triton_kernel.refusal),
    "reference": Implementation(reference.quantise_float8),
}
VALUES, GRADIENTS = torch.float8_e4m3fn, torch.float8_e5m2


def quantise_float8(
    x: Tensor, *, gradient: bool = False, impl: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """x in float8, x turned, and the scale that both are about, for scaled products.

    x: (T, K), of a float dtype, not empty. gradient: e5m2 (more range) in place of e4m3 (more
    digits). Returns (values (T, K), turned (K, T), scale (), float32): x is about values scale, and
    its largest value becomes the format's largest. Both are contiguous, since Hopper multiplies
    matrices that have the summed dimension innermost. A NaN or an infinity anywhere in x makes the
    scale not finite. Not differentiable. Raises ValueError naming a bad argument. Source: "FP8
    Formats for Deep Learning", arXiv 2209.05433.

    >>> import torch
    >>> values, turned, scale = quantise_float8(torch.tensor([[1.0, -2.0], [0.5, 0.0]]))
    >>> values.float() * scale
    tensor([[ 1.0000, -2.0000],
            [ 0.5000,  0.0000]])
    """
    op = "quantise_float8"
    require_floats(op, x=x)
    if x.dim() != 2:
        refuse(op, "x", "of shape (T, K)", x.shape)
    if x.numel() == 0:
        refuse(op, "x", "not empty", x.shape)
    with torch.no_grad():
        return choose(op, impl, IMPLEMENTATIONS, x)(x, GRADIENTS if gradient else VALUES)
