"""normal: counter-based standard normals, the same integers on every device."""

import torch
from torch import Tensor

from .. import triton_launch
from ..implementation import (
    Implementation,
    Kind,
    choose,
    refuse,
    require_float_dtype,
    require_whole,
)
from . import cpp, cuda, reference, triton_kernel

IMPLEMENTATIONS = {
    "cpp": Implementation(cpp.normal, cpp.refusal),
    "triton": Implementation(triton_kernel.normal, triton_launch.refusal),
    "cuda": Implementation(cpp.normal, cuda.refusal),
    "reference": Implementation(reference.normal),
}


def check_key(op: str, seed: int, step: int, sample_ids: Tensor) -> None:
    """ValueError that names the part of a noise key that is no such thing."""
    require_whole(op, "seed", seed, bits=64)
    require_whole(op, "step", step, bits=32)
    if not isinstance(sample_ids, Tensor):
        refuse(op, "sample_ids", "a tensor", type(sample_ids))
    if sample_ids.dim() != 1:
        refuse(op, "sample_ids", "of shape (B,)", sample_ids.shape)
    if sample_ids.dtype != torch.int64:
        refuse(op, "sample_ids", "int64", sample_ids.dtype)


def philox(seed: int, step: int, sample_ids: Tensor, blocks: int) -> Tensor:
    """The integers behind `normal`, for draws of other kinds; see reference.philox.

    One kernel on a GPU, where the definition's 150 small operations take the host longer than a
    step may last.
    """
    fused = sample_ids.is_cuda and not triton_launch.MISSING
    return (triton_kernel if fused else reference).philox(seed, step, sample_ids, blocks)


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

    Philox 4x32-10 (Salmon et al., SC 2011) and Box-Muller on 24-bit uniforms, so at most 5.77 in
    size. seed: 64 bits, step: 32 bits, both unsigned. sample_ids: (B,) int64, on the device that
    the result is wanted on. Returns (B, elements) in `dtype`. However a batch is split, ordered or
    restarted, a sample gets the same noise. Raises ValueError naming a bad argument.

    >>> ids = torch.tensor([3, 5])
    >>> noise = normal(seed=0, step=7, sample_ids=ids, elements=6)
    >>> torch.equal(noise[1:], normal(0, 7, ids[1:], 6))
    True
    """
    check_key("normal", seed, step, sample_ids)
    require_whole("normal", "elements", elements)
    require_float_dtype("normal", dtype)
    run = choose("normal", impl, IMPLEMENTATIONS, Kind(sample_ids.device, dtype))
    return run(seed, step, sample_ids, elements, dtype)
