"""Launches Triton kernels: in sight of torch.compile on a GPU, or interpreted on a CPU.

`TRITON_INTERPRET=1`, set before the import, runs every kernel in Triton's interpreter on CPU
tensors: slow, for checking only.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from .implementation import Kind

try:
    import triton
    from triton.runtime import JITFunction

    MISSING = ""
    INTERPRETED = bool(triton.knobs.runtime.interpret)
    VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])
except ImportError as error:
    MISSING = f"triton does not import ({error})"
    INTERPRETED = False
    VERSION = (0, 0)

# Where triton knows nothing of a tile's addresses, threads side by side take neighbours along its
# first axis up to 3.6, along its last one from 3.7 on (seen in what 3.6.0, 3.7.1 and 3.9.0 make of
# it). They should lie side by side in memory: 32 addresses far apart take 32 times as long.
GATHERS_ALONG_FIRST = VERSION < (3, 7)

# How tl.dot keeps float32's digits: as six products of bfloat16 parts, which are rounded, where
# tf32x3 cuts off. The interpreter multiplies as numpy does, and knows the other by no name.
FLOAT32_PRODUCT = "ieee" if INTERPRETED else "bf16x6"


def refusal(x: Tensor | Kind) -> str:
    """Why the Triton kernels cannot take x; '' when they can."""
    if MISSING:
        return MISSING
    if x.dtype == torch.float64:
        return "it takes float32, bfloat16 or float16, x is torch.float64"
    if x.device.type == "cpu" and INTERPRETED:
        # The interpreter computes bfloat16 wrongly and truncates where it should round.
        return "Triton's interpreter is wrong in bfloat16" if x.dtype == torch.bfloat16 else ""
    if x.device.type != "cuda":
        return f"it runs on a CUDA device, x is on {x.device}"
    return ""


def on_device_of(args: tuple) -> AbstractContextManager:
    """Makes the first CUDA tensor's device the current one, where triton would launch otherwise."""
    if torch.cuda.is_initialized() and not torch.compiler.is_compiling():
        device = next((a.get_device() for a in args if isinstance(a, Tensor) and a.is_cuda), None)
        if device not in (None, torch.cuda.current_device()):
            return torch.cuda.device(device)
    return nullcontext()


def launch(kernel, grid: tuple[int, ...], *args, **constants) -> None:
    """kernel[grid](*args, **constants); an empty grid launches nothing."""
    if 0 in grid:
        return
    if isinstance(kernel, JITFunction):
        with on_device_of(args):
            torch.library.wrap_triton(kernel)[grid](*args, **constants)
    elif not any(isinstance(a, torch._subclasses.FakeTensor) for a in args):
        kernel[grid](*args, **constants)  # the interpreter has nothing to do for a fake tensor
