"""Compiles an op's Triton kernels for sm_90 without a GPU, and reads what came out.

    python tests/aot.py OP CASE...      a line of JSON for each kernel that the op would launch
    python tests/aot.py FILE.py         the same for a module with kernels and main(launch)

How the launches are found: `launch`, which every launcher calls, is replaced by a recorder in each
triton_kernel module; the public op then runs with impl="triton" on meta tensors of the case's
shapes, forward and backward, its refusal of anything but CUDA taken away. The whole path is the one
that a GPU runs, up to the launch. Arguments become a signature as triton's own runtime makes it:
dtypes to pointers, ints by size, 1 to a constant, divisibility by 16 noted. A float becomes
float64, as under torch.compile, which looks into all ops but one; alone it would become float32.
"""

import contextlib
import importlib
import importlib.util
import io
import json
import os
import pkgutil
import re
import sys

import torch
import triton
from torch import Tensor
from torch._library.custom_ops import CustomOpDef
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_map
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import JITFunction
from triton.runtime.autotuner import Autotuner

TARGET = GPUTarget("cuda", 90, 32)
OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg")
POINTERS = {
    torch.float64: "*fp64", torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16",
    torch.int64: "*i64", torch.int32: "*i32", torch.int8: "*i8", torch.uint8: "*u8",
    torch.bool: "*i1", torch.float8_e4m3fn: "*fp8e4nv", torch.float8_e5m2: "*fp8e5",
}  # fmt: skip
DTYPES = (torch.bfloat16, torch.float32)
ACCESS = re.compile(r"\b(ld|st)\.global([.\w:]*?)((?:\.v\d)?)\.[bfus](\d+)\b")
DOUBLE = re.compile(r"\b(?:add|sub|mul|fma|div|sqrt|rcp|max|min)[.\w]*\.f64\b")
OPAQUE = ("adamw_ema_kernel",)  # launched by an op that torch.compile does not look into
WIDE_COPY = re.compile(r"cp\.async\.c[ag]\.shared\.global[^;]*?, (?:0x10|16)[,;]|cp\.async\.bulk")
DIVISIBLE = [["tt.divisibility", 16]]


def record(op: str, case: str, dtype: torch.dtype) -> list[tuple]:
    """(kernel, positional arguments, keywords) of every launch, forward and backward."""
    launches = []

    def recorder(kernel, grid, *arguments, **constants):
        assert max(grid[1:], default=0) < 2**16, f"CUDA takes no grid of {grid}"
        if 0 not in tuple(g for g in grid if isinstance(g, int)):
            launches.append((kernel, arguments, constants))

    arguments, options, differentiable = meta_inputs(op, case, dtype)
    with patched(op, recorder):
        outputs = flat(getattr(ops(), op)(*arguments, impl="triton", **options))
        outputs = [o for o in outputs if o.requires_grad]
        assert outputs or not differentiable, f"{op} lost its derivative: no backward to compile"
        if outputs:
            leaves = [arguments[i] for i in differentiable]
            upstream = [torch.empty_like(o) for o in outputs]
            torch.autograd.grad(outputs, leaves, upstream, allow_unused=True)
    return launches


def ops():
    return importlib.import_module("ldae_fast.ops")


def flat(made: object) -> list[Tensor]:
    if isinstance(made, Tensor):
        return [made]
    parts = made.values() if isinstance(made, dict) else made or ()
    return [t for part in parts for t in flat(part)]


def meta_inputs(op: str, case: str, dtype: torch.dtype) -> tuple[list, dict, tuple]:
    """The case's arguments with shapes, strides and dtypes but no memory."""
    module = importlib.import_module(f"ldae_fast.kernels.{op}.cases")
    try:
        with FakeTensorMode():  # takes no memory and no time
            made = module.inputs(case, dtype)
    except Exception:  # a factory that reads values needs real ones
        made = module.inputs(case, dtype)

    def meta(t):
        if not isinstance(t, Tensor):
            return t
        return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")

    arguments, options = tree_map(meta, list(made[0])), tree_map(meta, dict(made[1]))
    for i in module.DIFFERENTIABLE:
        arguments[i].requires_grad_()
    return arguments, options, tuple(module.DIFFERENTIABLE)


@contextlib.contextmanager
def patched(op: str, recorder):
    """Launches go to the recorder, and the op's Triton implementation refuses nothing."""
    package = importlib.import_module("ldae_fast.kernels")
    undo = []
    for folder in pkgutil.iter_modules(package.__path__):
        with contextlib.suppress(ModuleNotFoundError):
            module = importlib.import_module(f"{package.__name__}.{folder.name}.triton_kernel")
            opaque = {n: v for n, v in vars(module).items() if isinstance(v, CustomOpDef)}
            undo.append((module, {"launch": module.launch} | opaque))
            # A custom_op runs nothing on meta tensors; what it wraps does, up to the launch.
            vars(module).update({"launch": recorder} | {n: v._init_fn for n, v in opaque.items()})
    tables = [v for v in vars(importlib.import_module(f"{package.__name__}.{op}")).values()
              if isinstance(v, dict) and hasattr(v.get("triton"), "refusal")]  # fmt: skip
    kept = [(table, table["triton"]) for table in tables]
    for table, one in kept:
        table["triton"] = one._replace(refusal=lambda *_, **__: "")
    try:
        yield
    finally:
        for module, names in undo:
            vars(module).update(names)
        for table, one in kept:
            table["triton"] = one


def sources(launch: tuple) -> list[tuple[str, ASTSource, dict]]:
    """(name, source, compile options) of a launch; of every configuration of an autotuned one."""
    kernel, arguments, keywords = launch
    if isinstance(kernel, Autotuner):
        each = [(kernel.fn, arguments, keywords | c.all_kwargs()) for c in kernel.configs]
        return [one for launched in each for one in sources(launched)]
    assert isinstance(kernel, JITFunction), f"cannot compile a {type(kernel).__name__}"
    options = {k: v for k, v in keywords.items() if k in OPTIONS and v is not None}
    named = {p.name: p.default for p in kernel.params if p.has_default}
    named |= dict(zip(kernel.arg_names, arguments))
    named |= {k: v for k, v in keywords.items() if k in kernel.arg_names}
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = named[parameter.name]
        kind, aligned = specialised(parameter, value)
        if kind == "fp64" and kernel.fn.__name__ in OPAQUE:
            kind = "fp32"
        signature[parameter.name] = kind
        if kind == "constexpr":
            constants[parameter.name] = value
        elif aligned:
            attributes[(i,)] = DIVISIBLE
    return [(kernel.fn.__name__, ASTSource(kernel, signature, constants, attributes), options)]


def specialised(parameter, value: object) -> tuple[str, bool]:
    """A kernel argument's type, and whether triton may take it as divisible by 16."""
    if parameter.is_constexpr or value is None:
        return "constexpr", False
    if isinstance(value, Tensor):
        return POINTERS[value.dtype], value.storage_offset() * value.itemsize % 16 == 0
    if isinstance(value, bool):
        return "i1", False
    if isinstance(value, float):
        return "fp64", False
    if value == 1 and not parameter.do_not_specialize:
        return "constexpr", False
    kind = "i32" if -(2**31) <= value < 2**31 else "i64"
    return kind, value % 16 == 0 and not parameter.do_not_specialize


def compiled(name: str, source: ASTSource, options: dict) -> dict:
    """What is asserted on: spills, shared memory, bytes of global accesses, matrix products."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        made = triton.compile(source, target=TARGET, options=options)
    ptx, ttir, report = made.asm["ptx"], made.asm["ttir"], said.getvalue()
    bytes_of = {f"{kind}_{size}": 0 for kind in ("ld", "st") for size in ("wide", "narrow")}
    for kind, _, vector, bits in ACCESS.findall(ptx):
        width = int(bits) // 8 * int(vector[2:] or 1)
        bytes_of[f"{kind}_{'wide' if width >= 16 else 'narrow'}"] += width
    bytes_of["ld_wide"] += 16 * len(WIDE_COPY.findall(ptx))
    return {
        "kernel": name,
        "signature": {k: str(v) for k, v in source.signature.items() if v != "constexpr"},
        "constants": {source.fn.arg_names[k[0]]: str(v) for k, v in source.constants.items()},
        "options": options,
        "shared": made.metadata.shared,
        "spills": sum(map(int, re.findall(r"(\d+) bytes spill", report))),
        "registers": int(re.search(r"Used (\d+) registers", report)[1]),
        "dot16": bool(re.search(r"tt\.dot .*x(bf16|f16)[>,]", ttir)),
        "mma": bool(re.search(r"\b(wgmma\.mma_async|mma\.sync)", ptx)),
        "doubles": len(DOUBLE.findall(ptx)),
        **bytes_of,
    }


def launches_of(words: list[str]):
    """The launches that the command line asks for."""
    if words[0].endswith(".py"):
        spec = importlib.util.spec_from_file_location("kernels_to_compile", words[0])
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield "", from_file(module)
        return
    op, *cases = words
    for case in cases:
        # On a GPU the attention kernel refuses float32, which would not fit on chip.
        for dtype in DTYPES[:1] if op == "attention" else DTYPES:
            yield f"{case} {str(dtype)[6:]}", record(op, case, dtype)


def from_file(module) -> list[tuple]:
    launches = []

    def recorder(kernel, *arguments, **constants):
        launches.append((kernel, arguments, constants))

    module.main(recorder)
    return launches


def main(words: list[str]) -> None:
    assert not os.environ.get("TRITON_INTERPRET"), "TRITON_INTERPRET must not be set to compile"
    # ptxas tells of registers and spills while triton has it compile, so nothing may be in a cache.
    triton.knobs.nvidia.dump_ptxas_log = triton.knobs.compilation.always_compile = True
    seen = set()
    for case, launches in launches_of(words):
        # stands also for "it ran": an op that launched nothing is the caller's to judge
        print(json.dumps({"case": case, "launches": len(launches)}), flush=True)
        for launch in launches:
            big = max(
                (t.numel() * t.itemsize for t in launch[1] if isinstance(t, Tensor)), default=0
            )
            for name, source, options in sources(launch):
                key = (name, str(source.signature), str(source.constants), str(source.attrs),
                       str(options))  # fmt: skip
                if key not in seen:
                    seen.add(key)
                    row = {"case": case, "bytes": big, **compiled(name, source, options)}
                    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
