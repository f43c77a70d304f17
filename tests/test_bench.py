"""The benchmarks' own machinery: the accuracy gate, the rounds, the table; and `ldae info`."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ldae, ldae_here
from ldae_fast.kernels import native

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def bench(monkeypatch):
    """bench/ on the path, as pytest and `python bench/table.py` have it."""
    monkeypatch.syspath_prepend(str(BENCH))
    import contenders
    import device_kernels
    import figures
    import interleave
    import table

    return SimpleNamespace(
        contenders=contenders,
        device_kernels=device_kernels,
        figures=figures,
        interleave=interleave,
        table=table,
    )


def stand_in(name: str, dtype: torch.dtype, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 5, 16, generator=g).to(dtype)
    return [x, *(torch.randn(3, 16, generator=g).to(dtype) for _ in range(2))], {}


CASES = SimpleNamespace(
    SHAPES={},
    BENCH={"cpu-a": 1, "gpu-a": 1},
    DIFFERENTIABLE=(0, 1, 2),
    inputs=stand_in,
    work=lambda name, dtype, mode: (1, 1),
)


@pytest.fixture
def with_cases(bench, monkeypatch):
    """layernorm_modulate with cases of the tests' own, and nothing else to measure."""
    monkeypatch.setattr(
        bench.contenders, "cases", lambda op: CASES if op == "layernorm_modulate" else None
    )
    bench.contenders.inputs.cache_clear()
    bench.contenders.error_ratio.cache_clear()
    return bench


def test_the_gate_sees_a_wrong_value_and_a_wrong_gradient(with_cases, monkeypatch):
    contenders = with_cases.contenders
    row = ("layernorm_modulate", "reference", "cpu-a", torch.float32, "cpu")
    assert contenders.error_ratio(*row) <= 1
    right = contenders.by

    def wrong_value(op, impl):
        run = right(op, impl)
        return run if impl == "reference" else lambda *a, **o: run(*a, **o) * (1 + 1e-5)

    def wrong_gradient(op, impl):
        run = right(op, impl)
        return run if impl == "reference" else lambda x, b, s: run(x, b.detach() + 0 * b, s)

    for fault in (wrong_value, wrong_gradient):
        monkeypatch.setattr(contenders, "by", fault)
        contenders.error_ratio.cache_clear()
        assert contenders.error_ratio("layernorm_modulate", "auto", *row[2:]) > contenders.WORST


def test_rounds_are_fair_and_their_figures_true(bench):
    order = []
    calls = {
        "slow": lambda: (order.append("slow"), time.sleep(0.1)),
        "fast": lambda: (order.append("fast"), time.sleep(0.001)),
    }
    times = bench.interleave.measure(calls, "cpu", 0.0)
    rounds = [len(times[name].samples) for name in calls]
    assert rounds == [bench.interleave.MINIMUM_ROUNDS] * 2
    timed = order[2 * bench.interleave.WARM_UP :]
    assert timed[:4] == ["slow", "fast", "fast", "slow"]  # each round starts with the next one
    assert times["slow"].p50 > 2 * times["fast"].p50
    assert times["slow"].quantile(0.2) <= times["slow"].p50 <= times["slow"].quantile(0.8)


def test_table_says_what_was_not_measured(with_cases, tmp_path):
    row = {"op": "layernorm_modulate", "impl": "cpp", "case": "cpu-a", "mode": "fwd",
           "dtype": "float32", "p50_us": 12.5, "x_eager": 2.0, "x_compile": 0.5,
           "x_peers": {"other": 1.5}}  # fmt: skip
    rows = with_cases.table.rows_of({"benchmarks": [{"extra_info": row}]})
    lines = with_cases.table.table(rows).splitlines()
    measured = [line for line in lines if "12.5" in line]
    assert len(measured) == 1
    assert "other 1.50" in measured[0]
    others = [line for line in lines[1:] if line not in measured]
    assert any(line.startswith("not measured: layernorm_modulate triton: gpu-a") for line in others)
    assert not any("layernorm_modulate cpp: cpu-a fwd," in line for line in others)
    assert all(line.startswith("not measured: ") for line in others)
    moved = [row | {"spread": 1.4}, row | {"spread": 7.0, "mode": "fwdbwd"}]
    assert with_cases.table.doubtful(moved) == [
        "unquiet, p80 over p20 of some contender: layernorm_modulate cpp cpu-a fwdbwd (7.0x)"
    ]
    with_cases.table.picture(rows, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 5000
    assert with_cases.table.line(row).startswith(
        "layernorm_modulate cpp cpu-a float32 fwd: p50 us 12.5"
    )


def test_a_row_whose_reference_does_not_compile_keeps_its_other_figures(with_cases, tmp_path):
    row = {"op": "layernorm_modulate", "impl": "cpp", "case": "cpu-a", "mode": "fwd"}
    times = {name: with_cases.interleave.Times([s]) for name, s in (("impl", 1.0), ("eager", 3.0))}
    known = with_cases.figures.figures(
        tuple(row.values()), times, torch.float32, "cpu", (1, 1), (1.0, 1.0)
    )
    assert (known["x_eager"], known["x_compile"], known["spread"]) == (3.0, None, 1.0)
    assert "x eager 3.00, x compile -" in with_cases.table.line(known)
    with_cases.table.picture([known], tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 5000


def test_plain_pytest_collects_no_benchmark():
    settings = (BENCH.parent / "pyproject.toml").read_text()
    assert 'testpaths = ["tests"]' in settings
    assert not (BENCH / "__init__.py").exists()


def test_info_names_every_choice_and_reason():
    done = ldae("info", "--json", LDAE_NATIVE="0")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert torch.__version__.startswith(facts["versions"]["torch"])
    assert not facts["native"]["loaded"]
    rows = {(r["op"], r["device"]): r for r in facts["ops"]}
    row = rows["layernorm_modulate", "cpu"]
    assert row["auto"] == "reference"
    assert row["others"]["cpp"] == "LDAE_NATIVE=0 leaves the compiled library out"
    if not native.MISSING:  # what makes its own numbers chooses by their dtype
        taken = json.loads(ldae_here("info", "--json").stdout)["ops"]
        autos = {(r["op"], r["auto"]) for r in taken if r["device"] == "cpu"}
        assert {("normal", "cpp"), ("patch_pca_noise", "cpp"), ("denoise_loss", "cpp")} <= autos
        # AdamW has no compiled form for bfloat16 parameters, and a CPU multiplies no float8
        plain = sorted(op for op, auto in autos if auto == "reference")
        assert plain == ["adamw_ema", "quantise_float8"]
    text = ldae("info", LDAE_NATIVE="0", LDAE_ISA="generic").stdout
    assert "compiled ops take generic (LDAE_ISA=generic)" in text
    assert "cpp: LDAE_NATIVE=0 leaves the compiled library out" in text
    assert sys.version.split()[0] in text


def test_ladder_keeps_its_rungs_together(tmp_path):
    """Two rungs of a tiny model, one engine at a time: a row each, and losses that agree."""
    report = tmp_path / "ladder.json"
    command = [sys.executable, str(BENCH / "ladder.py"), "--size", "tiny", "--image-size", "32",
               "--batch", "2", "--steps", "3", "--apart", "--only", "in one pass", "--json",
               str(report)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    rows = json.loads(report.read_text())
    assert [row["name"] for row in rows] == ["loss in one pass", "AdamW + average in one pass"]
    assert all(row["name"] in done.stdout and len(row["samples"]) == 2 for row in rows)
    assert rows[0]["losses"] == pytest.approx(rows[1]["losses"], rel=1e-3)


COUNTED = """
import json
import graph
from ldae_fast.recipes import build_config

shape = {"model.width": 64, "model.heads": 2, "model.depth": 1, "model.decoder_depth": 1}
rows = graph.networks(build_config("ldae", 32, "", shape), 4)
print(json.dumps([rows[name]().kinds for name in ("this package", "this package, float8")]))
"""


def test_nothing_is_copied_around_the_kernels_on_a_gpu():
    """Nor in float8, where GELU and all that is made float8 are this package's kernels too."""
    pytest.importorskip("triton")
    environment = os.environ | {"PYTHONPATH": str(BENCH)}
    environment.pop("TRITON_INTERPRET", None)  # inductor knows compiled kernels only
    ran = subprocess.run([sys.executable, "-c", COUNTED], env=environment, capture_output=True,
                         text=True, timeout=300)  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    both, blocks = json.loads(ran.stdout.splitlines()[-1]), 2
    for kinds in both:
        assert kinds["attention"] == 2 * blocks  # forward and backward
        assert "copies" not in kinds
        assert kinds["products"] == 3 * (4 * blocks + 5) - 2  # images and t need no gradient
    # A block makes 12 tensors float8: 4 weights, 4 inputs, 4 gradients. GELU looks at two of them.
    assert both[1]["ours"] - both[0]["ours"] == (12 + 10) * blocks


def test_a_ladder_shows_its_other_rungs_when_one_fails(bench):
    import ladder

    def fails():
        raise RuntimeError("no such kernel\nand more")

    def makes():
        return lambda number: ladder.torch.tensor(0.5)

    rows = [ladder.Contender("broken", fails), ladder.Contender("sound", makes)]
    assert ladder.measure_apart(rows, "cpu", 4, 60.0) == 4
    text = ladder.table(rows, batch=2, steps=4, work=1, rate=1e9)
    assert "MFU" not in text
    rows[1].samples = [0.5]
    of_peak = ladder.table(rows, batch=2, steps=4, work=10**12, rate=1e13, most=8e12)
    assert of_peak.splitlines()[2].split()[-1] == "50.0"
    assert "MFU: images/s x 1000.0 GFLOP / 8 TFLOP/s" in of_peak
    broken, sound = text.splitlines()[1:3]
    assert "not measured  RuntimeError: no such kernel" in broken
    assert "0.500000" in sound


def test_kernels_are_counted_without_the_ranges_around_them(bench):
    events = [("product", 2.0), ("product", 4.0), ("norm", 1.0), ("norm", 1.0)]
    ranges = [("Optimizer.step#AdamWEMA.step", 9.0), ("ProfilerStep*", 9.0)]
    lines = bench.device_kernels.lines(events + ranges, 1).splitlines()
    assert lines[0].split() == ["4.000", "ms", "2x", "in", "all"]
    assert [line.split() for line in lines[1:]] == [
        ["3.000", "ms", "1x", "3000.0", "us", "product"]
    ]


def test_tuning_tells_a_wrong_candidate_from_a_right_one(bench, monkeypatch):
    import tune

    if not os.environ.get("TRITON_INTERPRET"):
        pytest.skip("needs Triton's interpreter")
    monkeypatch.delenv("LDAE_IMPL", raising=False)
    cases = {"cuda": "gpu-L", "cpu": "odd"}
    op = "gate_residual_layernorm_modulate"
    nothing = {"launch": lambda *arguments, **constants: None}
    subject = tune.Subject(op, "fwd", cases, [{"FORWARD": 32}, nothing], "adaln")
    said = list(tune.measure(subject, "cpu"))
    assert len(said) == 1
    assert "WRONG" in said[0]
    assert len(subject.found) == 2
    text = tune.table(subject, 1e9)
    assert "as in the source" in text
    assert "{'FORWARD': 32}" in text
