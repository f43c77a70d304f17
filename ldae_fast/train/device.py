"""Makes the device of a run ready."""

import torch
from torch import nn

from ..threads import use_cores
from .folder import RunError
from .memory import keep_freed_memory, promise_all_memory, refuse_what_is_not_there


def require(name: str) -> None:
    """RunError where a run is to compute on a GPU and torch sees none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise RunError("--device cuda: torch sees no CUDA device here; use --device cpu")


def make_ready(name: str) -> torch.device:
    """The device, a CPU with memory kept and bounded and cores counted; RunError as `require`."""
    require(name)
    if name == "cpu":
        keep_freed_memory()
        refuse_what_is_not_there()
        use_cores()
    else:
        promise_all_memory()  # which CUDA maps more of than there is
    return torch.device(name)


def on_device(module: nn.Module, device: torch.device) -> nn.Module:
    """The module there. Tensors without content, of which `ldae plan` makes it on a CPU, cannot be
    moved at all, not even to where they are."""
    return module if device.type == "cpu" else module.to(device)
