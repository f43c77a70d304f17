"""The normals as a CUDA kernel: the same registered op, which CUDA tensors dispatch to it."""

import torch
from torch import Tensor

from .. import native
from ..implementation import Kind


def refusal(wanted: Tensor | Kind) -> str:
    """Why a CUDA noise op cannot make a tensor like `wanted`; '' when it can."""
    if wanted.device.type != "cuda":
        return f"it runs on a CUDA device, not on {wanted.device}"
    if wanted.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it makes float32, bfloat16 or float16, not {wanted.dtype}"
    if native.MISSING:
        return native.MISSING
    built = torch._C._dispatch_has_kernel_for_dispatch_key("ldae::normal", "CUDA")
    return "" if built else "the compiled library was built without CUDA"
