"""Makes the device of a run ready."""

import torch

from .folder import RunError
from .memory import keep_freed_memory
from .threads import use_cores


def require(name: str) -> None:
    """RunError where a run is to compute on a GPU and torch sees none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise RunError("--device cuda: torch sees no CUDA device here; use --device cpu")


def make_ready(name: str) -> torch.device:
    """The device, a CPU with memory kept and cores counted; RunError as `require` has it."""
    require(name)
    if name == "cpu":
        keep_freed_memory()
        use_cores()
    return torch.device(name)
