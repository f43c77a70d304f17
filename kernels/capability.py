"""A CUDA device's compute capability, as torch.compile may take it for granted."""

import torch


@torch.compiler.assume_constant_result
def capability(index: int) -> int:
    """Of the device with that index, as one number: 90 for 9.0."""
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor
