"""Training: the step, its curve, its end and its going on after an end."""

import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, assert_same_state, flags, ldae, ldae_here, write_images

from ldae_fast.cli import main
from ldae_fast.config import OptimizerConfig
from ldae_fast.data import Loader, open_source
from ldae_fast.recipes import build_config
from ldae_fast.report.metrics import read_metrics
from ldae_fast.report.progress import Progress
from ldae_fast.tokenizers import fit_tokenizer
from ldae_fast.train.checkpoint import list_checkpoints, read_checkpoint, save_checkpoint
from ldae_fast.train.engine import Engine, NotFinite, pick_precision
from ldae_fast.train.loop import SETTLED, Run
from ldae_fast.train.schedule import learning_rate

GOLDEN = Path(__file__).parent / "golden_losses.json"


def build(image_folder, recipe="ldae", device="cpu", **changes):
    config = build_config(
        recipe, 32, "", TINY | {k.replace("__", "."): v for k, v in changes.items()}
    )
    source = open_source(f"folder:{image_folder}", "train", 32)
    loader = Loader(source, batch_size=config.optimizer.batch, image_size=32, seed=1, workers=0)
    t, patch = config.tokenizer, config.model.patch
    tokenizer = fit_tokenizer(
        t.kind, loader.batch(0).images, patch=patch, d=t.d, scale=t.scale, count=500, seed=0
    )
    return Engine(config, tokenizer, device), loader


def curve(engine, loader, steps: int) -> list[float]:
    return [float(engine.step(loader.batch(i), i, i / steps).loss) for i in range(steps)]


def test_golden_curve(image_folder):
    """The first 12 losses of two recipes, as committed; a refactor must not move them.

    Written by: python tests/test_train.py
    """
    golden = json.loads(GOLDEN.read_text())
    for recipe, losses in golden.items():
        assert curve(*build(image_folder, recipe), 12) == pytest.approx(losses, rel=2e-4)


@pytest.mark.parametrize("recipe", ["row7", "row10", "row12"])
def test_one_batch_can_be_learnt_by_heart(image_folder, recipe):
    """With one batch and one noise draw, the loss must go to a small part of its start."""
    engine, loader = build(image_folder, recipe, optimizer__base_lr="3e-2", optimizer__batch="8")
    batch = loader.batch(0)
    losses = []
    for _ in range(300):
        losses.append(float(engine.step(batch, 0, 0.3).loss))
    assert losses[-1] < 0.1 * losses[0]


def test_weight_copies_follow_a_loaded_state(image_folder):
    """A resumed engine goes on from the weights that it was given, not from its own first ones."""
    first, loader = build(image_folder, optimizer__precision="bfloat16")
    other, _ = build(image_folder, optimizer__precision="bfloat16", seed="1")
    other.objective = first.objective
    curve(first, loader, 3)
    other.load_state(first.state())
    assert curve(other, loader, 3) == curve(first, loader, 3)


def test_one_pass_loss_is_the_loss(image_folder):
    """Objective.backward adds the gradients that autograd finds for `share` times its loss."""
    engine, loader = build(image_folder)
    batch, share = loader.batch(0), 0.25
    given = batch.images, batch.ids, batch.flip
    losses = engine.objective.loss(engine.model, *given, 3)
    wanted = torch.autograd.grad(losses.sum() * share, list(engine.model.parameters()))
    guess = engine.objective.guess(engine.model, *given, 3)
    assert torch.equal(engine.objective.backward(guess, batch.images, batch.flip, share), losses)
    for p, w in zip(engine.model.parameters(), wanted):
        assert torch.allclose(p.grad, w, rtol=1e-5, atol=1e-7)


def test_accumulation_is_the_same_step(image_folder):
    whole = curve(*build(image_folder), 10)
    parts = curve(*build(image_folder, optimizer__accumulate="4"), 10)
    assert parts == pytest.approx(whole, rel=1e-4)


def test_compiled_step_is_the_same_step(image_folder):
    engine, loader = build(image_folder, speed__compile="on")
    assert curve(engine, loader, 4) == pytest.approx(curve(*build(image_folder), 4), rel=1e-4)


@pytest.mark.parametrize("recompute", ["false", "true"])
def test_all_blocks_share_one_graph(image_folder, recompute):
    """One for the first block, whose residual stream has nothing pending, one for all others."""
    torch.compiler.reset()
    changes = {"model__depth": "3", "model__decoder_depth": "2", "speed__recompute": recompute}
    eager = curve(*build(image_folder, **changes), 4)
    engine, loader = build(image_folder, speed__compile="blocks", **changes)
    before = engine.graphs
    assert curve(engine, loader, 4) == pytest.approx(eager, rel=1e-5)
    assert engine.graphs - before == 2


def test_clipping_bounds_the_update(image_folder):
    """With gradients scaled down to norm 1e-12, AdamW's eps swallows the update."""
    engine, loader = build(image_folder, optimizer__clip="1e-12")
    before = [p.detach().clone() for p in engine.model.parameters()]
    engine.step(loader.batch(0), 0, 0.5)
    after = [p.detach() for p in engine.model.parameters()]
    moved = max(float((a - b).abs().max()) for a, b in zip(before, after))
    assert moved < 1e-6


def test_not_finite_leaves_every_weight(image_folder):
    engine, loader = build(image_folder)
    engine.step(loader.batch(0), 0, 0.3)
    before = {n: t.clone() for n, t in engine.state()["model"].items()}
    engine.objective.tokenizer = replace(
        engine.objective.tokenizer, center=torch.full_like(engine.objective.tokenizer.center, 1e38)
    )
    with pytest.raises(
        NotFinite, match=r"step 2: .* no weight was changed. Images of this batch: \["
    ):
        engine.step(loader.batch(1), 1, 0.3)
    assert all(torch.equal(before[n], t) for n, t in engine.state()["model"].items())


def counted(code: str) -> dict[str, int]:
    """The number that `code` prints in a process of its own, told on and told off."""
    return {
        switch: int(subprocess.check_output([sys.executable, "-c", code, switch]))
        for switch in ("on", "off")
    }


def test_freed_memory_is_kept():
    """Page faults of large tensors made and dropped.

    One is of over 2 GiB, the most that a whole number given to mallopt could keep.
    """
    code = (
        "import resource, sys, torch\n"
        "from ldae_fast.train.memory import keep_freed_memory\n"
        "assert sys.argv[1] == 'off' or keep_freed_memory()\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def work():\n"
        "    for _ in range(20): torch.zeros(16_000_000).add_(1)\n"
        "    torch.ones(2_200_000_000, dtype=torch.uint8)\n"
        "work()\n"
        "before = faults()\n"
        "work()\n"
        "print(faults() - before)\n"
    )
    counts = counted(code)
    assert counts["on"] < 0.01 * counts["off"]


@pytest.mark.parametrize("able", [True, False])
def test_bfloat16_of_a_cpu_is_found_in_torch_2_11(monkeypatch, able):
    """Which has no torch.cpu.get_capabilities; with neither it is float32."""
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    name = "_is_avx512_bf16_supported"
    monkeypatch.setattr(torch.cpu, name, lambda: able, raising=False)
    picked = torch.bfloat16 if able else torch.float32
    assert pick_precision("auto", torch.device("cpu")) == picked
    monkeypatch.delattr(torch.cpu, name)
    assert pick_precision("auto", torch.device("cpu")) == torch.float32


def test_learning_rate_closed_form():
    config = OptimizerConfig(batch=1024, base_lr=1e-4, warmup=0.25)
    peak = 4e-4
    for progress, share in ((0, 0), (0.125, 0.5), (0.25, 1), (0.625, 0.5), (1, 0)):
        assert learning_rate(config, progress) == pytest.approx(peak * share, abs=1e-12)
    assert learning_rate(config, 0.5) == pytest.approx(peak * (1 + math.cos(math.pi / 3)) / 2)
    assert learning_rate(replace(config, warmup=0.0), 0) == pytest.approx(peak)
    assert learning_rate(replace(config, warmup=1.0), 0.5) == pytest.approx(peak / 2)


# --- Whole runs, as processes -------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_run(image_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    done = ldae(
        "train", "ldae", "--data", f"folder:{image_folder}", "--steps", 30, "--out", out, *flags()
    )
    assert done.returncode == 0, done.stderr
    return out


def test_a_run_leaves_what_it_should(whole_run):
    result = json.loads((whole_run / "result.json").read_text())
    assert (result["recipe"], result["steps"], result["images"]) == ("ldae", 30, 480)
    assert {"raw_pixels", "pca", "untrained", "colour_histogram"} <= set(result["baselines"])
    for value in (result["linear_top1"], result["knn_top1"], *result["baselines"].values()):
        assert 0 <= value <= 1
    records = read_metrics(whole_run / "metrics.jsonl")
    steps = [r for r in records if "loss" in r]
    assert steps[-1]["step"] == 30
    assert {"step", "loss", "lr", "grad_norm", "images_per_s", "data_wait"} <= set(steps[0])
    probed = [r for r in records if "knn_top1" in r]
    assert (probed[0]["knn_top1_images"], probed[0]["effective_rank_images"]) == (10, 40)
    assert {p.name for p in (whole_run / "pictures").iterdir()} == {
        "bars.png", "curves.png", "denoising.png", "noise_levels.png", "pca_filters.png",
    }  # fmt: skip
    assert "ldae train" in (whole_run / "report.html").read_text()
    config = json.loads((whole_run / "config.json").read_text())
    assert config["model"]["width"] == 32


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_and_resumed_is_the_uninterrupted_run(image_folder, whole_run, tmp_path, workers):
    """SIGKILL at a random moment, then `ldae resume`: the same weights, bit for bit."""
    out = tmp_path / "killed"
    command = [
        sys.executable, "-m", "ldae_fast.cli", "train", "ldae", "--data", f"folder:{image_folder}",
        "--steps", "30", "--out", str(out), "--checkpoint.every", "3", "--speed.workers",
        str(workers), *flags(),
    ]  # fmt: skip
    child = subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    while not list_checkpoints(out / "checkpoints"):
        assert child.poll() is None
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (out / "result.json").exists()
    done = ldae_here("resume", out)
    assert done.returncode == 0, done.stderr
    assert_same_state(out, whole_run)
    ours, theirs = (
        [(r["step"], r["loss"]) for r in read_metrics(run / "metrics.jsonl") if "loss" in r]
        for run in (out, whole_run)
    )
    assert ours == theirs


def test_interrupt_saves_and_says_how_to_go_on(image_folder, whole_run, tmp_path):
    out = tmp_path / "stopped"
    command = [
        sys.executable, "-m", "ldae_fast.cli", "train", "ldae", "--data", f"folder:{image_folder}",
        "--steps", "30", "--out", str(out), *flags(checkpoint__every=1000, report__log_every=1),
    ]  # fmt: skip
    child = subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    metrics = out / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        assert child.poll() is None
        time.sleep(0.002)
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 143
    assert f"go on with `ldae resume {out}`" in said.splitlines()[-1]
    assert ldae_here("resume", out).returncode == 0
    assert_same_state(out, whole_run)


def test_resuming_on_other_data_is_refused(tmp_path, capsys):
    """A file more or less would move every index behind it to another image, and nobody see it."""
    images, out = write_images(tmp_path / "images"), tmp_path / "run"
    data = f"folder:{images}"
    assert main(["train", "ldae", "--data", data, "--steps", "2", "--out", str(out), *flags()]) == 0
    extra, first = images / "class0" / "0000.png", images / "class0" / "000.png"
    shutil.copy(first, extra)
    assert main(["resume", str(out)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    expected = r"expected training images: 81 \(.*\), found: 82 \(.*\); put back"
    assert re.search(rf"ldae: --data {data} has changed since {out} was trained .*{expected}", said)
    first.unlink()
    assert main(["resume", str(out)]) == 2  # as many as before, one of another name
    assert "found: 81 (" in capsys.readouterr().err
    extra.rename(first)
    assert main(["resume", str(out)]) == 0


def test_a_checkpoint_that_does_not_say_its_data_is_resumed(whole_run, tmp_path):
    """As one of an older version."""
    out = shutil.copytree(whole_run, tmp_path / "old")
    newest = list_checkpoints(out / "checkpoints")[0]
    tensors, files = read_checkpoint(newest)
    del tensors["tokenizer"]  # which has metadata beside its tensors
    files["tokenizer.safetensors"] = (newest / "tokenizer.safetensors").read_bytes()
    state = json.loads(files["state.json"])
    del state["data"]
    shutil.rmtree(newest)
    files["state.json"] = json.dumps(state).encode()
    save_checkpoint(out / "checkpoints", state["step"], tensors, files, keep=1)
    assert main(["resume", str(out)]) == 0


def test_one_class_is_no_success(tmp_path, capsys):
    """Nothing is claimed of a probe that cannot be wrong."""
    data, out = f"folder:{write_images(tmp_path / 'images', classes=1)}", tmp_path / "run"
    words = ["--data", data, "--steps", "2", "--out", str(out), *flags()]
    assert main(["train", "ldae", *words]) == 0
    said = capsys.readouterr().out
    assert "one class: nothing to tell apart, the probe says nothing" in said
    result = json.loads((out / "result.json").read_text())
    assert result["linear_top1"] is result["knn_top1"] is None
    assert result["effective_rank"] > 1
    assert not (out / "pictures" / "bars.png").exists()
    page = (out / "report.html").read_text()
    assert "100.0 %" not in said + re.sub("<pre>.*", "", page)
    assert "Linear probe" not in page
    for method in ("linear", "knn"):
        assert main(["probe", str(out), "--data", data, "--method", method]) == 2
        assert "has one class: nothing to tell apart" in capsys.readouterr().err


def test_waiting_for_data_is_noted_once(image_folder, tmp_path, capsys):
    """Where nothing is read ahead, and every image is decoded anew in every step."""
    words = ["--speed.workers", "0", "--speed.cache_mb", "0", "--report.log_every", "10", *flags()]
    data, out = f"folder:{image_folder}", str(tmp_path / "run")
    assert main(["train", "ldae", "--data", data, "--steps", "50", "--out", out, *words]) == 0
    said = capsys.readouterr().err
    assert said.count("training waits for data") == 1
    assert re.search(r"step 30: .* data \d+ % .*\(--speed.workers, now 0\), .*`ldae pack`", said)


def bare_run(first: int, step: int) -> Run:
    """A run of batches of 16 that has only its counts."""
    run = Run.__new__(Run)
    run.clock = SimpleNamespace(first=first, step=step)
    run.loader = SimpleNamespace(wait_s=5.0, workers=2)
    run.config = SimpleNamespace(optimizer=SimpleNamespace(batch=16))
    run.looked, run.waited, run.waits = None, False, False
    return run


def test_rates_are_of_the_steps_since_the_last_line():
    run = bare_run(first=0, step=7)
    run.begin_stretch()
    step, at, waited = run.stretch
    run.stretch = step, at - 2, waited
    run.clock.step, run.loader.wait_s = 10, 5.5
    assert run.rates(run.stretch) == (pytest.approx(24, rel=0.1), pytest.approx(0.25, rel=0.1))


@pytest.mark.parametrize(
    ("shares", "noted"),
    [((0.02, 0.02, 0.02), 0), ((0.04, 0.04), 1), ((0.004, 0.07, 0.004, 0.07), 0), ((0.07,), 0),
     ((0.004, 0.07, 0.05, 0.07), 1)],
)  # fmt: skip
def test_waiting_is_noted_where_it_lasts(shares, noted):
    """Not a little, nor a blip: the share over stretches of ten seconds each."""
    run = bare_run(first=0, step=SETTLED)
    shown = io.StringIO()
    run.note_waiting(Progress("train", shown))  # the first batches, which take long
    for share in shares:
        step, at, _ = run.looked
        run.clock.step, run.looked = step + SETTLED, (step, at - 10, run.loader.wait_s)
        run.loader.wait_s += 10 * share
        run.note_waiting(Progress("train", shown))
    assert shown.getvalue().count("training waits for data") == noted


def test_minutes_is_a_budget_of_time(image_folder, tmp_path):
    out = tmp_path / "timed"
    done = ldae_here(
        "train",
        "ldae",
        "--data",
        f"folder:{image_folder}",
        "--minutes",
        0.03,
        "--out",
        out,
        *flags(),
    )
    assert done.returncode == 0, done.stderr
    budget = 60 * 0.03
    losses = [r for r in read_metrics(out / "metrics.jsonl") if "loss" in r]
    # the run ends with the first step that ends beyond it, however long a busy machine holds it up
    assert losses[-2]["seconds"] < budget <= losses[-1]["seconds"]
    config = build_config("ldae", 32, "", TINY).optimizer
    planned = [learning_rate(config, r["seconds"] / budget) for r in losses]
    top = planned.index(max(planned))
    for i in range(top + 1, len(losses)):  # a step begins after the record before it
        assert planned[i] <= losses[i]["lr"] <= planned[i - 1]


def test_probe_measures_the_run(image_folder, whole_run, tmp_path):
    written = tmp_path / "probe.json"
    for method in ("linear", "knn"):
        done = ldae_here(
            "probe",
            whole_run,
            "--data",
            f"folder:{image_folder}",
            "--method",
            method,
            "--json",
            written,
        )
        assert done.returncode == 0, done.stderr
        ours, theirs = (json.loads(p.read_text()) for p in (written, whole_run / "result.json"))
        assert ours[f"{method}_top1"] == pytest.approx(theirs[f"{method}_top1"])
        assert ours["step"] == theirs["steps"]


def test_probe_options_reach_the_encoder(image_folder, whole_run):
    """Cut, level, input and weights each change the features, so the rank moves."""
    ranks = set()
    for words in ([], ["--evaluate.cut", 2], ["--evaluate.t", 600], ["--evaluate.input", "noisy"],
                  ["--evaluate.input", "pca"], ["--weights", "ema"]):  # fmt: skip
        done = ldae_here(
            "probe", whole_run, "--data", f"folder:{image_folder}", "--method", "knn", *words
        )
        assert done.returncode == 0, done.stderr
        ranks.add(json.loads(done.stdout)["effective_rank"])
    assert len(ranks) == 6


def write_golden() -> None:
    import tempfile

    from conftest import write_images

    with tempfile.TemporaryDirectory() as folder:
        images = write_images(Path(folder) / "images")
        curves = {recipe: curve(*build(images, recipe), 12) for recipe in ("row7", "row12")}
    GOLDEN.write_text(json.dumps(curves, indent=1) + "\n")


if __name__ == "__main__":
    write_golden()
