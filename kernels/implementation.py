"""Chooses which implementation of an op runs, and refuses bad arguments by name."""

import functools
import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


def never(x: Tensor) -> str:
    """The refusal of an implementation that takes every argument: none."""
    return ""


class Implementation(NamedTuple):
    """One way to run an op. refusal(x): why it cannot take the op's first tensor, '' if it can."""

    run: Callable
    refusal: Callable[[Tensor], str] = never


def choose(op: str, impl: str, table: Mapping[str, Implementation], x: Tensor) -> Callable:
    """The function in `table` (name -> implementation, fastest first) that `impl` asks for.

    x: the tensor whose device and dtype decide who can run. A named implementation that cannot run
    raises ValueError with the reason; only "auto" chooses by itself. `LDAE_IMPL` goes over whatever
    a caller named: `reference` for every op, or pairs `op=impl` by comma for some.
    """
    impl = forced(os.environ.get("LDAE_IMPL", ""), op.removesuffix("_and_gradient")) or impl
    if impl == "auto":
        return next(one.run for one in table.values() if not one.refusal(x))
    if impl not in table:
        raise ValueError(f"{op}: impl must be one of {', '.join(['auto', *table])}; got {impl!r}")
    reason = table[impl].refusal(x)
    if reason:
        raise ValueError(f"{op}: impl {impl!r} cannot run here: {reason}")
    return table[impl].run


def forced(setting: str, op: str) -> str:
    """The implementation of `op` that a value of LDAE_IMPL asks for, '' for none."""
    if setting in ("", "reference"):
        return setting
    pairs = [pair.partition("=") for pair in setting.split(",")]
    if not all(name and impl for name, _, impl in pairs):
        raise ValueError(f"LDAE_IMPL must be reference, or op=impl by comma; got {setting!r}")
    return {name: impl for name, _, impl in pairs}.get(op, "")


def require(condition: bool, op: str, argument: str, expected: object, came: object) -> None:
    """ValueError that names the argument, what was expected and what came, unless `condition`."""
    if not condition:
        raise ValueError(f"{op}: {argument} must be {expected}; got {came}")


def full_precision(function: Callable) -> Callable:
    """Keeps a definition's products in float32 or float64 when a caller's autocast is on."""

    @functools.wraps(function)
    def run(first: torch.Tensor, *args):
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *args)

    return run
