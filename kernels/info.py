"""Says what runs here: versions, devices, and for each op the choice and every refusal's reason."""

import importlib
import importlib.metadata
import os
import platform
from collections.abc import Mapping

import torch
from torch import Tensor

from . import environment, native

PACKAGES = ("torch", "triton", "xformers", "flash-attn-3", "ldae_fast")
DTYPES = (torch.float32, torch.bfloat16)
# As csrc/vec.h chooses: the flags that each set needs, the best first.
SETS = {
    "avx512bf16": ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "avx512_vnni"),
    "avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl"),
    "avx2": ("avx2", "fma", "f16c"),
    "generic": (),
}


def report() -> dict:
    """Everything that `ldae info` shows, ready for JSON."""
    return {
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "devices": devices(),
        "instruction_sets": instruction_sets(),
        "native": {"loaded": not native.MISSING, "reason": native.MISSING},
        "forced": os.environ.get("LDAE_IMPL", ""),
        "ops": [
            row for op in environment.OPS for device in usable() for row in choices(op, device)
        ],
    }


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def usable() -> list[str]:
    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def devices() -> list[dict]:
    """The CPU, then each CUDA device."""
    found = [{"device": "cpu", "name": cpu_facts()[0], "threads": torch.get_num_threads()}]
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        facts = torch.cuda.get_device_properties(i)
        found.append({
            "device": f"cuda:{i}", "name": facts.name, "memory_gib": facts.total_memory / 2**30,
            "capability": f"{facts.major}.{facts.minor}",
        })  # fmt: skip
    return found


def cpu_facts() -> tuple[str, frozenset[str]]:
    """The processor's name and its flags, as far as Linux tells."""
    try:
        with open("/proc/cpuinfo") as file:
            lines = dict(line.split(":", 1) for line in file if ":" in line)
    except OSError:
        return platform.processor() or platform.machine(), frozenset()
    facts = {key.strip(): value.strip() for key, value in lines.items()}
    name = facts.get("model name", platform.machine())
    return name, frozenset(facts.get("flags", "").split())


def instruction_sets() -> dict:
    """Which sets the CPU has and which one the compiled ops take; amx is torch's own matter."""
    flags = cpu_facts()[1]
    there = [name for name, needed in SETS.items() if flags.issuperset(needed)]
    named = environment.isa()
    chosen = named if named in there else there[0]
    return {"available": there, "chosen": chosen, "amx": "amx_tile" in flags, "LDAE_ISA": named}


def table_of(op: str, device: str) -> Mapping:
    """name -> implementation, the fastest first, as the op's own dispatch has it."""
    module = importlib.import_module(f"{__package__}.{op}")
    own = "ON_GPU" if device == "cuda" else "ON_CPU"
    return getattr(module, own, None) or getattr(module, "IMPLEMENTATIONS", {})


def choices(op: str, device: str) -> list[dict]:
    """For each dtype: what "auto" takes, and why it does not take each of the others."""
    rows = []
    for dtype in DTYPES:
        x = example(op, dtype).to(device)
        reasons = {name: one.refusal(x) for name, one in table_of(op, device).items()}
        auto = next((name for name, reason in reasons.items() if not reason), None)
        others = {n: reason or "can run too" for n, reason in reasons.items() if n != auto}
        rows.append({"op": op, "device": device, "dtype": str(dtype).removeprefix("torch."),
                     "auto": auto, "others": others})  # fmt: skip
    same = len(rows) == 2 and all(rows[0][k] == rows[1][k] for k in ("auto", "others"))
    return [rows[0] | {"dtype": "any"}] if same and not dtype_named(rows[0]) else rows


def dtype_named(row: dict) -> bool:
    return any("torch." in reason for reason in row["others"].values())


def example(op: str, dtype: torch.dtype) -> Tensor:
    """What an op chooses by: a small call's first tensor, or one of the dtype that it makes."""
    name = f"{__package__}.{op}.cases"
    try:
        cases = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return torch.zeros(1, dtype=dtype)
    case = "small" if "small" in cases.SHAPES else next(iter(cases.SHAPES))
    arguments, options = cases.inputs(case, dtype)
    return torch.empty(0, dtype=dtype) if "dtype" in options else first_tensor(arguments)


def first_tensor(tree: object) -> Tensor | None:
    if isinstance(tree, Tensor):
        return tree
    parts = tree if isinstance(tree, list | tuple) else ()
    return next((t for t in map(first_tensor, parts) if t is not None), None)


def said(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def text(facts: dict) -> str:
    """The report for a terminal."""
    lines = [f"{name:<14}{value}" for name, value in facts["versions"].items()]
    for device in facts["devices"]:
        rest = {k: v for k, v in device.items() if k not in ("device", "name")}
        more = ", ".join(f"{k.replace('_', ' ')} {said(v)}" for k, v in rest.items())
        lines.append(f"{device['device']:<14}{device['name']} ({more})")
    sets = facts["instruction_sets"]
    amx = ", amx for torch's products" if sets["amx"] else ", no amx"
    named = sets["LDAE_ISA"]
    asked = "" if named == "best" else f" (LDAE_ISA={named})"
    lines.append(f"{'instructions':<14}{', '.join(sets['available'])}{amx}; "
                 f"compiled ops take {sets['chosen']}{asked}")  # fmt: skip
    state = "loaded" if facts["native"]["loaded"] else facts["native"]["reason"]
    lines.append(f"{'native':<14}{state}")
    if facts["forced"]:
        lines.append(f"{'LDAE_IMPL':<14}{facts['forced']}: taken over what is said below")
    width = max(len(row["op"]) for row in facts["ops"])
    lines.append(f"\n{'op':<{width}}  device  dtype     auto takes")
    for row in facts["ops"]:
        lines.append(f"{row['op']:<{width}}  {row['device']:<6}  {row['dtype']:<8}  {row['auto']}")
        lines += [f"{'':<{width}}    {name}: {why}" for name, why in row["others"].items()]
    return "\n".join(lines)
