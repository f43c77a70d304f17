"""normal: counter-based standard normals, the same integers on every device."""

import torch
from torch import Tensor

from .. import triton_launch
from ..implementation import Implementation, choose, require
from . import reference, triton_kernel

IMPLEMENTATIONS = {
    "triton": Implementation(triton_kernel.normal, triton_launch.refusal),
    "reference": Implementation(reference.normal),
}


def normal(
    seed: int,
    step: int,
    sample_ids: Tensor,
    elements: int,
    *,
    dtype: torch.dtype = torch.float32,
    impl: str = "auto",
) -> Tensor:
    """Standard normals that depend on (seed, step, sample id, element) alone.

    sample_ids: (B,) int64, on the device that the result is wanted on. Returns (B, elements) in
    `dtype`. However a batch is split, ordered or restarted, a sample gets the same noise.
    """
    require(sample_ids.dim() == 1, "normal", "sample_ids", "of shape (B,)", sample_ids.shape)
    require(not sample_ids.is_floating_point(), "normal", "sample_ids", "int64", sample_ids.dtype)
    require(elements >= 0, "normal", "elements", "0 or more", elements)
    return choose("normal", impl, IMPLEMENTATIONS, sample_ids.new_empty(0, dtype=dtype))(
        seed, step, sample_ids, elements, dtype
    )
