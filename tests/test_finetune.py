"""Fine-tuning: each part by hand, and a tiny encoder that must learn two colours."""

import json
import math
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import assert_same_state, fail_once, stopped_after, write_images
from PIL import Image

from ldae_fast.cli import main
from ldae_fast.config import Config, FinetuneConfig, SettingError, set_values
from ldae_fast.data import Batch, open_source
from ldae_fast.data.randaugment import DRAWS, OPERATIONS, randaugment
from ldae_fast.data.subset import Subset
from ldae_fast.evaluate.drop_path import drop_path
from ldae_fast.evaluate.finetune import Classifier, Finetuner, parameter_groups, soft_cross_entropy
from ldae_fast.evaluate.mixing import box, mix, smooth_targets
from ldae_fast.ops import AdamWEMA
from ldae_fast.report.metrics import read_metrics
from ldae_fast.report.tables import finetune_table
from ldae_fast.train.checkpoint import list_checkpoints
from ldae_fast.train.export import load_vit, to_bytes
from ldae_fast.train.finetune import FinetuneRun, finetune, resume
from ldae_fast.train.folder import Launch, RunFolder, new_folder
from ldae_fast.train.signals import Interrupted
from ldae_fast.vit import ViT, ViTConfig

VIT = ViTConfig(16, 4, 32, 3, 2, 4, "none", (0.5,) * 3, (0.25,) * 3)


def small_vit(seed: int = 0) -> ViT:
    torch.manual_seed(seed)
    vit = ViT(VIT)
    vit.pos_embed.normal_(std=0.1)
    return vit


# --- The recipe's parts ---------------------------------------------------------------------------


def test_layer_decay_groups_by_hand():
    """Depth 3: the embedding is layer 0, blocks are 1 to 3, norm and head 4: 0.5^4 .. 1."""
    model = Classifier(small_vit(), 7)
    groups = parameter_groups(model, FinetuneConfig(layer_decay=0.5, weight_decay=0.05))
    seen = [(g["lr_scale"], g["weight_decay"], len(g["params"])) for g in groups]
    block = [(0.0, 8), (0.05, 4)]  # 4 biases and 2 norms of 2; qkv, proj, fc1, fc2
    assert seen == [
        (0.0625, 0.0, 1), (0.0625, 0.05, 1),
        *((scale, *rest) for scale in (0.125, 0.25, 0.5) for rest in block),
        (1.0, 0.0, 3), (1.0, 0.05, 1),
    ]  # fmt: skip
    grouped = [p for g in groups for p in g["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in model.parameters()}
    assert len(grouped) == len(list(model.parameters()))


def test_a_groups_rate_is_scaled_in_the_step():
    """AdamW's first step moves each weight by its rate: 0.5 a layer less, on weights of size 0."""

    config = FinetuneConfig(
        layer_decay=0.5, weight_decay=0.0, mixup=0.0, cutmix=0.0, drop_path=0.0, smoothing=0.0
    )
    autocast = lambda: torch.autocast("cpu", torch.bfloat16, enabled=False)  # noqa: E731
    tuner = Finetuner(small_vit(), 2, config, 0, autocast, torch.device("cpu"))
    torch.nn.init.normal_(tuner.model.head.weight)
    before = {n: p.detach().clone() for n, p in tuner.model.named_parameters()}
    images = torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8)
    none = torch.zeros(8, dtype=torch.bool)
    tuner.step(Batch(images, torch.arange(8) % 2, torch.arange(8), none), 0, 1e-3)
    moved = {n: (p.detach() - before[n]).abs().max() for n, p in tuner.model.named_parameters()}
    for name, scale in (("encoder.patch_embed.proj.weight", 1 / 16), ("head.weight", 1),
                        ("encoder.blocks.0.attn.qkv.weight", 1 / 8),
                        ("encoder.blocks.2.mlp.fc2.weight", 1 / 2)):  # fmt: skip
        assert float(moved[name]) == pytest.approx(1e-3 * scale, rel=1e-2)


def test_drop_path_keeps_the_expectation_and_rises_linearly():
    ids = torch.arange(40_000)
    keep = drop_path(3, 5, ids, 3, 0.2).double()
    for index, p in enumerate((0.0, 0.1, 0.2)):
        values = keep[:, index].flatten()
        assert set(values.tolist()) <= {0.0, float(np.float32(1 / (1 - p)))}
        assert float((values == 0).double().mean()) == pytest.approx(p, abs=0.004)
        assert float(values.mean()) == pytest.approx(1, abs=0.005)
    assert torch.equal(drop_path(3, 5, ids[77:99], 3, 0.2), keep[77:99].float())
    assert not torch.equal(drop_path(3, 6, ids, 3, 0.2), keep.float())


def test_drop_path_leaves_branches_out():
    """With every branch left out a ViT is its embedding; with factor 1 it is itself."""
    vit, images = small_vit(), torch.randn(4, 3, 16, 16)
    alone = vit.patch_embed(images) + vit.pos_embed
    torch.testing.assert_close(vit(images, torch.zeros(4, 3, 2)), alone, rtol=0, atol=0)
    torch.testing.assert_close(vit(images, torch.ones(4, 3, 2)), vit(images), rtol=0, atol=0)
    one = torch.ones(4, 3, 2)
    one[2, 1, 1] = 0  # one branch of one sample
    same = (vit(images, one) == vit(images)).flatten(1).all(dim=1)
    assert same.tolist() == [True, True, False, True]
    first = vit.blocks[0]
    x = alone + 2 * first.attn(first.norm1(alone))
    wanted = x + 3 * first.mlp(first.norm2(x))
    factors = torch.tensor([2.0, 3.0]).expand(4, 2)
    torch.testing.assert_close(first(alone, factors), wanted)


def test_label_smoothing_and_loss_by_hand():
    targets = smooth_targets(torch.tensor([2, 0]), 4, 0.1)
    wanted = [[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]]
    np.testing.assert_allclose(targets, wanted, rtol=1e-6)
    logits = torch.tensor([[1.0, 2, 3, 4], [0, 0, 0, math.log(5)]])
    first = math.log(sum(math.exp(v) for v in (1, 2, 3, 4))) - (0.025 * 7 + 0.925 * 3)
    second = math.log(8) - 0.025 * math.log(5)
    assert float(soft_cross_entropy(logits, targets).mean()) == pytest.approx((first + second) / 2)
    theirs = torch.nn.functional.cross_entropy(logits, torch.tensor([2, 0]), label_smoothing=0.1)
    torch.testing.assert_close(soft_cross_entropy(logits, targets).mean(), theirs)


def mixed(step, **changes):
    """Image i is all i, so that what returns tells whose pixels it has."""
    config = FinetuneConfig(**changes)
    images = torch.arange(6.0)[:, None, None, None].expand(6, 3, 10, 14).contiguous()
    targets = smooth_targets(torch.arange(6), 6, 0.0)
    return images, *mix(images, targets, config, 11, step)


def test_mixup_shares_are_exact():
    for step in range(20):
        images, got, targets = mixed(step, cutmix=0.0)
        torch.testing.assert_close(targets.sum(1), torch.ones(6))
        share = float(targets[0, 0])
        assert 0 <= share <= 1
        torch.testing.assert_close(got, share * images + (1 - share) * images.flip(0))


def test_cutmix_targets_are_the_share_of_the_area():
    shares = set()
    for step in range(40):
        _, got, targets = mixed(step, mixup=0.0)
        torch.testing.assert_close(targets.sum(1), torch.ones(6))
        for i in range(6):
            own = (got[i, 0] == i).float()
            assert ((got[i] == i) | (got[i] == 5 - i)).all()
            assert float(targets[i, i]) == pytest.approx(float(own.mean()), abs=1e-6)
        shares.add(round(float(targets[0, 0]), 3))
    assert len(shares) > 20


def test_mixing_switches_and_can_be_off():
    kinds = [len(mixed(step)[1][0].unique()) for step in range(300)]
    pure = sum(kind == 1 for kind in kinds)  # MixUp blends whole images: one value an image
    assert 0.4 < pure / 300 < 0.65
    images, got, targets = mixed(0, mixup=0.0, cutmix=0.0)
    assert got is images
    assert torch.equal(targets, torch.eye(6))
    assert all(torch.equal(a, b) for a, b in zip(mixed(4), mixed(4)))


def test_box_lies_inside_and_has_its_area():
    assert box(10, 20, 0.25, 0.5, 0.5) == (3, 8, 5, 15)  # half of each side about the middle
    assert box(10, 20, 0.25, 0.0, 0.999) == (0, 3, 14, 20)  # cut off at the edges
    assert box(10, 20, 0.0, 0.5, 0.5) == (5, 5, 10, 10)


# --- RandAugment ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def picture():
    dice = np.random.default_rng(0)
    large = Image.fromarray(dice.integers(0, 256, (6, 8, 3), np.uint8))
    return np.asarray(large.resize((32, 24), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_keeps_shape_and_type(name, picture):
    """At both ends of its strength; at 0 it is the identity where it has a strength."""
    operate, image = OPERATIONS[name], Image.fromarray(picture)
    for strength in (-1.0, -0.3, 0.0, 0.3, 1.0):
        got = np.asarray(operate(image, strength))
        assert got.shape == picture.shape
        assert got.dtype == np.uint8
        assert np.array_equal(got, np.asarray(operate(image, strength)))
        strengthless = name in ("auto-contrast", "equalize", "invert")
        assert np.array_equal(got, picture) == (strength == 0 and not strengthless)


def test_operations_by_hand(picture):
    image = Image.fromarray(picture)

    def run(name, strength):
        return np.asarray(OPERATIONS[name](image, strength)).astype(int)

    values = picture.astype(int)
    assert np.array_equal(run("invert", 1), 255 - values)
    assert np.array_equal(run("posterize", 1), values // 16 * 16)  # 4 bits
    assert np.array_equal(run("solarize", 0.5), np.where(values < 128, values, 255 - values))
    assert np.array_equal(run("solarize-add", 1), np.where(values < 128, values + 110, values))
    moved = run("translate-x", 0.5 / 0.45)  # by half the width, to the left
    assert np.array_equal(moved[:, :16], values[:, 16:])
    assert (moved[:, 16:] == 128).all()
    np.testing.assert_allclose(run("brightness", -0.5), 0.55 * values, atol=1)
    grey = values @ np.array([0.299, 0.587, 0.114])
    mean = round(grey.mean())
    np.testing.assert_allclose(
        run("contrast", -1 / 0.9 * 0.5), mean + 0.5 * (values - mean), atol=1.5
    )
    sheared = run("shear-x", 1 / 3)  # row y is read from x + 0.1 y
    np.testing.assert_allclose(sheared[10, :30], values[10, 1:31], atol=12)


def test_randaugment_is_its_draws(picture):
    dice = np.random.default_rng(1)
    u = dice.random((60, DRAWS))
    results = [randaugment(picture, row, 9.0) for row in u]
    assert all(r.shape == picture.shape and r.dtype == np.uint8 for r in results)
    assert all(np.array_equal(r, randaugment(picture, row, 9.0)) for r, row in zip(results, u))
    untouched = sum(np.array_equal(r, picture) for r in results)
    assert 5 <= untouched <= 27  # a quarter: neither of the two operations is applied
    u[:, [1, 6]] = 0.9
    assert all(np.array_equal(randaugment(picture, row, 9.0), picture) for row in u)
    edges = np.array([1 - 2**-32, 0.0] * (DRAWS // 2))
    assert randaugment(picture, edges, 10.0).shape == picture.shape


# --- Whole runs -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Two classes: reddish and greenish noise, 40 images each."""
    folder, dice = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for label in range(2):
        (folder / f"class{label}").mkdir()
        for i in range(40):
            image = dice.normal(110, 25, (16, 16, 3))
            image[..., label] += 40
            path = folder / f"class{label}" / f"{i}.png"
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    path.write_bytes(to_bytes(small_vit(), {}))
    return path


SETTINGS = {"finetune.batch": "16", "finetune.base_lr": "3e-2", "speed.workers": "0",
            "finetune.ema": "0.9", "report.log_every": "1"}  # fmt: skip


def tuned(encoder, colours, path, steps, **changes):
    settings = SETTINGS | {k.replace("__", "."): v for k, v in changes.items()}
    launch = Launch(f"folder:{colours}", steps=steps)
    return finetune(encoder, "trained", launch, new_folder(path), settings)


@pytest.fixture(scope="module")
def whole(encoder, colours, tmp_path_factory):
    path = tmp_path_factory.mktemp("finetune") / "whole"
    # RandAugment inverts and moves colours, which are all that tells these classes apart.
    return path, tuned(encoder, colours, path, 30, finetune__randaugment="3")


def test_two_colours_are_learnt(whole):
    path, result = whole
    assert result["finetune_top1"] >= 0.9
    assert result["ema_finetune_top1"] >= 0.9
    assert json.loads((path / "result.json").read_text()) == result
    assert (result["train_images"], result["held_out_images"], result["test_images"]) == (65, 7, 8)
    assert (result["settings"]["base_lr"], result["settings"]["layer_decay"]) == (3e-2, 0.85)
    records = read_metrics(path / "metrics.jsonl")
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 31))
    assert 0.69 < records[0]["loss"] < 0.7  # log 2: the head starts at zero
    assert any("held_out_top1" in r for r in records)
    assert (path / "pictures" / "curves.png").exists()
    rates = [r["lr"] for r in records if "lr" in r]
    assert max(rates) == pytest.approx(3e-2 * 16 / 256, rel=0.02)


def test_the_curve_ends_at_the_result(encoder, colours, tmp_path, monkeypatch):
    """Measured alike, also where the last step was not due."""
    drawn = []
    monkeypatch.setattr(FinetuneRun, "check", lambda *_: None)
    monkeypatch.setattr("ldae_fast.report.pictures.curves", lambda path, made: drawn.extend(made))
    result = tuned(encoder, colours, tmp_path / "run", 2)
    names = ("held_out_top1", "ema_held_out_top1")
    assert drawn[-1] == {"step": 2} | {name: result[name] for name in names}


def test_without_images_held_out_all_are_trained_on(encoder, colours, tmp_path):
    result = tuned(encoder, colours, tmp_path / "all", 2, finetune__hold_out="false")
    assert (result["train_images"], result["held_out_images"], result["test_images"]) == (72, 0, 8)
    assert result["held_out_top1"] is None
    assert not any("held_out_top1" in r for r in read_metrics(tmp_path / "all" / "metrics.jsonl"))
    assert "held-out" not in finetune_table(result)


def test_the_rates_fall_by_layer_as_the_paper_has_it_for_the_size(colours, tmp_path):
    """0.85 for B, 0.65 for L, unless a setting names another."""
    for width, given, wanted in ((768, 0, 0.85), (1024, 0, 0.65), (1024, 0.75, 0.75)):
        vit = ViT(replace(VIT, width=width, depth=1, heads=8))
        config = set_values(Config(), {"finetune.layer_decay": given})
        launch = Launch(f"folder:{colours}", steps=1)
        run = FinetuneRun(config, launch, RunFolder(tmp_path), vit)
        assert run.config.finetune.layer_decay == wanted
        assert run.tuner.optimizer.param_groups[0]["lr_scale"] == pytest.approx(wanted**2)


def test_an_interrupted_run_goes_on_bit_for_bit(whole, encoder, colours, tmp_path, monkeypatch):
    """A real SIGTERM in mid-run; then the command that the message names."""
    path, result = whole
    out = tmp_path / "stopped"
    with (
        stopped_after(4, out),
        pytest.raises(Interrupted, match=r"go on with `ldae resume .*stopped`"),
    ):
        tuned(encoder, colours, out, 30, finetune__randaugment="3")
    assert not (out / "result.json").exists()
    assert main(["resume", str(out), "--speed.workers", "2"]) == 0
    assert_same_state(out, path)
    again = json.loads((out / "result.json").read_text())
    assert again["finetune_top1"] == result["finetune_top1"]
    losses = [[r["loss"] for r in read_metrics(p / "metrics.jsonl") if "loss" in r]
              for p in (out, path)]  # fmt: skip
    assert losses[0] == losses[1]


def test_the_test_images_are_read_once_at_the_end(encoder, colours, tmp_path, monkeypatch):
    """Each of the eight is read when the last step's checkpoint is there, and not again."""
    from ldae_fast.train import finetune as module

    seen = []

    def watched(spec, split, size):
        source = open_source(spec, split, size)
        if split == "test":
            read, steps = source.shrunk, tmp_path / "run" / "checkpoints"
            source.shrunk = lambda *args: (
                seen.append(list_checkpoints(steps)[0].name) or read(*args)
            )
        return source

    monkeypatch.setattr(module, "open_source", watched)
    tuned(encoder, colours, tmp_path / "run", 3)
    assert seen == ["step-0000003"] * 8


def test_parts_of_a_batch_add_up_to_it():
    """Gradients and loss of a batch in four parts, with mixing and drop path, are the whole's."""
    images = torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8)
    batch = Batch(images, torch.arange(8) % 2, torch.arange(8), torch.zeros(8, dtype=torch.bool))
    found = []
    for parts in (1, 4):
        config = FinetuneConfig(batch=8, drop_path=0.3, accumulate=parts)
        tuner = Finetuner(small_vit(), 2, config, 0, nullcontext, torch.device("cpu"))
        torch.nn.init.normal_(tuner.model.head.weight, generator=torch.Generator().manual_seed(1))
        loss = tuner.loss(batch, 3)
        found.append([loss, *(p.grad for p in tuner.model.parameters() if p.requires_grad)])
    for whole, added in zip(*found, strict=True):
        torch.testing.assert_close(added, whole, rtol=1e-4, atol=1e-6)


LITTLE_MEMORY = """
import resource, sys, torch
from ldae_fast.cli import main
from ldae_fast.train import finetune

held = next(int(line.split()[1]) for line in open("/proc/self/status") if "VmData" in line)
limit = (held << 10) + (200 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
sys.exit(main(sys.argv[1:]))
"""


def test_resuming_on_other_data_is_refused(encoder, colours, tmp_path, capsys):
    images, out = shutil.copytree(colours, tmp_path / "images"), tmp_path / "run"
    tuned(encoder, images, out, 1)
    (images / "class1" / "39.png").rename(images / "class1" / "390.png")
    assert main(["resume", str(out)]) == 2
    assert "has changed since" in capsys.readouterr().err
    (images / "class1" / "390.png").rename(images / "class1" / "39.png")
    assert main(["resume", str(out)]) == 0


def test_out_of_memory_names_the_switch_with_which_the_run_goes_on(encoder, colours, tmp_path):
    out = tmp_path / "run"
    words = ["finetune", encoder, "--data", f"folder:{colours}", "--steps", 1, "--out", out,
             "--finetune.batch", 4096, "--finetune.randaugment", 0]  # fmt: skip
    done = subprocess.run([sys.executable, "-c", LITTLE_MEMORY, *map(str, words)],
                          capture_output=True, text=True, timeout=300, check=False)  # fmt: skip
    said = done.stderr.splitlines()[-1]
    assert said.startswith("ldae: out of memory at step 1 with 4096 images at a time: ")
    assert "--finetune.accumulate 2 makes the same steps of 2048" in said
    assert f"go on with `ldae resume {out}` and that" in said
    assert done.returncode == 2
    assert main(["resume", str(out), "--finetune.accumulate", "64"]) == 0
    assert json.loads((out / "result.json").read_text())["steps"] == 1


@pytest.mark.parametrize(
    ("owner", "name", "kept"),
    [(FinetuneRun, "batch", 2), (Finetuner, "loss", 2), (AdamWEMA, "step", 0)],
)
def test_out_of_memory_in_mid_run_keeps_the_steps_before_it(
    encoder, colours, tmp_path, monkeypatch, capsys, owner, name, kept
):
    """Unless it comes while weights change, which then are of no step."""
    out = tmp_path / "run"
    fail_once(monkeypatch, owner, name, at=2)
    words = ["finetune", str(encoder), "--data", f"folder:{colours}", "--steps", "30", "--out",
             str(out), "--finetune.batch", "16", "--finetune.randaugment", "0",
             "--checkpoint.every", "100", "--speed.workers", "0"]  # fmt: skip
    assert main(words) == 2
    assert "out of memory at step 3 with 16 images at a time: " in capsys.readouterr().err
    assert list_checkpoints(out / "checkpoints")[0].name == f"step-{kept:07d}"


def test_one_image_that_does_not_fit_is_advised_no_resuming(encoder, colours, tmp_path):
    launch, settings = Launch(f"folder:{colours}", steps=1), {"finetune.batch": "4"}
    run = FinetuneRun(
        set_values(Config(), settings), launch, RunFolder(tmp_path), load_vit(encoder)
    )
    assert run.advice().by_a_setting
    alone = settings | {"finetune.accumulate": "4"}
    run = FinetuneRun(set_values(Config(), alone), launch, RunFolder(tmp_path), load_vit(encoder))
    assert not run.advice().by_a_setting
    assert "one image at a time: fine-tune a smaller encoder" in str(run.advice())


def test_what_a_user_can_get_wrong(encoder, colours, tmp_path, capsys):
    base = ["finetune", str(encoder), "--data", f"folder:{colours}", "--steps", "1", "--out"]

    def said(*words):
        assert main([*base, str(tmp_path / "out"), *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert not (tmp_path / "out").exists()
        return line

    assert "finetune.drop_path must be at least 0 and below 1; got 1.0" in said(
        "--finetune.drop_path", "1")  # fmt: skip
    assert "did you mean finetune.mixup?" in said("--finetune.mixups", "1")
    assert "--model.depth decides nothing in fine-tuning" in said("--model.depth", "3")
    assert "finetune.randaugment must be 0 to 10; got 11" in said("--finetune.randaugment", "11")
    base[3] = f"folder:{write_images(tmp_path / 'alike', classes=1, each=3)}"
    line = said()
    assert "fine-tuning needs two classes or more, and two training images" in line
    assert "it has classes: 1, training images: 2" in line
    base[1] = str(tmp_path / "nothing.safetensors")
    assert "there is no such file" in said()
    base[1] = str(colours)
    assert "config.json cannot be read" in said()
    (tmp_path / "config.json").write_text('{"encoder": {}}')
    with pytest.raises(SettingError, match="decides a run's results"):
        resume(tmp_path, {"finetune.batch": "3"})


def test_a_loss_that_is_not_finite_ends_the_run(encoder, colours, tmp_path, capsys):
    words = ["finetune", str(encoder), "--data", f"folder:{colours}", "--steps", "30", "--out",
             str(tmp_path / "run"), "--finetune.batch", "16", "--finetune.base_lr", "1e30",
             "--report.log_every", "1", "--speed.workers", "0"]  # fmt: skip
    assert main(words) == 2
    assert "Lower --finetune.base_lr" in capsys.readouterr().err


def test_subset_renumbers(colours):
    source = open_source(f"folder:{colours}", "train", 16)
    part = Subset(source, np.array([3, 50]))
    assert len(part) == 2
    assert part.labels.tolist() == [0, 1]
    assert part.describe(1) == source.describe(50)
    assert np.array_equal(part.read(1), source.read(50))
