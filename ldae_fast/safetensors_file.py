"""A safetensors file, read whole."""

from pathlib import Path

from safetensors import safe_open
from torch import Tensor


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Its tensors by name, on the CPU, and its metadata.

    Raises OSError where it cannot be read, SafetensorError where it is something else.
    """
    path.open("rb").close()  # safe_open calls a file missing that it may not read
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, file.metadata() or {}
