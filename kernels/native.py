"""The compiled library of csrc/: loaded once where it was built, or the reason why it is not there.

environment.py says what LDAE_NATIVE and LDAE_ISA make of it.
"""

import importlib

import torch
from torch import Tensor

from . import environment

DTYPES = (torch.float32, torch.bfloat16)


def load() -> str:
    """Loads the library. Returns why it cannot be used, '' when it can."""
    environment.isa()
    wanted = environment.native()
    if wanted == "0":
        return "LDAE_NATIVE=0 leaves the compiled library out"
    try:
        importlib.import_module(".library", __package__)
    except ImportError as error:
        reason = f"the compiled library was not built or does not load ({error})"
        if wanted == "1":
            raise ImportError(f"LDAE_NATIVE=1, but {reason}") from error
        return reason
    return ""


MISSING = load()


def refusal(x: Tensor) -> str:
    """Why the compiled CPU ops cannot take x; '' when they can."""
    if x.device.type != "cpu":
        return f"it runs on a CPU, x is on {x.device}"
    if x.dtype not in DTYPES:
        return f"it takes float32 or bfloat16, x is {x.dtype}"
    return MISSING
