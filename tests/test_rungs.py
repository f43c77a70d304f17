"""Every rung of the step's ladder (bench/ladder.py): the same curve as the rung below it."""

import sys
from pathlib import Path

import pytest
import torch
from test_train import build, curve

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
from ladder import Rung, ladder

LADDER = [rung for rung in ladder("cpu") if rung.settings["speed.compile"] == "off"]
# What computes the same numbers in another place or at another time.
EXACT = ("low-precision weights kept by the optimizer", "freed memory kept")
# A rate at which the blocks learn. They begin as the identity; at the recipe's own rate they stay
# so near to it for 200 steps that one a ten-thousandth off moves no loss by 2e-6 of it.
FAST = {"optimizer__base_lr": "3e-2", "optimizer__warmup": "0.1"}


def losses(image_folder, rung: Rung, precision: str, steps: int, **more: str) -> torch.Tensor:
    changes = {name.replace(".", "__"): str(value).lower() for name, value in rung.settings.items()}
    with rung.surroundings():
        changes |= {"optimizer__precision": precision} | more
        return torch.tensor(curve(*build(image_folder, **changes), steps), dtype=torch.float64)


@pytest.fixture(scope="module")
def definition(image_folder) -> torch.Tensor:
    return losses(image_folder, LADDER[0], "float32", 200, **FAST)


@pytest.mark.parametrize(
    "rung", [rung for rung in LADDER[2:] if rung.name not in EXACT], ids=lambda rung: rung.name
)
def test_in_float32_a_rung_stays_within_1e_5_of_the_definition(image_folder, definition, rung):
    made = losses(image_folder, rung, "float32", 200, **FAST)
    torch.testing.assert_close(made, definition, rtol=1e-5, atol=0)


@pytest.mark.parametrize("compiled", ["blocks", "on"])
def test_in_float32_a_compiled_step_stays_there_too(image_folder, definition, compiled):
    rung = Rung("", LADDER[-1].settings | {"speed.compile": compiled})
    made = losses(image_folder, rung, "float32", 200, **FAST)
    torch.testing.assert_close(made, definition, rtol=1e-5, atol=0)


def test_recomputing_leaves_the_curve_bit_for_bit(image_folder):
    """Of the top rung. AdamW hides what scales a matrix's gradients, all but for some last bits."""
    kept, made = (
        losses(image_folder, Rung("", LADDER[-1].settings | {"speed.recompute": switch}),
               "float32", 200, **FAST)
        for switch in (False, True)
    )  # fmt: skip
    assert torch.equal(kept, made)


@pytest.mark.parametrize("name", EXACT)
def test_a_rung_that_changes_no_number_leaves_the_curve_bit_for_bit(image_folder, name):
    place = [rung.name for rung in LADDER].index(name)
    below, rung = (losses(image_folder, r, "bfloat16", 20) for r in LADDER[place - 1 : place + 1])
    assert torch.equal(below, rung)


def test_in_bfloat16_the_top_rung_is_nearer_to_the_definition_than_another_seed(image_folder):
    def smooth(rung, seed="0"):
        return losses(image_folder, rung, "bfloat16", 200, seed=seed).unfold(0, 20, 20).mean(1)

    definition = smooth(LADDER[1])
    apart = (smooth(LADDER[-1]) - definition).abs().max()
    assert 0 < apart < (smooth(LADDER[1], "1") - definition).abs().max() / 6
