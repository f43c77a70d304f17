"""`ldae plan`, which computes nothing, against numbers by hand and against steps that were made."""

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY
from test_train import build

from ldae_fast.cli import main
from ldae_fast.config import SettingError, set_values
from ldae_fast.plan import (
    blank_batch,
    blank_tokenizer,
    dry_run,
    make_plan,
    pick_rates,
    plan_text,
    planned,
    smallest_split,
    tokenizer_work,
)
from ldae_fast.rates import MEMORY
from ldae_fast.recipes import ROWS, build_config
from ldae_fast.train.engine import Engine

H100 = {"H100": 989e12}


def parameters_by_hand(width: int, blocks: int, token: int, out: int) -> int:
    """Weights and biases, layer by layer."""
    block = width * 3 * width + 3 * width  # qkv
    block += width * width + width  # proj
    block += width * 4 * width + 4 * width + 4 * width * width + width  # MLP
    quarter, vectors = width // 4, 6 * blocks + 2
    time = 256 * quarter + quarter + quarter * quarter + quarter
    modulation = time + quarter * vectors * width + vectors * width
    return blocks * block + modulation + (token * width + width) + (width * out + out)


@pytest.fixture(scope="module")
def half_l() -> dict:
    return make_plan(build_config("ldae", 256), H100, 0.45, 400, 1_281_167)


def test_the_papers_size_by_hand(half_l):
    """Half-L costs what its products cost: 486.6 GFLOP an image, to what the two ends add."""
    count = parameters_by_hand(1024, 24, 768, 768)
    assert half_l["parameters"] == count
    held = half_l["bytes"]
    assert (held["weights"], held["moments"], held["ema"]) == (4 * count, 8 * count, 4 * count)
    matrices = count - 768 * 1024 - 1024  # the embedding is folded in float32
    assert 0.99 * matrices < held["copy"] / 2 < matrices  # all but the vectors has a bfloat16 copy
    assert held["copy"] <= held["gradients"] < 1.01 * held["copy"] + 4 * 768 * 1024
    tokens, width = 256, 1024
    products, scores = tokens * 12 * width**2, 2 * tokens**2 * width  # multiply-adds of a block
    blocks_alone = 6 * 24 * (products + scores)
    assert blocks_alone < half_l["flop_an_image"] < 1.01 * blocks_alone
    assert half_l["flop_an_image"] == pytest.approx(486.6e9, rel=0.005)
    work = half_l["flop_an_image"] * 400 * 1_281_167
    assert half_l["seconds"]["H100"] == pytest.approx(work / 989e12 / 0.45)


@pytest.mark.parametrize(
    ("row", "token", "out"), [("row7", 32, 32), ("row10", 768, 32), ("row12", 768, 768)]
)
def test_what_goes_in_and_out_decides_the_ends(row, token, out):
    short = {"model.depth": "1", "model.decoder_depth": "0", "optimizer.accumulate": "64"}
    plan = make_plan(build_config(row, 256, "L", short), H100, 0.45, 400, 1_281_167)
    count = parameters_by_hand(1024, 1, token, out)
    assert plan["parameters"] == count
    assert plan["bytes"]["gradients"] == 4 * count  # several passes add up in float32
    assert plan["bytes"]["copy"] == 0


@pytest.mark.parametrize("row", sorted(ROWS.keys() - {"ldae", "demo"}))
def test_every_recipe_takes_a_step_at_the_papers_size(row):
    """24 blocks of 1,024 at 256 pixels; row 0 beside a table of ImageNet's classes and of none."""
    config = planned(build_config(row, 256, "", {"optimizer.accumulate": "64"}))
    count = dry_run(config)["weights"] // 4
    latents = (config.objective.input == "latent", config.objective.target == "latent")
    token, out = (config.tokenizer.d if latent else 768 for latent in latents)
    if row == "mae":  # a decoder of 4 blocks of 512 on the encoder's 12
        assert 160e6 < count < 200e6
    else:
        classes = 1001 * 1024 // 4 if row == "row0" else 0
        assert count == parameters_by_hand(1024, 24, token, out) + classes


@pytest.mark.parametrize("recompute", ["false", "true"])
def test_memory_is_that_of_a_step_that_was_made(image_folder, recompute, monkeypatch):
    """The most that one real step holds, by torch's own profiler."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    from interleave import peak_mib

    monkeypatch.setenv("LDAE_IMPL", "attention=sdpa-flash")
    changes = {"model__width": 64, "model__depth": 3, "optimizer__batch": 96}
    engine, loader = build(image_folder, speed__recompute=recompute, **changes)
    batch = loader.batch(0)
    real = peak_mib(lambda: engine.loss(batch, 0), "cpu") * 2**20
    held = dry_run(engine.config)
    fixed = sum(held[name] for name in ("weights", "moments", "ema", "copy"))
    assert held["at_most"] - fixed == pytest.approx(real, rel=0.1)


def test_activations_are_what_autograd_keeps(monkeypatch):
    """Of a real pass: what is saved for the backward pass, once, and the prediction."""
    monkeypatch.setenv("LDAE_IMPL", "reference")
    config = build_config("ldae", 32, "", TINY | {"speed.weight_copy": "false"})
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    engine = Engine(config, blank_tokenizer(config))
    batch = blank_batch(16, 32)
    own = {p.untyped_storage().data_ptr() for p in engine.model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        guess = engine.objective.guess(engine.network, batch.images, batch.ids, batch.flip, 0)
    saved = sum(s.nbytes() for address, s in kept.items() if address not in own)
    assert dry_run(config)["activations"] == pytest.approx(saved + guess.pred.nbytes, rel=0.01)


def test_activations_grow_with_the_images_of_a_pass():
    one, two, split = (
        dry_run(
            build_config("ldae", 32, "", TINY | {"optimizer.batch": b, "optimizer.accumulate": a})
        )
        for b, a in (("16", "1"), ("32", "1"), ("32", "2"))
    )
    assert two["activations"] == pytest.approx(2 * one["activations"], rel=0.02)
    assert split["activations"] == one["activations"]


def test_a_convolutional_tokenizer_by_hand():
    """One level of 16 channels, 3 latents a place, no downsampling: multiply-adds a place."""
    small = {"model.patch": "2", "tokenizer.d": "12", "tokenizer.channels": "16"}
    work = tokenizer_work(build_config("row3", 32, "", small))
    c, z, places = 16, 3, 32**2
    encoder = 9 * 3 * c + 4 * 9 * c**2  # the first convolution, two residual blocks
    encoder += 4 * 9 * c**2 + 4 * c**2 + 2 * places * c  # the middle: two more, attention
    encoder += 9 * c * 2 * z + (2 * z) ** 2
    assert work["flop_to_encode"] == 2 * places * encoder
    decoder = z * z + 9 * z * c + 4 * 9 * c**2 + 4 * c**2 + 2 * places * c  # up to the middle
    decoder += 6 * 9 * c**2 + 9 * 3 * c  # three residual blocks, the last convolution
    forward = 2 * places * (encoder + decoder)
    images = work["steps"] * work["batch"]
    assert 2.9 * forward < work["training_flop"] / images < 3.2 * forward


def test_a_convolutional_tokenizers_terms_count_once_they_are_on():
    plain, adversary, both = (
        tokenizer_work(build_config(row, 32, "", more))["training_flop"]
        for row, more in (
            ("row3", {}), ("row2", {"tokenizer.adversarial_start": "1"}),
            ("row0", {"tokenizer.adversarial_start": "1"}),
        )
    )  # fmt: skip
    assert plain == adversary < both
    late, early = (
        tokenizer_work(build_config("row2", 32, "", {"tokenizer.adversarial_start": at}))
        for at in ("0.5", "0")
    )
    assert late["training_flop"] - plain == pytest.approx(
        (early["training_flop"] - plain) / 2, rel=1e-6
    )
    assert late["training_flop"] > plain


def test_the_familys_tokenizer_and_the_time_it_takes():
    """83,653,863 parameters is the size of Latent Diffusion's published f8-KL autoencoder."""
    plan = make_plan(build_config("row0", 256), H100, 0.45, 400, 1_281_167)
    work = plan["tokenizer"]
    assert work["parameters"] == 83_653_863
    whole = (plan["flop_an_image"] + work["flop_to_encode"]) * 400 * 1_281_167
    whole += work["training_flop"]
    assert plan["seconds"]["H100"] == pytest.approx(whole / 989e12 / 0.45)
    assert "83.7 M parameters" in plan_text(plan)
    assert make_plan(build_config("row7", 256), H100, 0.45, 1, 1)["tokenizer"] == {}


def test_rates_by_name_or_number():
    assert pick_rates("H100", 0) == H100
    assert pick_rates("", 2.5) == {"this device": 2.5e12}
    assert "A100" in pick_rates("", 0)
    with pytest.raises(SettingError, match=r"--gpu must be one of H100.*got 'A1000'"):
        pick_rates("A1000", 0)
    with pytest.raises(SettingError, match=r"--gpu must be one of H100.*got 'Voodoo2'"):
        pick_rates("Voodoo2", 0)


def test_what_does_not_fit_is_told_with_what_does():
    """The smallest split whose own plan fits, by planning it and the one before it."""
    config = build_config("ldae", 256)
    plan = make_plan(config, pick_rates("", 0), 0.45, 400, 1000)
    assert plan["fits"] == {name: plan["bytes"]["at_most"] <= MEMORY[name] for name in MEMORY}
    assert not plan["fits"]["H100"]
    parts = smallest_split(plan, MEMORY["H100"])
    assert f"a pass does not fit its 80 GB; --optimizer.accumulate {parts} does" in plan_text(plan)
    for accumulate, fits in ((parts, True), (parts // 2, False)):
        split = set_values(config, {"optimizer.accumulate": accumulate})
        assert make_plan(split, H100, 0.45, 400, 1000)["fits"] == {"H100": fits}


def test_float8_is_planned_on_any_machine():
    """It differs from bfloat16 in some products alone, so in nothing that is counted."""
    plain, eighths = (
        make_plan(build_config("ldae", 32, "", {"optimizer.precision": p}), H100, 0.45, 1, 1)
        for p in ("bfloat16", "float8")
    )
    assert plain == eighths


def test_a_share_is_at_most_one():
    with pytest.raises(SettingError, match=r"--mfu is a share .* got 1.5"):
        make_plan(build_config("ldae", 32, "", TINY), H100, 1.5, 1, 1)


def test_the_command(capsys):
    words = ["plan", "row7", "--image-size", "32", "--device-rate", "2", "--images", "50000"]
    words += ["--epochs", "10", "--tokenizer.d", "24"]
    assert main([*words, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["parameters"] == parameters_by_hand(192, 6, 24, 24)
    wanted = plan["flop_an_image"] * 500_000 / 0.9e12
    assert plan["seconds"] == {"this device": pytest.approx(wanted)}
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "\nthis device  " in text
    assert f"{plan['parameters'] / 1e6:,.1f} M parameters" in text
    assert "Nothing\nwas measured" in text
    assert main(["plan", "row77"]) == 2
    assert "did you mean row7?" in capsys.readouterr().err
