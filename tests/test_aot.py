"""Every Triton kernel compiles for sm_90 (H100) on a machine without a GPU, and into good code.

Asserted of each kernel, configuration and dtype that a benchmark case launches: no spilled
registers, shared memory within an SM's 227 KiB, 16-byte global accesses, nothing in float64, and
matrix instructions where 16-bit values are multiplied. Small and odd shapes must compile without
spills too. How the launches are found is said in aot.py; ops are found by their triton_kernel.py,
so a new one needs no line here.
"""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from aot import record
from ldae_fast.kernels.denoise_loss import able
from ldae_fast.kernels.denoise_loss.triton_kernel import FITS
from ldae_fast.kernels.patch_pca_noise import cases as noise
from torch._subclasses import FakeTensorMode

from ldae_fast import kernels

HERE = Path(__file__).parent
DROPPED = ("TRITON_INTERPRET", "LDAE_IMPL", "PYTHONSAFEPATH")  # it imports what lies beside it
SHARED_MEMORY = 227 * 1024
BIG = 1 << 20  # bytes of a tensor whose traffic counts
NARROW_ALLOWED = 64  # bytes of scalar accesses a thread may have beside its wide ones
# (op, kernel): why this kernel may read or write less than 16 bytes at a time
NARROW = {
    ("gate_residual_layernorm_modulate", "adaln_backward_kernel"): (
        "triton 3.6 reads gate and scale 8 bytes at a time: once for 32 tokens"
    ),
    ("adamw_ema", "adamw_ema_kernel"): "the branch for a tensor's last block is masked, so narrow",
}
# (op, kernel): why this kernel may compute in float64
DOUBLES = {
    ("patch_pca_noise", "noise_fold_kernel"): "it folds the tokenizer's matrices, once for all",
}

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def compile_all(folder: Path, *words) -> tuple[list[dict], list[dict]]:
    """(runs, kernels) that aot.py reports; in a process of its own, with a cache of its own."""
    environment = {k: v for k, v in os.environ.items() if k not in DROPPED}
    done = subprocess.run(
        [sys.executable, str(HERE / "aot.py"), *map(str, words)],
        env=environment | {"TRITON_CACHE_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [x for x in lines if "launches" in x], [x for x in lines if "kernel" in x]


def faults(row: dict, op: str = "", fast: bool = True) -> list[str]:
    """What is wrong with one compiled kernel, in words; fast: the shape is one to be fast on."""
    wrong = []
    if row["spills"]:
        wrong.append(f"spills {row['spills']} bytes")
    if row["shared"] > SHARED_MEMORY:
        wrong.append(f"takes {row['shared']} bytes of shared memory")
    if row["doubles"] and (op, row["kernel"]) not in DOUBLES:
        wrong.append("computes in float64, as a float argument makes it do under torch.compile")
    if row["dot16"] and not row["mma"]:
        wrong.append("multiplies 16-bit values without matrix instructions")
    if fast and row["bytes"] >= BIG and not row["ld_wide"] + row["st_wide"]:
        wrong.append("has no 16-byte global access")
    if fast and row["bytes"] >= BIG and (op, row["kernel"]) not in NARROW:
        for kind, word in (("ld", "loads"), ("st", "stores")):
            narrow, wide = row[f"{kind}_narrow"], row[f"{kind}_wide"]
            if narrow > max(wide, NARROW_ALLOWED):
                wrong.append(f"{word} {narrow} bytes by narrow accesses, {wide} by wide ones")
    return wrong


def complaints(rows: list[dict], op: str, fast: bool) -> list[str]:
    return [
        f"{row['kernel']} ({row['case']}, {row['constants']}, {row['options']}) {fault}"
        for row in rows
        for fault in faults(row, op, fast)
    ]


def ops_with_triton() -> list[str]:
    return sorted(f.parent.name for f in Path(kernels.__path__[0]).glob("*/triton_kernel.py"))


def cases(op: str):
    return importlib.import_module(f"ldae_fast.kernels.{op}.cases")


def taken(op: str, shape: tuple) -> bool:
    """Whether a GPU would be given the shape: attention's kernel refuses small heads."""
    return op != "attention" or shape[3] >= 16


def names(op: str) -> tuple[list[str], list[str]]:
    """The cases to be fast on, and the small and odd ones."""
    module = cases(op)
    fast = [name for name in module.BENCH if name.startswith("gpu-")]
    return fast, [name for name, shape in module.SHAPES.items() if taken(op, shape)]


@pytest.fixture(scope="module")
def made(request, tmp_path_factory) -> tuple[str, list[dict], list[dict]]:
    """(op, runs, kernels), of all cases in one process, as each takes seconds to load torch.

    The cases to be fast on come first, since a kernel that was compiled is not compiled again.
    """
    op = request.param
    fast, odd = names(op)
    return op, *compile_all(tmp_path_factory.mktemp(op), op, *fast, *odd)


def of(lines: list[dict], cases: list[str]) -> list[dict]:
    return [line for line in lines if line["case"].split()[0] in cases]


@pytest.mark.parametrize("made", ops_with_triton(), indirect=True)
def test_benchmark_shapes_compile_into_good_code(made):
    op, runs, rows = made
    fast, _ = names(op)
    assert fast, "no gpu- case in BENCH"
    runs, rows = of(runs, fast), of(rows, fast)
    assert all(run["launches"] for run in runs), f"nothing was launched: {runs}"
    print(*(json.dumps(row) for row in rows), sep="\n")  # shown when it fails, or with -s
    assert not complaints(rows, op, fast=True), "\n".join(complaints(rows, op, fast=True))


@pytest.mark.slow
@pytest.mark.parametrize("made", ops_with_triton(), indirect=True)
def test_odd_shapes_compile(made):
    op, runs, rows = made
    _, odd = names(op)
    launched = {run["case"].split()[0] for run in of(runs, odd) if run["launches"]}
    assert launched >= set(odd) - {"empty", "none"}
    wrong = complaints(of(rows, odd), op, fast=False)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("op", ops_with_triton())
def test_a_grid_takes_a_batch_of_many(op, monkeypatch):
    """Launched for 70,000 samples or rows, where CUDA's second and third axis end at 65,535."""
    shapes, name = cases(op).SHAPES, "small"
    if op == "denoise_loss":
        shapes, name = noise.SHAPES, shapes["small"][0]
    first, *rest = shapes[name]
    many = (70_000, *first[1:]) if isinstance(first, tuple) else 70_000
    monkeypatch.setitem(shapes, name, (many, *rest))
    assert record(op, "small", torch.float32)


def test_auto_leaves_a_loss_that_would_spill_to_torch(tmp_path):
    _, rows = compile_all(tmp_path, HERE / "aot_loss.py")
    assert not complaints(rows, "denoise_loss", fast=True), complaints(rows, "denoise_loss", True)
    with FakeTensorMode():
        pred, basis = torch.empty(1, 1, 768, device="cuda"), torch.empty(FITS + 1, 768)
    assert able("auto", pred, basis[:FITS]) == "auto"
    assert able("auto", pred, basis) == "reference"
    assert able("triton", pred, basis) == "triton"


def test_passes_that_find_a_largest_value_compile(tmp_path):
    _, rows = compile_all(tmp_path, HERE / "aot_float8.py")
    asked = [row for row in rows if "True" in map(row["constants"].get, ("LARGEST", "SUMS"))]
    found = {row["kernel"] for row in asked}
    assert found == {"float8_look_kernel", "gelu_forward_kernel", "gelu_backward_kernel"}
    assert not complaints(rows, "mlp_gelu", fast=True), complaints(rows, "mlp_gelu", True)


def test_faults_are_seen(tmp_path):
    """The check itself: each faulty kernel is found faulty in its way, the sound one is not."""
    _, rows = compile_all(tmp_path, HERE / "aot_examples.py")
    rows = {row["kernel"]: row for row in rows}
    assert faults(rows["sound"]) == []
    assert faults(rows["scalar_access"])[0] == "has no 16-byte global access"
    assert any("float64" in fault for fault in faults(rows["scaled"]))
    assert any("spills" in fault for fault in faults(rows["spilling"]))
    assert rows["product"]["dot16"]
    assert not faults(rows["product"], fast=False)
    assert faults(rows["product"] | {"mma": False}, fast=False)
    assert faults(rows["sound"] | {"shared": SHARED_MEMORY + 1})
    narrow = rows["sound"] | {"st_wide": 0, "st_narrow": 128}
    assert faults(narrow) == ["stores 128 bytes by narrow accesses, 0 by wide ones"]
