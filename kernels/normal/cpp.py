"""The compiled normals."""

import torch
from torch import Tensor

from .. import native
from ..implementation import Kind


def refusal(wanted: Tensor | Kind) -> str:
    """Why a compiled noise op cannot make a tensor like `wanted`; '' when it can."""
    if wanted.device.type != "cpu":
        return f"it runs on a CPU, not on {wanted.device}"
    if wanted.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it makes float32, bfloat16 or float16, not {wanted.dtype}"
    return native.MISSING


if not native.MISSING:

    @torch.library.register_fake("ldae::normal")
    def _(seed, step, sample_ids, elements, dtype):
        return sample_ids.new_empty((sample_ids.shape[0], elements), dtype=dtype)


def signed(seed: int) -> int:
    """The same 64 bits as the signed integer that an op's schema takes."""
    return int(seed) - 2**64 if seed >= 2**63 else seed


def normal(seed: int, step: int, sample_ids: Tensor, elements: int, dtype: torch.dtype) -> Tensor:
    return torch.ops.ldae.normal(signed(seed), step, sample_ids.contiguous(), elements, dtype)
