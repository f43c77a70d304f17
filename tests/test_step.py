"""The train step as a program: memory, compiling, being called off."""

import errno
import io
import itertools
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import assert_same_state, fail_once, flags, ldae
from test_train import build, curve
from torch.utils.checkpoint import CheckpointPolicy

from ldae_fast.cli import main
from ldae_fast.config import check, set_values
from ldae_fast.data import DataError, Loader
from ldae_fast.ops import AdamWEMA
from ldae_fast.recipes import build_config
from ldae_fast.report.progress import Progress
from ldae_fast.train import compile_cache, compiled_libraries, memory
from ldae_fast.train.checkpoint import list_checkpoints
from ldae_fast.train.engine import Engine, NotFinite, waits_for_host
from ldae_fast.train.folder import RunFolder
from ldae_fast.train.loop import SETTLED, Run
from ldae_fast.train.out_of_memory import advice, is_out_of_memory, largest_that_fits
from ldae_fast.train.recompute import policy

WIDE = {"model__width": "64", "model__depth": "3", "optimizer__batch": "96"}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_recomputing_changes_no_number_and_holds_less(image_folder, precision, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    from interleave import peak_mib

    changes = WIDE | {"optimizer__precision": precision}
    curves, gradients, held = [], [], []
    for switch in ("false", "true"):
        engine, loader = build(image_folder, speed__recompute=switch, **changes)
        curves.append(curve(engine, loader, 3))
        batch = loader.batch(7)
        held.append(peak_mib(lambda e=engine, b=batch: e.loss(b, 7), "cpu"))
        gradients.append([p.grad for p in engine.working.parameters()])
    assert curves[0] == curves[1]
    assert all(map(torch.equal, *gradients))
    assert held[1] < 0.8 * held[0]


def test_recomputing_runs_no_attention_twice():
    """Whichever of ours or torch's: a new one is asked about by its name alone."""
    names = [n.split("::") for n in torch._C._dispatch_get_all_op_names() if "." not in n]
    forward = [n for n in names if "attention" in n[1] and "backward" not in n[1]]
    assert {"ldae", "ldae_triton", "aten"} <= {space for space, _ in forward}
    for space, name in forward:
        operator = getattr(getattr(torch.ops, space), name).default
        assert policy(None, operator) == CheckpointPolicy.MUST_SAVE, operator
    assert policy(None, torch.ops.aten.add.Tensor) == CheckpointPolicy.PREFER_RECOMPUTE


def test_a_step_that_is_called_off_calls_off_what_follows(image_folder):
    """The host may be steps ahead of the device when it learns of the first."""
    engine, loader = build(image_folder)
    engine.step(loader.batch(0), 0, 0.3)
    before = {n: t.clone() for n, t in engine.state()["model"].items()}
    sound = engine.objective.tokenizer
    engine.objective.tokenizer = replace(sound, center=torch.full_like(sound.center, 1e38))
    with pytest.raises(NotFinite, match="step 2: "):
        engine.step(loader.batch(1), 1, 0.3)
    engine.objective.tokenizer = sound
    with pytest.raises(NotFinite, match="step 3: "):
        engine.step(loader.batch(2), 2, 0.3)
    assert all(torch.equal(before[n], t) for n, t in engine.state()["model"].items())


# --- Compiling ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled_run(image_folder, tmp_path_factory):
    """A run under torch.compile, with a key of its own for its cache."""
    home = tmp_path_factory.mktemp("home")
    out = home / "run"
    done = ldae("train", "ldae", "--data", f"folder:{image_folder}", "--steps", SETTLED + 4,
                "--out", out, *flags(speed__compile="on", checkpoint__every=SETTLED + 1),
                XDG_DATA_HOME=str(home))  # fmt: skip
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(out=out, home=home, said=done.stdout + done.stderr)


@pytest.mark.parametrize(
    ("shape", "batch", "device", "waits"),
    [
        ((32, "tiny"), 128, "NVIDIA H200", True),
        ((256, "half-L"), 8, "NVIDIA H100 80GB HBM3", True),  # 2.7 times as fast, captured
        ((256, "half-L"), 256, "NVIDIA H200", False),  # no faster: the device is busy
        ((256, "half-L"), 32, "NVIDIA H200", True),
        ((256, "half-L"), 32, "NVIDIA A100-SXM4-80GB", False),
        ((256, "half-L"), 8, "NVIDIA RTX A1000 Laptop GPU", False),  # of no known peak
    ],
)
def test_a_batch_too_small_to_keep_a_gpu_busy_is_captured(shape, batch, device, waits):
    config = build_config("ldae", *shape, {"optimizer.batch": batch})
    assert waits_for_host(config, device) == waits
    assert not waits_for_host(set_values(config, {"optimizer.accumulate": 2}), device)
    assert not waits_for_host(set_values(config, {"speed.recompute": True}), device)


@pytest.mark.parametrize(
    ("precision", "compiled", "device", "mode"),
    [
        ("bfloat16", "auto", "cuda", "graph"),
        ("float32", "auto", "cuda", "blocks"),
        ("bfloat16", "blocks", "cuda", "blocks"),
        ("bfloat16", "auto", "cpu", "off"),
    ],
)
def test_how_a_step_is_launched(image_folder, monkeypatch, precision, compiled, device, mode):
    engine, _ = build(image_folder, optimizer__precision=precision, speed__compile=compiled)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    monkeypatch.setattr(engine, "device", torch.device(device))
    assert engine.compile_mode == mode


def test_a_compiled_run_makes_no_graph_after_its_first_steps(compiled_run):
    result = json.loads((compiled_run.out / "result.json").read_text())
    assert result["recompiles"] == 0
    assert "made another graph" not in compiled_run.said
    assert result["first_step_s"] > 0


def test_what_was_compiled_is_used_again_where_it_is_ones_own(compiled_run, monkeypatch, tmp_path):
    cache = compiled_run.out / "compile_cache.bin"
    monkeypatch.setenv("XDG_DATA_HOME", str(compiled_run.home))
    assert compile_cache.load(cache) == ""
    changed = tmp_path / "changed.bin"
    stored = bytearray(cache.read_bytes())
    stored[len(stored) // 2] ^= 1
    changed.write_bytes(stored)
    assert "damaged or not of this user" in compile_cache.load(changed)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert "damaged or not of this user" in compile_cache.load(cache)
    assert compile_cache.key_file().stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile looks for g++")
def test_a_compiled_run_goes_on_without_compiling(compiled_run, tmp_path):
    """As on another machine of its kind, where torch has compiled nothing yet: by g++ neither."""
    moved, cache = shutil.copytree(compiled_run.out, tmp_path / "run"), tmp_path / "cache"
    wanted = json.loads((moved / "result.json").read_text())
    (moved / "result.json").unlink()
    shutil.rmtree(moved / "checkpoints" / f"step-{SETTLED + 4:07d}")
    done = ldae("resume", moved, XDG_DATA_HOME=str(compiled_run.home),
                TORCHINDUCTOR_CACHE_DIR=str(cache))  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = json.loads((moved / "result.json").read_text())
    assert made["linear_top1"] == wanted["linear_top1"]
    packed = (moved / "compile_cache.bin").read_bytes()[compile_cache.SEAL :]
    libraries = compile_cache.unpack(packed)[1]
    assert len(libraries) > 1
    # What g++ makes here would name its source in this cache.
    assert {str(p.relative_to(cache)): p.read_bytes() for p in cache.glob("*/*.so")} == libraries


def test_libraries_of_another_machine_stay_packed(monkeypatch):
    packed = compile_cache.pack(b"made", {"ab/kernel.so": b"code"})
    assert compile_cache.unpack(packed) == (b"made", {"ab/kernel.so": b"code"})
    monkeypatch.setattr(compiled_libraries, "machine", lambda: "another")
    assert compile_cache.unpack(packed) == (b"made", {})


def test_a_library_that_does_not_load_is_left_to_torch(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    (tmp_path / "file").write_text("")
    compiled_libraries.put_back({"ab/kernel.main.so": b"no library", "file/other.main.so": b""})
    assert not (tmp_path / "ab" / "kernel.main.so").exists()


def no_folder(monkeypatch, home):
    (home / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "file"))
    return "Not a directory"


def no_home(monkeypatch, home):
    """As of a container's user whom no /etc/passwd knows."""
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    for name in ("XDG_DATA_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    return "Could not determine home directory"


def no_links(monkeypatch, home):
    """As on a file system that knows no hard links."""

    def refuse(source, target):
        raise PermissionError(errno.EPERM, "Operation not permitted", source, None, target)

    monkeypatch.setenv("XDG_DATA_HOME", str(home))
    monkeypatch.setattr(os, "link", refuse)
    return "Operation not permitted"


@pytest.mark.parametrize("trouble", [no_folder, no_home, no_links])
def test_a_run_goes_on_where_no_key_can_be_had(compiled_run, monkeypatch, tmp_path, trouble):
    torch.compile(lambda x: x + 1)(torch.ones(3))
    said, shown = trouble(monkeypatch, tmp_path), io.StringIO()
    run = SimpleNamespace(clock=SimpleNamespace(step=SETTLED, first=0), graphs=1,
                          engine=SimpleNamespace(graphs=1), folder=RunFolder(tmp_path))  # fmt: skip
    Run.watch(run, Progress("train", shown))
    new = tmp_path / "compile_cache.bin"
    assert not new.exists()
    assert re.fullmatch(rf"{new} cannot be written \(.*{said}.*\), so .*\n", shown.getvalue())
    new.write_bytes((compiled_run.out / "compile_cache.bin").read_bytes())
    assert re.fullmatch(rf"{new} cannot be read \(.*{said}.*\), so .*", compile_cache.load(new))


@pytest.mark.parametrize("left", [b"", b"short"])
def test_a_key_that_a_killed_process_left_short_seals_nothing(monkeypatch, tmp_path, left):
    """An empty one is known to everybody, so that anyone could seal with it."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    compile_cache.key_file().parent.mkdir()
    compile_cache.key_file().write_bytes(left)
    found = compile_cache.key()
    assert len(found) == compile_cache.SEAL
    assert compile_cache.key() == found
    assert [p.name for p in compile_cache.key_file().parent.iterdir()] == ["compile_cache.key"]
    assert compile_cache.key_file().stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("steps", "noted"), [(SETTLED - 1, 0), (SETTLED + 1, 1)])
def test_a_graph_made_in_mid_run_is_shown(steps, noted):
    run = SimpleNamespace(clock=SimpleNamespace(step=100 + steps, first=100), graphs=1,
                          engine=SimpleNamespace(graphs=2), recompiles=0)  # fmt: skip
    shown = io.StringIO()
    Run.watch(run, Progress("train", shown))
    assert run.recompiles == noted
    assert shown.getvalue().count("made another graph") == noted
    Run.watch(run, Progress("train", shown))
    assert run.recompiles == noted


# --- Memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("std::bad_alloc"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        MemoryError(),
    ],
    ids=repr,
)
def test_errors_that_are_of_memory(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
        RuntimeError("Triton Error [CUDA]: out of resource: shared memory"),
        DataError("/data/a.jpg: cannot be read (Cannot allocate memory), tried for 31 s"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    ],
    ids=repr,
)
def test_errors_that_are_of_something_else(error):
    assert not is_out_of_memory(error)


SHORT = """
import resource, sys, torch
from ldae_fast.cli import main
from ldae_fast.train import loop

held = next(int(line.split()[1]) for line in open("/proc/self/status") if "VmData" in line)
limit = (held << 10) + (int(sys.argv[1]) << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
sys.exit(main(sys.argv[2:]))
"""


def test_out_of_memory_names_what_fits_and_leaves_nothing(image_folder, tmp_path):
    """In a process that may hold 250 MB more than it starts with, then by its own advice."""
    out = tmp_path / "run"
    command = ["train", "ldae", "--data", f"folder:{image_folder}", "--steps", "2", "--out", out]
    changes = {"optimizer__batch": 32, "model__patch": 2, "model__width": 64, "model__depth": 3}
    words = [sys.executable, "-c", SHORT, "250", *command, *flags(**changes)]
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    said = done.stderr.splitlines()[-1]
    assert said.startswith("ldae: out of memory at step 1 with 32 images at a time; ")
    assert "--speed.recompute true" in said
    assert f"nothing is left in {out}" in said
    assert not out.exists()
    parts = said.split("--optimizer.accumulate ")[1].split()[0]
    words += ["--optimizer.accumulate", parts]
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, timeout=300)
    assert "train  step 2/2" in done.stderr  # what comes after, the evaluation, may want more
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("owner", "name", "saved"), [(Engine, "loss", 3), (AdamWEMA, "update", None)]
)
def test_out_of_memory_in_mid_run_keeps_the_steps_before_it(
    image_folder, tmp_path, monkeypatch, capsys, owner, name, saved
):
    """Unless it comes while weights change, which then are of no step."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    command = ["train", "ldae", "--data", f"folder:{image_folder}", "--steps", "5", *flags(),
               "--checkpoint.every", "100", "--out"]  # fmt: skip
    assert main([*command, str(whole)]) == 0
    with monkeypatch.context() as patch:
        fail_once(patch, owner, name, at=3)
        assert main([*command, str(out)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("ldae: out of memory at step 4 with 16 images at a time; ")
    assert said.endswith(f"; go on with `ldae resume {out}` and that")
    found = [p.name for p in list_checkpoints(out / "checkpoints")]
    assert found == ([f"step-{saved:07d}"] if saved else [])
    assert main(["resume", str(out)]) == 0
    assert_same_state(out, whole)


def test_out_of_memory_while_a_batch_is_made_is_a_steps_too(
    image_folder, tmp_path, monkeypatch, capsys
):
    out, iterate = tmp_path / "out", Loader.iterate

    def failing(loader, start):
        yield from itertools.islice(iterate(loader, start), 3)
        torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr(Loader, "iterate", failing)
    data = f"folder:{image_folder}"
    assert main(["train", "ldae", "--data", data, "--steps", "5", *flags(), "--out", str(out)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("ldae: out of memory at step 4 with 16 images at a time; 8 were seen")
    assert list_checkpoints(out / "checkpoints")[0].name == "step-0000003"


def test_out_of_memory_that_no_setting_mends_keeps_the_steps_too(
    image_folder, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    fail_once(monkeypatch, Engine, "loss", at=2)
    words = flags(optimizer__accumulate=16, speed__recompute="true")
    data = f"folder:{image_folder}"
    assert main(["train", "ldae", "--data", data, "--steps", "9", *words, "--out", str(out)]) == 2
    assert f"; step 2 is saved, and `ldae resume {out}` goes on" in capsys.readouterr().err
    assert list_checkpoints(out / "checkpoints")[0].name == "step-0000002"


NO_LIMIT = """
import resource
resource.setrlimit(resource.RLIMIT_DATA, 2 * resource.getrlimit(resource.RLIMIT_DATA)[1:])
"""  # a run in the tests' own process may have left one
PROMISED = f"""{NO_LIMIT}
import sys, torch
from ldae_fast.train.memory import free_memory, refuse_what_is_not_there

limit, held = sys.argv[1] == "limited" and refuse_what_is_not_there(), []
gib = 1 + free_memory() // 2**30
try:
    while len(held) < gib:
        held.append(torch.empty(2**30, dtype=torch.uint8))
except RuntimeError as error:
    print("refused:", len(held) - gib, error)
else:
    print("promised")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is free")
def test_memory_that_is_not_there_is_refused():
    """Linux promises it, a GiB at a time and none of it touched, and would kill who touches it."""
    said = {
        word: subprocess.run([sys.executable, "-c", PROMISED, word], capture_output=True, text=True,
                             check=True, timeout=120).stdout
        for word in ("limited", "free")
    }  # fmt: skip
    assert said["limited"].startswith("refused: -")
    assert "can't allocate memory" in said["limited"]
    if "promised" not in said["free"]:
        pytest.skip("this system promises no more than it has")


AGAIN = f"""{NO_LIMIT}
from ldae_fast.train import memory

free, memory.free_memory = memory.free_memory, lambda: 2**30
low = memory.refuse_what_is_not_there()
memory.free_memory = free
high = memory.refuse_what_is_not_there()
assert low < 3 * 2**30 < high
assert resource.getrlimit(resource.RLIMIT_DATA)[0] == high
memory.promise_all_memory()
assert resource.getrlimit(resource.RLIMIT_DATA)[0] == memory.first_limit() != high
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is free")
def test_the_limit_follows_what_is_free(tmp_path):
    """A first run beside another one must not bind the next; a run on a GPU is not bound."""
    subprocess.run([sys.executable, "-c", AGAIN], check=True, timeout=120)


def test_a_containers_memory_counts(tmp_path, monkeypatch):
    """As the files of a container say it; of what it uses, half is cached files."""
    monkeypatch.setattr(memory, "GROUP", tmp_path)
    whole = memory.free_memory()
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text(f"{60 << 20}\n")
    (tmp_path / "memory.stat").write_text(
        f"anon 1\nfile {50 << 20}\ninactive_file {20 << 20}\nactive_file {10 << 20}\nkernel 5\n"
    )
    assert memory.free_memory() > 0.5 * whole
    (tmp_path / "memory.max").write_text(f"{100 << 20}\n")
    assert memory.free_memory() == 70 << 20


def test_what_fits_is_looked_for_without_changing_anything(image_folder):
    engine, loader = build(image_folder, speed__compile="blocks")
    before = {n: t.clone() for n, t in engine.state()["model"].items()}
    graphs = engine.graphs
    assert largest_that_fits(engine, loader.batch(0), 0) == 8  # half of 16: it all fits
    assert engine.graphs == graphs  # one for every size that is tried would be too many
    assert engine.optimizer.gradients() == []
    assert all(torch.equal(before[n], t) for n, t in engine.state()["model"].items())


def test_what_is_tried_and_advised_is_what_settings_admit(image_folder):
    """A pass in float8 has a multiple of 16 tokens; one captured graph has a step's gradients."""
    changes = {"optimizer__precision": "float8-emulated", "model__patch": 16}
    engine, loader = build(image_folder, optimizer__batch=12, **changes)  # 48 tokens
    assert largest_that_fits(engine, loader.batch(0), 0) == 4  # as 6 images have 24
    assert "--optimizer.accumulate 3 makes" in str(advice(engine.config, 0, 4))
    captured = set_values(engine.config, {"speed.compile": "graph"})
    said = str(advice(captured, 0, 4))
    assert "--optimizer.accumulate 3 --speed.compile blocks makes" in said
    names = re.findall(r"--(\S+) (\S+)", said)
    assert check(set_values(captured, dict(names))).optimizer.accumulate == 3


def test_memory_that_python_itself_lacks_is_told_too(monkeypatch, capsys):
    """By an error without words."""
    monkeypatch.setattr("ldae_fast.cli.info.run", lambda *args: bytearray(2**62))
    assert main(["info"]) == 1
    said = capsys.readouterr().err
    assert "out of memory outside of a training step (MemoryError) and nothing was kept; " in said
