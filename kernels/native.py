"""The compiled library of csrc/: loaded once where it was built, or the reason why it is not there.

`LDAE_NATIVE=0` leaves it out, `LDAE_NATIVE=1` makes its absence an error, auto (default) takes what
is there. `LDAE_ISA=generic|avx2|avx512` picks a lesser instruction set than the machine's best.
"""

import importlib
import os

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16)


def load() -> str:
    """Loads the library. Returns why it cannot be used, '' when it can."""
    wanted = os.environ.get("LDAE_NATIVE", "auto")
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
