"""The compiled normals."""

import torch
from torch import Tensor

from .. import native


def refusal(sample_ids: Tensor) -> str:
    """Why the compiled op cannot take them; '' when it can."""
    if sample_ids.device.type != "cpu":
        return f"it runs on a CPU, sample_ids are on {sample_ids.device}"
    return native.MISSING


if not native.MISSING:

    @torch.library.register_fake("ldae::normal")
    def _(seed, step, sample_ids, elements, dtype):
        return sample_ids.new_empty((len(sample_ids), elements), dtype=dtype)


def signed(seed: int) -> int:
    """The same 64 bits as the signed integer that an op's schema takes."""
    return seed - 2**64 if seed >= 2**63 else seed


def normal(seed: int, step: int, sample_ids: Tensor, elements: int, dtype: torch.dtype) -> Tensor:
    return torch.ops.ldae.normal(signed(seed), step, sample_ids.contiguous(), elements, dtype)
