"""Chooses which implementation of an op runs, and refuses bad arguments by name."""

import functools
import numbers
import sys
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad

from .environment import VariableError, forced

# Python's own first, which a call almost always has: numpy's are found by a search.
WHOLE = (int, numbers.Integral, torch.SymInt)
REAL = (float, int, numbers.Real, torch.SymInt, torch.SymFloat)
LARGEST = sys.float_info.max  # an int may be larger, and then no kernel takes it
NONE: Mapping[str, object] = {}
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # and no float8
FLOAT = "a float type of 16 to 64 bits"


class Kind(NamedTuple):
    """What an implementation is asked of a tensor that is yet to be made."""

    device: torch.device
    dtype: torch.dtype


def never(x: Tensor | Kind) -> str:
    """The refusal of an implementation that takes every argument: none."""
    return ""


class Implementation(NamedTuple):
    """One way to run an op. refusal(x): why it cannot take the op's first tensor, '' if it can."""

    run: Callable
    refusal: Callable[[Tensor | Kind], str] = never


def choose(
    op: str,
    impl: str,
    table: Mapping[str, Implementation],
    x: Tensor | Kind,
    constants: Mapping[str, object] = NONE,
) -> Callable:
    """The function in `table` (name -> implementation, fastest first) that `impl` asks for.

    x: the tensor whose device and dtype decide who can run. constants: arguments by name in which
    the definition alone has a derivative. A named implementation that cannot run raises ValueError
    with the reason; only "auto" chooses by itself. `LDAE_IMPL` goes over whatever a caller named:
    `reference` for every op, or pairs `op=impl` by comma for some.
    """
    named = forced(op.removesuffix("_and_gradient"))
    impl, problem, where = (
        (named, VariableError, "LDAE_IMPL: ") if named else (impl, ValueError, "")
    )
    derivative = beyond_kernels(constants)
    if impl == "auto":
        if derivative:
            return table["reference"].run
        for one in table.values():
            if not one.refusal(x):
                return one.run
    require_impl(where + op, impl, table, problem)
    reason = table[impl].refusal(x) or (derivative if impl != "reference" else "")
    if reason:
        raise problem(f"{where}{op}: impl {impl!r} cannot run here: {reason}")
    return table[impl].run


def beyond_kernels(constants: Mapping[str, object]) -> str:
    """Why a derivative is wanted that only the definitions have; '' where none is.

    A registered op gives nothing there, without a word: a tangent of zero, a gradient of None.
    """
    # torch.compile has an interpreter of its own on this stack, and traces the transforms itself.
    transformed = not torch.compiler.is_compiling() and peek_interpreter_stack() is not None
    if transformed or forward_ad._current_level >= 0:
        return "forward-mode derivatives and torch.func take impl='reference'"
    if constants and torch.is_grad_enabled():
        for name, x in constants.items():
            if isinstance(x, Tensor) and x.requires_grad:
                return f"{name} requires a gradient, which impl='reference' alone gives"
    return ""


def require_impl(op: str, impl: str, table: Collection[str], problem=ValueError) -> None:
    """`problem` that says what there is unless impl is "auto" or a name in `table`."""
    if impl != "auto" and impl not in table:
        choices = ", ".join(["auto", *table])
        raise problem(f"{op}: impl must be one of {choices}; got {impl!r}")


def refuse(op: str, argument: str, expected: object, came: object) -> NoReturn:
    """ValueError that names the argument, what was expected and what came.

    expected: in words, or the value. came: the value, or its type where that alone is wrong.
    Called where a check has failed: in a call that is right, nothing puts words together.
    """
    expected, came = (tuple(x) if isinstance(x, torch.Size) else x for x in (expected, came))
    if isinstance(came, Tensor):  # one of a single value would print as that number
        came = f"a tensor {tuple(came.shape)} of {came.dtype}"
    elif isinstance(came, str):
        came = repr(came)
    elif isinstance(came, type):
        came = came.__name__
    raise ValueError(f"{op}: {argument} must be {expected}; got {came}")


def number(x: object, least: float = -LARGEST) -> bool:
    """Whether x is a finite real number, no bool, that a float holds, and at least so large."""
    return isinstance(x, REAL) and not isinstance(x, bool) and least <= x <= LARGEST


def require_number(op: str, name: str, x: object) -> None:
    """ValueError unless x is a finite number, no bool, 0 or more."""
    if not number(x, 0):
        refuse(op, name, "a finite number, 0 or more", x)


def require_whole(op: str, name: str, x: object, least: int = 0, bits: int = 63) -> None:
    """ValueError unless x is a whole number, no bool, from `least` to 2^bits - 1."""
    if not isinstance(x, WHOLE) or isinstance(x, bool) or not least <= x < 2**bits:
        refuse(op, name, f"a whole number from {least} to 2^{bits} - 1", x)


def require_floats(op: str, **tensors: object) -> None:
    """ValueError that names the first that is no dense float tensor, or on another device."""
    traced = torch.compiler.is_compiling()  # which lets no backward of a Function ask for a layout
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            refuse(op, name, "a tensor", type(x))
        if x.dtype not in FLOATS:
            refuse(op, f"{name}.dtype", FLOAT, x.dtype)
        if not traced and x.layout != torch.strided:
            refuse(op, name, "dense", x.layout)
    require_device(op, next(iter(tensors.values())), **tensors)


def require_float_dtype(op: str, dtype: object) -> None:
    """ValueError unless `dtype` is a float type that the ops give."""
    if not (isinstance(dtype, torch.dtype) and dtype in FLOATS):
        refuse(op, "dtype", FLOAT, dtype)


def require_device(op: str, first: Tensor, **tensors: object) -> None:
    """ValueError that names the first tensor that is not where `first` lies."""
    device = first.device
    for name, x in tensors.items():
        if isinstance(x, Tensor) and x.device != device:
            refuse(op, f"{name}.device", device, x.device)


def require_first_order(op: str) -> None:
    """RuntimeError in a backward pass that autograd records, which would take it for a constant."""
    if torch.is_grad_enabled():  # by create_graph
        raise RuntimeError(
            f"{op}: its gradient must be differentiated by impl='reference', as this one has no "
            "second derivative"
        )


def under_autocast(x: Tensor) -> bool:
    """Whether autocast is on where x lies; a device like meta has none."""
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def without_autocast(function: Callable) -> Callable:
    """Keeps products in the dtypes that a function gives them when a caller's autocast is on."""

    @functools.wraps(function)
    def run(first: Tensor, *args):
        if not under_autocast(first):  # most calls need no context
            return function(first, *args)
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *args)

    return run
