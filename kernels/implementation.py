"""Chooses which implementation of an op runs, and refuses bad arguments by name."""

import functools
import os
from collections.abc import Callable, Mapping

import torch


def choose(
    op: str, impl: str, table: Mapping[str, Callable], refused: Mapping[str, str] | None = None
) -> Callable:
    """The function in `table` (name -> function, fastest first) that `impl` asks for.

    refused: name -> why that implementation cannot take these arguments, '' where it can. A named
    implementation that cannot run raises ValueError with the reason; only "auto" chooses by itself.
    `LDAE_IMPL=reference` forces the definition everywhere, over whatever a caller named.
    """
    refused = refused or {}
    if os.environ.get("LDAE_IMPL") == "reference":
        impl = "reference"
    if impl == "auto":
        return next(function for name, function in table.items() if not refused.get(name))
    if refused.get(impl):
        raise ValueError(f"{op}: impl {impl!r} cannot run here: {refused[impl]}")
    if impl in table:
        return table[impl]
    raise ValueError(f"{op}: impl must be one of {', '.join(['auto', *table])}; got {impl!r}")


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
