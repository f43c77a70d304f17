"""quantise_float8: a matrix in float8 as both products with it want it."""

import torch
from torch import Tensor

from ..implementation import Implementation, choose, refuse, require_device, require_floats
from . import reference, triton_kernel

IMPLEMENTATIONS = {
    "triton": Implementation(triton_kernel.quantise_float8, triton_kernel.refusal),
    "reference": Implementation(reference.quantise_float8),
}
FIRST_PASS = {
    "triton": Implementation(triton_kernel.largest_and_sums, triton_kernel.refusal),
    "reference": Implementation(reference.largest_and_sums),
}
VALUES, GRADIENTS = torch.float8_e4m3fn, torch.float8_e5m2


def check(op: str, x: Tensor) -> None:
    """ValueError unless x is a float matrix with something in it."""
    require_floats(op, x=x)
    if x.dim() != 2:
        refuse(op, "x", "of shape (T, K)", x.shape)
    if x.numel() == 0:
        refuse(op, "x", "not empty", x.shape)


def quantise_float8(
    x: Tensor, *, gradient: bool = False, largest: Tensor | None = None, impl: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """x in float8, x turned, and the scale that both are about, for scaled products.

    x: (T, K), of a float dtype, not empty. gradient: e5m2 (more range) in place of e4m3 (more
    digits). largest: the largest |x|, (), float32, where whoever made x knows it, which spares a
    pass over x; it must not be smaller. Returns (values (T, K), turned (K, T), scale (), float32):
    x is about values scale, and the largest value becomes the format's largest. Both are
    contiguous, since Hopper multiplies matrices that have the summed dimension innermost. A NaN or
    an infinity anywhere in x makes the scale not finite. Not differentiable. Raises ValueError
    naming a bad argument. Source: "FP8 Formats for Deep Learning", arXiv 2209.05433.

    >>> import torch
    >>> values, turned, scale = quantise_float8(torch.tensor([[1.0, -2.0], [0.5, 0.0]]))
    >>> values.float() * scale
    tensor([[ 1.0000, -2.0000],
            [ 0.5000,  0.0000]])
    """
    op = "quantise_float8"
    check(op, x)
    if largest is not None:
        require_floats(op, largest=largest)
        require_device(op, x, largest=largest)
        if largest.shape != () or largest.dtype != torch.float32:
            refuse(op, "largest", "a float32 tensor of shape ()", largest)
    with torch.no_grad():
        run = choose(op, impl, IMPLEMENTATIONS, x)
        return run(x, GRADIENTS if gradient else VALUES, largest)


def largest_and_sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """What `quantise_float8` asks first of a gradient x (T, K), and its bias's gradient with it.

    Returns (the largest |x|, (); each column's sum (K,)), float32, of one pass over x. Not
    differentiable. Raises ValueError naming a bad argument.

    >>> import torch
    >>> largest_and_sums(torch.tensor([[1.0, -2.0], [0.5, 0.0]]))
    (tensor(2.), tensor([ 1.5000, -2.0000]))
    """
    check("largest_and_sums", x)
    with torch.no_grad():
        return choose("quantise_float8", "auto", FIRST_PASS, x)(x)
