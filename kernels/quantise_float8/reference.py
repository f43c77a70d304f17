"""A tensor in float8 about its largest value, as plain torch says it.

e4m3 (3 mantissa bits, up to 448) for values, e5m2 (2 bits, 32 powers of two) for gradients, one
scale a tensor, as in "FP8 Formats for Deep Learning" (Micikevicius et al., arXiv 2209.05433).
"""

import torch
from torch import Tensor

SMALLEST = 2.0**-100  # a smaller largest value counts as this, so that no scale is infinite


def largest_of(x: Tensor) -> Tensor:
    """The largest |x|, (), float32; not finite where any of x is."""
    return x.abs().amax().float()


def largest_and_sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """(largest |x|, (); each column's sum (K,)) of x (T, K), both float32."""
    return largest_of(x), x.sum(0, dtype=torch.float32)


def quantise(x: Tensor, dtype: torch.dtype, largest: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x, not empty, about values scale: (values in a float8 dtype, contiguous; scale (), float32).

    The largest value becomes the dtype's largest. A NaN or an infinity anywhere in x makes the
    scale not finite, and with it all that is computed from it.
    """
    top = torch.finfo(dtype).max
    scale = (largest_of(x) if largest is None else largest).clamp(min=SMALLEST) / top
    scaled = x.float() * scale.reciprocal()  # at most top and a rounding, which the cast takes off
    return scaled.to(dtype).contiguous(), scale


def quantise_float8(
    x: Tensor, dtype: torch.dtype, largest: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(values (T, K), the same turned (K, T), scale) of x (T, K)."""
    values, scale = quantise(x, dtype, largest)
    return values, values.t().contiguous(), scale
