"""`--profile`: what it writes, that it changes nothing, and that each part is what it says."""

import gzip
import importlib.util
import json
import math
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import flags, ldae_here
from test_train import build, counted
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, record_function

from ldae_fast.model import block_products, training_flop
from ldae_fast.recipes import build_config
from ldae_fast.report.profile import Part, StepProfile, profile_picture, profile_table
from ldae_fast.train import attribution, parts, profile
from ldae_fast.train.checkpoint import list_checkpoints, read_checkpoint

NAMED = {
    parts.QKV, parts.PROJ, parts.FC1, parts.FC2, parts.ENDS, parts.ATTENTION, parts.ADALN,
    parts.GELU, parts.NOISE, parts.LOSS, parts.OPTIMIZER, parts.COPIES, parts.REST,
}  # fmt: skip
ROW = re.compile(r"(\S.*?)  .*?([\d,.]+) +([\d.]+) %")


@pytest.fixture(scope="module")
def runs(image_folder, tmp_path_factory):
    """The same 12 steps, as they are and profiled: (folder, what the terminal got) of each."""
    folder = tmp_path_factory.mktemp("runs")
    words = ("train", "ldae", "--data", f"folder:{image_folder}", "--steps", "12", *flags())
    done = {}
    for name, more in (("plain", ()), ("profiled", ("--profile",))):
        ended = ldae_here(*words, "--out", folder / name, *more)
        assert ended.returncode == 0, ended.stderr
        done[name] = folder / name, ended.stderr
    return done


def rows_of(table: str) -> dict[str, tuple[float, float]]:
    """Name of each row -> (ms, share in %)."""
    lines = table.splitlines()
    found = [ROW.match(line) for line in lines[lines.index("") + 2 :]]
    return {m[1]: (float(m[2].replace(",", "")), float(m[3])) for m in found if m}


def test_a_profiled_run_ends_in_the_same_weights(runs):
    states = [read_checkpoint(list_checkpoints(out / "checkpoints")[-1])[0] for out, _ in
              runs.values()]  # fmt: skip
    for group in ("model", "ema", "optimizer"):
        first, second = (state[group] for state in states)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert not (runs["plain"][0] / "profile").exists()


def test_the_table_adds_up_and_is_on_the_terminal(runs):
    out, said = runs["profiled"]
    table = (out / "profile" / "table.txt").read_text()
    rows = rows_of(table)
    step_ms, whole = rows.pop("a step")
    assert whole == 100
    assert sum(ms for ms, _ in rows.values()) == pytest.approx(
        step_ms, abs=0.005 * len(rows) + 0.01
    )
    assert sum(share for _, share in rows.values()) == pytest.approx(100, abs=0.05 * len(rows))
    assert all(ms >= 0 for ms, _ in rows.values())
    assert rows.keys() == NAMED | {profile.WAITING, profile.HOST}
    assert "steps 8 to 12" in table
    assert "; cpu, 1 thread, " in table.replace("\n", " ")
    assert table in said
    shown = next(line for line in table.splitlines() if "ms a step under the profiler" in line)
    assert float(re.search(r"([\d.,]+) ms a step", shown)[1].replace(",", "")) == pytest.approx(
        step_ms, rel=0.01
    )


def test_prepared_memory_takes_no_page_faults_from_the_records():
    """Large tensors that go, made between the profiler's records, which stay."""
    code = (
        "import resource, sys, torch\n"
        "from ldae_fast.train.memory import keep_freed_memory, prepare_memory\n"
        "assert keep_freed_memory()\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "tiny = torch.zeros(1)\n"
        "def step():\n"
        "    held = []\n"
        "    for size in range(20, 40):\n"
        "        held.append(torch.ones(100_000 * size))\n"
        "        for _ in range(100): tiny + 1\n"
        "step(), step()\n"
        "assert sys.argv[1] == 'off' or prepare_memory(6)\n"
        "cpu = [torch.profiler.ProfilerActivity.CPU]\n"
        "with torch.profiler.profile(activities=cpu, record_shapes=True):\n"
        "    step()\n"
        "    before = faults()\n"
        "    for _ in range(5): step()\n"
        "    print(faults() - before)\n"
    )
    counts = counted(code)
    assert counts["off"] > 5000
    assert counts["on"] < 0.01 * counts["off"]


def test_the_trace_holds_the_profiled_steps(runs):
    folder = runs["profiled"][0] / "profile"
    with gzip.open(folder / "trace.json.gz") as file:
        names = Counter(e.get("name") for e in json.load(file)["traceEvents"])
    assert names[attribution.STEP] == 5
    assert names["ldae::adaln_forward"] > 0
    assert (folder / "step.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(0, (10, 5)), (1, (0, 1)), (2, (1, 1)), (8, (4, 4)), (12, (7, 5)), (10**6, (10, 5))],
)
def test_the_window_lies_in_the_run(steps, expected):
    assert profile.window(steps) == expected


@pytest.fixture
def quick_rates(monkeypatch):
    """A device that copies a byte in a nanosecond and makes a FLOP in a picosecond."""
    monkeypatch.setattr(profile, "copy_rate", lambda device: 1e9)
    monkeypatch.setattr(profile, "gemm_rate", lambda device, dtype: 1e12)


def profiled(engine, loader, folder, steps: int, take: int):
    """A Profile after `take` steps of a run of `steps`, closed, and what it said."""
    said = []
    one = profile.Profile(engine, loader, folder, steps, said.append)
    for step in range(take):
        one.step(lambda step=step: engine.step(loader.batch(step), step, 0.5))
    one.close()
    return one, said


def test_a_run_that_ends_early(image_folder, tmp_path, quick_rates):
    engine, loader = build(image_folder)
    _, said = profiled(engine, loader, tmp_path / "a", steps=0, take=3)
    assert said == ["nothing was profiled: the run ended before its step 11"]
    assert not (tmp_path / "a").exists()
    profiled(engine, loader, tmp_path / "b", steps=9, take=6)
    assert "steps 5 to 6:" in (tmp_path / "b" / "table.txt").read_text()
    assert not set(vars(engine.objective)) & profile.RANGES.keys()


# --- Attribution ----------------------------------------------------------------------------------


class Recorder(attribution.Attribution):
    """Keeps the FLOPs of every product of two matrices by the part it is given to."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.flop = Counter()

    def spend(self, event, place):
        super().spend(event, place)
        if event.name in ("aten::mm", "aten::addmm"):
            self.flop[place.part] += 2 * math.prod(attribution.shape_of(event))


def seen_in_a_step(image_folder, recipe: str, **changes):
    """(what was seen of a step of TINY, its products)."""
    engine, loader = build(image_folder, recipe, **changes)
    engine.step(loader.batch(0), 0, 0.5)
    made = parts.products(engine.config, engine.tokenizer)
    seen = Recorder(made, "cpu")
    activities = [ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
        torch.zeros(256, 32) @ torch.zeros(32, 96)  # as qkv, but in no step
        with profile.ranges(engine.objective), record_function(attribution.STEP):
            engine.step(loader.batch(1), 1, 0.5)
    seen.add(profiler.events(), 1)
    return seen, made


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("ldae", {}),
        ("row7", {}),
        ("ldae", {"optimizer__accumulate": 2, "speed__fold": "false"}),
        ("mae", {}),
        ("mae", {"optimizer__accumulate": 2}),
    ],
)
def test_products_are_seen_as_the_model_makes_them(image_folder, recipe, changes):
    """Every product of a real step, by its part: none is missed and none is counted twice."""
    seen, made = seen_in_a_step(image_folder, recipe, **changes)
    expected = Counter()
    for one in made:
        expected[one.part] += one.work(torch.float32)[1]
    assert seen.flop == expected
    pieces = int(changes.get("optimizer__accumulate", 1))
    bias = {parts.QKV: 1, parts.PROJ: 1, parts.FC1: 0, parts.FC2: 1}  # its gradient is a sum
    for part, sums in bias.items():
        assert seen.parts[part].calls == (3 + sums) * 2 * pieces, part
    assert seen.parts[parts.GELU].calls == 4 * pieces


def test_flop_are_those_of_the_model():
    """training_flop has a formula of its own for the whole model."""
    for size in ("tiny", "B"):
        config = build_config("row7", 64, size, {"model.patch": "4", "optimizer.batch": "6"})
        model, tokens = config.model, 256
        blocks, width = model.depth + model.decoder_depth, model.width
        work = parts.least_work(config, SimpleNamespace(d=16, values=48), torch.float32, [])
        own = sum(work[p][1] for p in (parts.QKV, parts.PROJ, parts.FC1, parts.FC2,
                                       parts.ATTENTION))  # fmt: skip
        modulation = 6 * (6 * blocks + 2) * width * width // 4
        assert own == 6 * (training_flop(model, 0, tokens) - modulation)


def test_bytes_by_hand():
    """2 images of 8 x 8 in 4 tokens, width 8, 3 blocks, d = 5, bfloat16: each value once a pass."""
    changes = {"model.patch": 4, "model.width": 8, "model.heads": 2, "model.depth": 2,
               "model.decoder_depth": 1, "optimizer.batch": 2}  # fmt: skip
    config = build_config("ldae", 8, "", changes)
    tokenizer = SimpleNamespace(d=5, values=48)
    shapes = [torch.Size((3, 7)), torch.Size((4,))]
    work = parts.least_work(config, tokenizer, torch.bfloat16, shapes)
    traffic = {part: moved for part, (moved, _) in work.items()}
    rows, stream = 8, 8 * 8  # tokens; values of (B, T, D)
    assert traffic[parts.QKV] == 2 * 3 * 3 * (stream + 8 * 24 + rows * 24)
    assert traffic[parts.FC2] == 2 * 3 * 3 * (rows * 32 + 32 * 8 + stream)
    assert traffic[parts.ATTENTION] == 2 * 3 * 11 * stream
    assert traffic[parts.GELU] == 2 * 3 * 5 * rows * 32
    assert traffic[parts.ADALN] == 2 * (5 * stream + 5 * 16 + 6 * (10 * stream + 8 * 16))
    assert traffic[parts.NOISE] == 2 * 8 * 8 * 3 + 4 * rows * 5
    assert traffic[parts.LOSS] == 2 * 8 * 8 * 3 * (1 + 2 + 2)
    assert traffic[parts.OPTIMIZER] == 9 * 4 * 25


def test_a_masked_step_by_hand():
    """2 images of 4 x 4 tokens, bfloat16: the encoder's 2 blocks see 4 of each, 8 values wide, the
    decoder's one block all 16, 4 wide, and 12 are predicted."""
    changes = {"model.patch": 4, "model.width": 8, "model.heads": 2, "model.depth": 2,
               "model.decoder_depth": 1, "optimizer.batch": 2}  # fmt: skip
    config = build_config("mae", 16, "", changes)
    work = parts.least_work(config, SimpleNamespace(d=5, values=48), torch.bfloat16, [])
    traffic = {part: moved for part, (moved, _) in work.items()}
    few, whole = 2 * 4, 2 * 16  # tokens
    seen, filled = few * 8, whole * 4  # values of (B, T, D)
    assert traffic[parts.QKV] == 2 * 3 * (
        2 * (seen + 8 * 24 + few * 24) + (filled + 4 * 12 + whole * 12)
    )
    assert traffic[parts.ATTENTION] == 2 * 11 * (2 * seen + filled)
    assert traffic[parts.GELU] == 2 * 5 * (2 * few * 32 + whole * 16)
    encoder = 5 * seen + 5 * 16 + 4 * (10 * seen + 8 * 16)
    decoder = 5 * filled + 5 * 8 + 2 * (10 * filled + 8 * 8)
    assert traffic[parts.ADALN] == 2 * (encoder + decoder)
    assert not {parts.NOISE, parts.LOSS} & work.keys()
    products = 2 * block_products(8, 4, 4) + block_products(4, 4, 16)
    own = (parts.QKV, parts.PROJ, parts.FC1, parts.FC2, parts.ATTENTION)
    assert sum(work[p][1] for p in own) == 6 * 2 * products


def test_products_of_one_shape_share_a_row(image_folder):
    seen, made = seen_in_a_step(image_folder, "row7", model__mlp_ratio=3)
    both = f"{parts.QKV}, {parts.FC1}"
    assert seen.labels[parts.QKV] == seen.labels[parts.FC1] == both
    assert seen.flop[both] == sum(p.work(torch.float32)[1] for p in made if p.part in both)
    assert seen.labels[parts.FC2] == parts.FC2


def event(name, start=0, end=10, kernels=(), children=(), shapes=(), sequence=-1, thread=1):
    """A profiler's event; its kernels as (name, microseconds)."""
    one = SimpleNamespace(
        name=name, time_range=SimpleNamespace(start=start, end=end), cpu_children=list(children),
        kernels=[SimpleNamespace(name=n, duration=us) for n, us in kernels], cpu_parent=None,
        input_shapes=shapes, sequence_nr=sequence, thread=thread, device_type=DeviceType.CPU,
        is_async=False, self_cpu_time_total=0,
    )  # fmt: skip
    for child in children:
        child.cpu_parent = one
    return one


def test_on_a_gpu_kernels_go_to_the_operators_that_launch_them():
    """Events as torch documents them: kernels hang on operators, backward has its own thread."""
    product = parts.Product(parts.FC1, rows=8, k=4, n=16, count=1)
    silu = event("aten::silu", sequence=7, kernels=[("silu_kernel", 1)])
    forward = event("aten::mm", kernels=[("nvjet_1", 20)], shapes=[[8, 4], [4, 16]])
    adaln = event("ldae_triton::adaln_forward", kernels=[("forward_kernel", 300)])
    compiled = event("CompiledFunction", kernels=[
        ("triton_poi_fused_add_0", 4000), ("sm90_xmma_gemm_bf16", 50_000), ("cudnn_sdpa", 600_000)
    ])  # fmt: skip
    network = event("network", children=[silu, forward, adaln, compiled])
    step = event(attribution.STEP, 0, 100, children=[network])
    node = event(attribution.NODE + "SiluBackward0", 60, sequence=7, thread=2, children=[
        event("aten::silu_backward", kernels=[("silu_backward_kernel", 2)], thread=2)
    ])  # fmt: skip
    later = event("aten::mm", 150, 160, kernels=[("nvjet_1", 9e9)], thread=2)
    annotation = event(attribution.STEP, 0, 100)  # the range once more, as the GPU saw it
    annotation.device_type = DeviceType.CUDA
    seen = attribution.Attribution([product], "cuda")
    seen.add([step, network, silu, forward, adaln, compiled, node, *node.cpu_children, later,
              annotation], 2)  # fmt: skip
    spent = {name: 1e6 * part.seconds for name, part in seen.parts.items() if part.seconds}
    assert spent == pytest.approx({
        parts.ENDS: 3, parts.FC1: 20, parts.ADALN: 300, parts.FUSED: 4000, parts.CAPTURED: 50_000,
        parts.ATTENTION: 600_000,
    })  # fmt: skip


def test_every_kernel_of_ours_is_known_in_a_captured_graph():
    folder = Path(importlib.util.find_spec("ldae_fast.kernels").submodule_search_locations[0])
    names = [
        name
        for file in folder.glob("*/triton_kernel.py")
        for name in re.findall(r"def (\w+_kernel)\(", file.read_text())
    ]
    assert len(names) > 15
    assert [n for n in names if attribution.part_of_kernel(n, "") == ""] == []


# --- Report ---------------------------------------------------------------------------------------


def test_the_roofline_is_the_slower_of_bytes_and_flop(tmp_path):
    made = StepProfile(
        "a title", "steps 3 to 4",
        [Part("by FLOP", 0.004, 3, 10**6, 2 * 10**9), Part("by bytes", 0.005, 2, 10**6, 0),
         Part("unknown", 0.0009, 7), Part("rest", 0.0001)],
        step_s=0.01, plain_s=0.009, copy_rate=1e9, product_rate=1e12,
    )  # fmt: skip
    lines = profile_table(made).splitlines()
    cells = {line[:8].strip(): line[8:].split() for line in lines[5:]}
    assert cells["by FLOP"] == ["3", "4.00", "40.0", "%", "2.00", "1.0", "2.00", "50", "%"]
    assert cells["by bytes"] == ["2", "5.00", "50.0", "%", "1.0", "1.00", "20", "%"]
    assert cells["unknown"] == ["7", "0.90", "9.0", "%"]
    assert cells["a step"] == ["10.00", "100.0", "%", "2.00", "2.0", "3.00", "30", "%"]
    assert lines[1] == "steps 3 to 4: 10.00 ms a step under the profiler, 9.000 ms without it"
    assert profile_picture(tmp_path / "x.png", made).stat().st_size > 5000
