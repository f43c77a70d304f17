"""Reads the weights that others have published, of which nothing is run."""

from pathlib import Path

import torch
from safetensors.torch import load_file


def read_weights(path: Path) -> dict:
    """What a .safetensors file, or a .pth file of plain tensors, holds.

    Raises what the file's reader does: whoever calls knows which network is wanted, and so what to
    say of a file that holds another.
    """
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)
