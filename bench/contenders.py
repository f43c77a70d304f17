"""Turns an op's cases into calls to time, and checks how exact an implementation is before that.

An op's cases.py gives SHAPES, BENCH, DIFFERENTIABLE, inputs(name, dtype, seed) -> (arguments,
options), work(name, dtype, mode) -> (bytes, FLOPs) and, where an op writes into its arguments,
MUTATES: the positions of those; where it gives value and gradient at once, beside autograd's way,
one_pass(impl, arguments, options) -> a call that does. A benchmark named cpu-... runs on the CPU,
gpu-... on CUDA.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import ldae_fast.kernels
import peers
import torch
import torch._functorch.config
from torch import Tensor
from torch.utils._pytree import tree_map

from ldae_fast import ops
from ldae_fast.train.engine import pick_precision

torch._functorch.config.donated_buffer = False  # "bwd" runs one graph's backward again and again
MODES = ("fwd", "bwd", "fwdbwd", "step")
FLOAT32 = ("adamw_ema", "normal")  # in training, whatever the device
PRODUCTS = ("attention", "mlp_gelu")  # in what the device multiplies fast
ONLY = {"cpp": "cpu", "triton": "cuda", "cuda": "cuda"}  # the device that an implementation is for
WORST = 2.0  # an implementation may be this many times as far from float64 as plain torch


def op_names() -> list[str]:
    """Every op that has benchmark shapes, by name."""
    folders = [m.name for m in pkgutil.iter_modules(ldae_fast.kernels.__path__) if m.ispkg]
    return sorted(op for op in folders if getattr(cases(op), "BENCH", None))


def cases(op: str):
    """The op's cases module, None where it has none."""
    name = f"ldae_fast.kernels.{op}.cases"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return None


def implementations(op: str) -> list[str]:
    """The names that the op offers, without the definition, over all its tables."""
    module = importlib.import_module(f"ldae_fast.kernels.{op}")
    tables = [getattr(module, t, {}) for t in ("IMPLEMENTATIONS", "ON_CPU", "ON_GPU")]
    return [name for name in dict.fromkeys(n for t in tables for n in t) if name != "reference"]


def device_of(case: str) -> str:
    return "cuda" if case.startswith("gpu-") else "cpu"


def dtype_of(op: str, device: str) -> torch.dtype:
    """The one in which `ldae train` runs the op there; what only moves memory, in bfloat16."""
    if op in FLOAT32:
        return torch.float32
    return pick_precision("auto", torch.device(device)) if op in PRODUCTS else torch.bfloat16


def modes_of(op: str) -> tuple[str, ...]:
    """What is timed of an op: a step where it writes into its arguments, else both directions."""
    if getattr(cases(op), "MUTATES", None):
        return ("step",)
    return ("fwd", "bwd", "fwdbwd") if cases(op).DIFFERENTIABLE else ("fwd",)


def rows() -> Iterator[tuple[str, str, str, str]]:
    """(op, implementation, case, mode) of everything that can be timed on some machine."""
    for op in op_names():
        for case in cases(op).BENCH:
            for impl in implementations(op):
                if ONLY.get(impl, device_of(case)) != device_of(case):
                    continue
                for mode in modes_of(op):
                    yield op, impl, case, mode


class Call:
    """One way to run an op on one case: `values()` to compare, `timed(mode)` to time.

    What `timed` gives is called under `recorded(mode)`, which costs a call 30 us itself.
    """

    def __init__(
        self, run: Callable, arguments: list, options: dict, differentiable=(), mutates=()
    ):
        self.run, self.options, self.mutates = run, options, mutates
        self.plain = arguments
        self.leaves = list(arguments)
        for i in differentiable:
            self.leaves[i] = arguments[i].detach().clone().requires_grad_()
        self.wanted = [self.leaves[i] for i in differentiable]

    def values(self) -> list[Tensor]:
        """Outputs, or what was written into the arguments; then every gradient, in float64."""
        if self.mutates:
            fresh = copied(self.plain)
            self.run(*fresh, **self.options)
            return doubles([fresh[i] for i in self.mutates])
        outputs = tensors(self.run(*self.leaves, **self.options))
        return doubles([*outputs, *self.gradients(outputs)])

    def gradients(self, outputs: list[Tensor], keep: bool = False) -> list[Tensor]:
        used = [o for o in outputs if o.requires_grad]
        if not used:
            return []
        upstream = [upstream_like(o) for o in used]
        return list(torch.autograd.grad(used, self.wanted, upstream, retain_graph=keep))

    def timed(self, mode: str) -> Callable[[], object]:
        if mode in ("fwd", "step"):
            own = copied(self.plain) if self.mutates else self.plain
            return lambda: self.run(*own, **self.options)
        outputs = [o for o in tensors(self.run(*self.leaves, **self.options)) if o.requires_grad]
        upstream = [upstream_like(o) for o in outputs]
        if mode == "bwd":
            return lambda: torch.autograd.grad(outputs, self.wanted, upstream, retain_graph=True)

        def both():
            made = [o for o in tensors(self.run(*self.leaves, **self.options)) if o.requires_grad]
            return torch.autograd.grad(made, self.wanted, upstream)

        return both


def recorded(mode: str) -> AbstractContextManager:
    """Whether autograd records what is timed in that mode."""
    return torch.set_grad_enabled(mode not in ("fwd", "step"))


def tensors(made: object) -> list[Tensor]:
    """The tensors of an op's result: one, a tuple, or a dict of them."""
    if isinstance(made, Tensor):
        return [made]
    if isinstance(made, dict):
        made = [made[key] for key in sorted(made)]
    return [t for part in (made or ()) for t in tensors(part)]


def copied(tree: object) -> object:
    return tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, tree)


def doubles(made: object) -> list[Tensor]:
    return [t.detach().double() for t in tensors(made)]


def upstream_like(output: Tensor) -> Tensor:
    g = torch.Generator(output.device).manual_seed(7)
    return torch.randn(output.shape, generator=g, device=output.device).to(output.dtype)


@functools.lru_cache(maxsize=1)  # the rows of one case follow each other
def inputs(op: str, case: str, dtype: torch.dtype, device: str) -> tuple[list, dict]:
    def move(t):
        return t.to(device) if isinstance(t, Tensor) else t

    arguments, options = cases(op).inputs(case, dtype)
    return tree_map(move, list(arguments)), tree_map(move, dict(options))


def in_double(tree: object) -> object:
    """Floating tensors, and a dtype given as an option, in float64."""

    def double(t):
        if isinstance(t, Tensor):
            return t.double() if t.is_floating_point() else t
        return torch.float64 if isinstance(t, torch.dtype) else t

    return tree_map(double, tree)


def by(op: str, impl: str) -> Callable:
    function = getattr(ops, op)
    return lambda *arguments, **options: function(*arguments, impl=impl, **options)


def call(op: str, run: Callable, arguments: list, options: dict) -> Call:
    module = cases(op)
    return Call(run, arguments, options, tuple(module.DIFFERENTIABLE),
                tuple(getattr(module, "MUTATES", ())))  # fmt: skip


def timed(op: str, impl: str, arguments: list, options: dict, mode: str) -> Callable[[], object]:
    """What is timed of an implementation: in both directions its one pass, where it has that."""
    one_pass = getattr(cases(op), "one_pass", None)
    if mode == "fwdbwd" and one_pass:
        return one_pass(impl, arguments, options)
    return call(op, by(op, impl), arguments, options).timed(mode)


@functools.cache
def error_ratio(op: str, impl: str, case: str, dtype: torch.dtype, device: str) -> float:
    """`distance` on a case, once for all directions that are timed."""
    arguments, options = inputs(op, case, dtype, device)
    return distance(op, impl, arguments, options, dtype)


def distance(op: str, impl: str, arguments: list, options: dict, dtype: torch.dtype) -> float:
    """Largest error against float64 over plain torch's in the same dtype; the worst of all values.

    Plain torch is counted as at least half a unit in the last place of the largest value away:
    no result in that dtype can promise less.
    """
    exact = call(op, by(op, "reference"), in_double(arguments), in_double(options)).values()
    plain = call(op, peers.PLAIN.get(op, by(op, "reference")), arguments, options).values()
    tested = call(op, by(op, impl), arguments, options).values()
    return max(ratio(*three, dtype) for three in zip(tested, plain, exact, strict=True))


def ratio(tested: Tensor, plain: Tensor, exact: Tensor, dtype: torch.dtype) -> float:
    if exact.numel() == 0:
        return 0.0
    least = float(exact.abs().max()) * torch.finfo(dtype).eps / 2
    yardstick = max(float((plain - exact).abs().max()), least, torch.finfo(dtype).tiny)
    error = float((tested - exact).abs().max())
    return error / yardstick if error == error else float("inf")
