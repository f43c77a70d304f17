"""The path as one study: what is run, how runs end and go on, what is concluded and shown."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import flags
from PIL import Image
from scipy import stats
from test_report import Tags

from ldae_fast.cli import build_parser, main
from ldae_fast.cli.arguments import image_side, read_overrides
from ldae_fast.config import SettingError, set_values
from ldae_fast.objective import Guess, Objective
from ldae_fast.ops import denoise_loss
from ldae_fast.recipes import ROWS, build_config, recipe_config
from ldae_fast.report.study import write_reports
from ldae_fast.tokenizers import fit_tokenizer
from ldae_fast.train.folder import RunError
from ldae_fast.trajectory import arms as what
from ldae_fast.trajectory import paper
from ldae_fast.trajectory.arms import Arm, parse_rows, parse_seeds, path_study, sweep
from ldae_fast.trajectory.children import Children, places, run_jobs
from ldae_fast.trajectory.jobs import Ask, Job, plan_jobs
from ldae_fast.trajectory.statistics import compare, spread, student_tail, verdict
from ldae_fast.trajectory.study import check_settings, claimed, outcome
from ldae_fast.trajectory.summary import summarise

ASK = Ask("photos", 32, "", "cpu", "auto", 20, 0.0, 0.0, {"model.depth": "1"})

# --- What is run ----------------------------------------------------------------------------------


def test_rows_are_read():
    assert parse_rows("7,10-13,pixel,mae") == ["7", "10", "11", "12", "13", "pixel", "mae"]
    assert "mae" not in what.default_rows()
    assert parse_rows("row9, 12+,9") == ["9", "12+"]
    assert [arm.recipe for arm in path_study(["13", "7"]).arms] == ["row7", "row13"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("72", r"there is no row '72'; the rows are .*7, 8.*did you mean 7\?"),
        ("pixle", r"no row 'pixle'.*did you mean pixel\?"),
        ("7-999999999", r"no row '999999999'"),
        ("9-8", "the first row must not come after the last"),
        ("", "must name rows"),
        ("7-", r"no row '7-'"),
    ],
)
def test_rows_that_are_none_are_refused(text, said):
    with pytest.raises(SettingError, match=said):
        parse_rows(text)


def test_rows_without_a_recipe_are_refused(monkeypatch):
    monkeypatch.setattr(what, "ROWS", {k: v for k, v in ROWS.items() if k != "row8"})
    with pytest.raises(SettingError, match="no row '8'"):
        parse_rows("7-9,8")
    assert "8" not in what.default_rows()
    assert {"7", "12", "13", "pixel"} <= set(what.default_rows())


def test_seeds_are_read():
    study = path_study(["7", "12", "12+", "pixel"])
    assert set(parse_seeds("3", study.arms).values()) == {3}
    some = parse_seeds("7:3,12+:2,pixel:4", study.arms)
    assert some == {"row7": 3, "row12": 1, "ldae-aug": 2, "pixel": 4}
    for text, said in (("0", "1 to 1000"), ("x", "1 to 1000"), ("7:", "1 to 1000"),
                       ("17:2", r"no '17'; did you mean row7|no '17'; it has"),
                       ("pixl:2", r"did you mean pixel\?")):  # fmt: skip
        with pytest.raises(SettingError, match=said):
            parse_seeds(text, study.arms)


def test_jobs_go_seed_by_seed_and_runs_before_their_probes(tmp_path):
    study = path_study(["7", "13"])
    jobs = plan_jobs(study.arms, {"row7": 2, "row13": 1}, tmp_path, ASK)
    assert [job.name for job in jobs] == ["row7-s0", "row13-s0", "row7-s1"]
    probes = sweep("cut", recipe_config("ldae", 32)).arms[:2]
    jobs = plan_jobs(probes, dict.fromkeys((a.name for a in probes), 2), tmp_path, ASK)
    assert [job.name for job in jobs] == [
        "row12-s0", "block1-s0", "block2-s0", "row12-s1", "block1-s1", "block2-s1",
    ]  # fmt: skip
    assert jobs[1].after is jobs[0]
    words = jobs[1].command()
    assert words[3:5] == ["probe", str(tmp_path / "runs" / "row12-s0")]
    assert words[-2:] == ["--evaluate.cut", "1"]
    assert "--model.depth" not in words  # a probe takes no setting of training


def test_a_run_is_told_its_arm_its_seed_and_its_budget(tmp_path):
    arm = Arm("longer", "", "row9", {"tokenizer.d": "8"}, budget=4)
    words = Job(arm, 5, tmp_path, replace(ASK, size="S")).command()[3:]
    pairs = dict(zip(words[2::2], words[3::2]))
    assert words[:2] == ["train", "row9"]
    assert pairs == {
        "--data": "photos", "--out": str(tmp_path / "runs" / "longer-s5"), "--seed": "5",
        "--data.image_size": "32", "--device": "cpu", "--impl": "auto", "--size": "S",
        "--steps": "80", "--model.depth": "1", "--tokenizer.d": "8",
    }  # fmt: skip


@pytest.mark.parametrize("name", what.SWEEPS)
def test_what_a_run_is_told_is_understood(name, tmp_path):
    """The command line takes the words of every arm, and makes the arm's settings of them."""
    ask = replace(ASK, image_size=64, settings={"optimizer.batch": "128"})
    arms = [arm for arm in sweep(name, recipe_config("ldae", 64)).arms if not arm.of]
    for job in plan_jobs(arms, {arm.name: 1 for arm in arms}, tmp_path, ask):
        args, rest = build_parser().parse_known_args(job.command()[3:])
        overrides = read_overrides(rest)
        wanted = {"data.image_size": "64", "optimizer.batch": "128", **job.arm.settings}
        assert overrides == wanted
        assert image_side(args, overrides) == int(wanted["data.image_size"])


@pytest.mark.parametrize("name", what.SWEEPS)
@pytest.mark.parametrize("side", [64, 256])
def test_every_sweep_admits_arms_and_leaves_the_rest_out(name, side):
    study = sweep(name, recipe_config("ldae", side))
    ask = replace(ASK, image_size=side, settings={})
    left_out = check_settings(study, ask)
    names = [arm.name for arm in study.arms]
    assert len(set(names)) == len(names) > len(left_out)
    assert all({before, after} <= set(names) for before, after in study.pairs)
    for arm in study.arms:
        if arm.name not in left_out:
            size = int(arm.settings.get("data.image_size", side))
            build_config(arm.recipe, size, "", arm.settings)


def test_sweeps_hold_the_papers_figures():
    at256 = recipe_config("ldae", 256)
    table2 = {arm.name: arm for arm in sweep("table2", at256).arms}
    assert table2["pca-d32"].paper == path_study(["7"]).arms[0].paper == 0.651
    assert table2["patch-vae-d16"].paper == paper.PATH["5"][2] / 100
    assert table2["pca-d128"].settings == {"tokenizer.d": "128"}
    kinds = ("conv-vae", "patch-vae", "patch-ae", "pca")
    assert [table2[f"{kind}-d16"].recipe[3:] for kind in kinds] == ["4", "5", "6", "7"]
    cut = {arm.name: arm.paper for arm in sweep("cut", at256).arms}
    assert cut == {"block9": 0.585, "block10": 0.62, "block11": 0.641, "block12": 0.645,
                   "block13": 0.636, "block14": 0.619, "block15": 0.597}  # fmt: skip
    assert [arm.paper for arm in sweep("cut", recipe_config("ldae", 32)).arms].count(0.645) == 1
    t = {arm.name: arm.paper for arm in sweep("probe-t", at256).arms}
    assert (t["clean-t10"], t["noisy-t80"], len(t)) == (0.645, 0.645, 10)
    assert [arm.budget for arm in sweep("epochs", at256).arms] == [1, 2, 4]


def test_images_of_another_side_keep_the_studys_network():
    study = sweep("fig5", recipe_config("ldae", 64))
    configs = [
        build_config(a.recipe, int(a.settings["data.image_size"]), "", a.settings)
        for a in study.arms
    ]
    assert [(c.data.image_size // c.model.patch) ** 2 for c in configs] == [256, 256]
    assert {c.model.width for c in configs} == {recipe_config("ldae", 64).model.width}
    assert {c.optimizer.batch for c in configs} == {128}


def test_settings_that_no_arm_takes_are_refused():
    study = path_study(["7", "pixel"])
    with pytest.raises(SettingError, match=r"--tokenizer.kind is what this study varies \(pixel"):
        check_settings(study, replace(ASK, settings={"tokenizer.kind": "pca"}))
    with pytest.raises(SettingError, match=r"model\.heads"):
        check_settings(study, replace(ASK, settings={"model.heads": "5"}))
    left = check_settings(sweep("table2", recipe_config("ldae", 32)), replace(ASK, settings={}))
    assert "tokenizer.d must be at most 48" in left["pca-d64"]
    with pytest.raises(SettingError, match=r"--table must be one of table2.*did you mean cut\?"):
        sweep("cuts", recipe_config("ldae", 32))
    with pytest.raises(SettingError, match=r"--table fig5 .* needs 64 or more; got 32"):
        sweep("fig5", recipe_config("ldae", 32))


def test_a_setting_that_every_arm_has_alike_is_no_clash():
    """fig5 gives every side the network of the study's, as the caller has it."""
    given = {"optimizer.batch": "16", "optimizer.base_lr": "3e-3"}
    study = sweep("fig5", set_values(recipe_config("ldae", 64), given))
    assert check_settings(study, replace(ASK, settings=given)) == {}
    with pytest.raises(SettingError, match=r"--model.patch is what this study varies \(pixel-64-4"):
        check_settings(study, replace(ASK, settings={"model.patch": "2"}))


def test_a_row_that_was_asked_for_is_never_left_out():
    """Its run fails in its own words instead; only a sweep goes without."""
    ask = replace(ASK, settings={"tokenizer.d": "18"})  # no multiple of 4, as row 4's must be
    study = path_study(["4", "12"])
    assert check_settings(study, ask) == {}
    assert list(check_settings(replace(study, optional=True), ask)) == ["row4"]


@pytest.mark.parametrize(
    ("study", "name", "value", "differ"),
    [
        (sweep("table2", recipe_config("ldae", 32)), "tokenizer.kind", "pca", "row4 and row5"),
        (sweep("augment", recipe_config("ldae", 32)), "data.augment", "center",
         "row12 and ldae-aug"),
        (path_study(["3", "4"]), "noise.schedule", "ddpm", "row3 and row4"),
        (path_study(["12", "mae"]), "objective.predict", "clean", "row12 and mae"),
    ],
)  # fmt: skip
def test_what_recipes_differ_in_is_not_set_for_all(study, name, value, differ):
    """Two arms would be the same, under two names."""
    with pytest.raises(SettingError, match=rf"--{name} is what this study varies \({differ} diff"):
        check_settings(study, replace(ASK, settings={name: value}))


def test_a_study_takes_a_perceptual_network_that_some_rows_use(tmp_path):
    ask = replace(ASK, settings={"tokenizer.vgg": "vgg16.pth", "tokenizer.d": "16"})
    study = path_study(what.default_rows())
    assert check_settings(replace(study, optional=True), ask) == {}


def test_a_study_goes_on_with_settings_that_decide_no_result(tmp_path):
    out, asked = tmp_path / "study", {"title": "x", "settings": {"model.depth": "1"}}
    with claimed(out, asked):
        pass
    more = {"optimizer.accumulate": "2", "speed.workers": "0"}
    with claimed(out, asked | {"settings": asked["settings"] | more}):
        pass
    with (
        pytest.raises(RunError, match=r"with settings --model.depth 1, not --model.depth 2"),
        claimed(out, asked | {"settings": {"model.depth": "2"}}),
    ):
        pass


def test_a_run_goes_on_with_settings_that_decide_no_result(tmp_path):
    job = Job(path_study(["12"]).arms[0], 0, tmp_path, ASK)
    (job.run.checkpoints / "step-0000001").mkdir(parents=True)
    assert job.command()[3:] == ["resume", str(job.run.path)]
    ask = replace(ASK, settings={"model.depth": "1", "optimizer.accumulate": "2"})
    assert replace(job, ask=ask).command()[5:] == ["--optimizer.accumulate", "2"]


def test_places_share_the_cores(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert places("cpu", 3) == [{"OMP_NUM_THREADS": "2"}] * 3
    assert places("cpu", 1) == [{}]
    with pytest.raises(RunError, match="torch sees no CUDA device"):
        places("cuda", 1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert places("cuda", 1) == [{"CUDA_VISIBLE_DEVICES": "3"}]
    assert places("cuda", 2) == [
        {"CUDA_VISIBLE_DEVICES": "3", "OMP_NUM_THREADS": "4"},
        {"CUDA_VISIBLE_DEVICES": "5", "OMP_NUM_THREADS": "4"},
    ]
    with pytest.raises(RunError, match="--jobs must be at most 2, one a visible GPU; got 3"):
        places("cuda", 3)


# --- Statistics -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dof", [1, 2, 3, 4, 5, 8, 11, 30, 101])
def test_students_tail_is_scipys(dof):
    for t in (-40.0, -2.1, -0.3, 0.0, 0.7, 1.0, 2.9, 12.0):
        assert student_tail(t, dof) == pytest.approx(stats.t.sf(t, dof), abs=1e-14)
    assert student_tail(math.sqrt(3), 1) == pytest.approx(1 / 6)  # Cauchy: atan(sqrt 3) = pi / 3


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_the_paired_test_is_scipys(n):
    dice = np.random.default_rng(n)
    for shift in (-0.01, 0.0, 0.02):
        a, b = 0.5 + shift + 0.01 * dice.normal(size=n), 0.5 + 0.01 * dice.normal(size=n)
        found = compare(dict(enumerate(a)), dict(enumerate(b)))
        theirs = stats.ttest_rel(a, b, alternative="greater")
        assert found.p == pytest.approx(theirs.pvalue, abs=1e-12)
        assert (found.n, found.difference) == (n, pytest.approx(np.mean(a - b)))


def test_the_paired_test_by_hand():
    """Differences 1, 2, 3: mean 2, deviation 1, t = 2 sqrt 3, two degrees of freedom."""
    found = compare({0: 0.51, 1: 0.52, 2: 0.53, 9: 0.1}, {2: 0.50, 0: 0.50, 1: 0.50, 7: 0.9})
    t = 2 * math.sqrt(3)
    assert found.n == 3  # the seeds that both have
    assert (found.difference, found.std) == (pytest.approx(0.02), pytest.approx(0.01))
    assert found.p == pytest.approx((1 - t / math.sqrt(2 + t * t)) / 2)


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ((0.50, 0.52, 0.51), (0.40, 0.41, 0.41), "confirmed"),
        ((0.40, 0.41, 0.41), (0.50, 0.52, 0.51), "not confirmed: the other way round"),
        ((0.50, 0.40, 0.45), (0.41, 0.48, 0.44), "undecided"),
        ((0.50, 0.5201), (0.40, 0.42), "undecided: too few seeds (2)"),
        ((0.50, 0.51), (0.40, 0.41), "not tested: the same difference in every seed"),
        ((0.50,), (0.40,), "not tested: one seed"),
        ((0.50,), (), "not tested: not run"),
    ],
)
def test_verdicts(a, b, said):
    found = compare(dict(enumerate(a)), dict(enumerate(b)))
    assert verdict(found) == said
    assert (found.p is None) == said.startswith("not tested")


def test_what_has_not_learnt_confirms_nothing():
    found = compare({0: 0.50, 1: 0.52, 2: 0.51}, {0: 0.40, 1: 0.41, 2: 0.41})
    assert verdict(found, learning=False) == "undecided: not learning yet"
    assert found.p < 0.05


def test_spread():
    assert spread([0.5, 0.7]) == (pytest.approx(0.6), pytest.approx(math.sqrt(0.02)))
    assert spread([0.5]) == (0.5, None)
    assert spread([]) == (None, None)


# --- What is concluded and shown ------------------------------------------------------------------


def finished(job: Job, top1: float) -> None:
    """Leaves what a run leaves."""
    job.output.parent.mkdir(parents=True, exist_ok=True)
    base = {"raw_pixels": 0.3, "colour_histogram": 0.2, "untrained": 0.25}
    result = {"linear_top1": top1, "knn_top1": top1 - 0.1, "seconds": 60.0, "steps": 20,
              "final_loss": 0.5, "baselines": base, "chance": 0.1,
              "note": "A small set."}  # fmt: skip
    if job.arm.name == "row7":
        result["perceptual"] = "VGG16 from vgg.pth"
    job.output.write_text(json.dumps(result))


@pytest.fixture
def told(tmp_path) -> tuple[dict, Path]:
    """A study of made-up scores: 13 beats 12 clearly, 7 one seed, 9 failed, 10 waits."""
    study = path_study(["7", "9", "10", "12", "13", "even", "pixel"])
    seeds = dict.fromkeys((a.name for a in study.arms), 3)
    jobs = plan_jobs(study.arms, seeds, tmp_path, ASK)
    made = {"row7": (0.65,), "row12": (0.60, 0.61, 0.62), "row13": (0.70, 0.72, 0.71),
            "even": (0.60, 0.61, 0.62), "pixel": (0.40, 0.42, 0.41)}  # fmt: skip
    for job in jobs:
        if job.seed < len(made.get(job.arm.name, ())):
            finished(job, made[job.arm.name][job.seed])
    problems = {"row9-s0": "<b>out of memory</b> at step 3"}
    asked = {"command": "ldae trajectory <x>", "data": "photos", "image_size": 32, "steps": 20,
             "epochs": 0, "minutes": 0}  # fmt: skip
    summary = summarise(study, jobs, problems, {}, asked)
    write_reports(tmp_path, summary)
    return summary, tmp_path


def test_conclusions_of_made_up_numbers(told):
    summary, _ = told
    rows = {row["row"]: row for row in summary["rows"]}
    assert (rows["row12"]["mean"], rows["row12"]["std"]) == (
        pytest.approx(0.61), pytest.approx(0.01),
    )  # fmt: skip
    assert rows["row12"]["knn_mean"] == pytest.approx(0.51)
    assert [rows[r]["state"] for r in ("row12", "row9", "row10")] == [
        "finished", "failed", "waiting",
    ]  # fmt: skip
    assert (rows["row7"]["n"], rows["row7"]["std"], rows["row7"]["paper"]) == (1, None, 0.651)
    h1, h2 = summary["hypotheses"]
    assert (h1["name"], h1["verdict"], h1["n"]) == ("H1", "confirmed", 3)
    assert h1["difference"] == pytest.approx(0.2)
    assert h2["verdict"] == "not confirmed: the other way round"
    orders = {(o["better"], o["worse"]): o["verdict"] for o in summary["orderings"]}
    assert orders == {
        ("row7", "row9"): "not tested: not run",
        ("row12", "row10"): "not tested: not run",
        ("row12", "row13"): "not confirmed: the other way round",
    }  # rows 9 and 10 are equal in the paper, which is no order


def test_what_h1_compares_differs_in_its_tokenizer_alone():
    """Pixels drop no component: their loss is the plain square, and so it is in the other arm."""
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 32, 32, 3), generator=g, dtype=torch.uint8)
    pred, level_weight = torch.randn(2, 64, 48, generator=g), torch.ones(2)
    losses = {}
    for arm in path_study(["12", "even", "pixel"]).arms:
        config = set_values(recipe_config(arm.recipe, 32), {**arm.settings, "model.patch": "4"})
        t = config.tokenizer
        fitted = fit_tokenizer(t.kind, images, patch=4, d=t.d, scale=t.scale, count=999, seed=0)
        objective = Objective(config.objective, config.noise, fitted, seed=0)
        guess = Guess(pred, level_weight, None)
        flip = torch.zeros(2, dtype=torch.bool)
        losses[arm.name] = denoise_loss(*objective.residue(guess, images), **objective.view(flip))
    torch.testing.assert_close(losses["even"], losses["pixel"])
    assert (losses["row12"] < 0.9 * losses["even"]).all()


def test_a_claim_over_several_pairs_of_arms(tmp_path):
    """A seed counts once, by its mean over d; a d that one side has not run is left out."""
    study = sweep("scale", recipe_config("ldae", 32))
    arms = [arm for arm in study.arms if arm.name.startswith(("pca-d8-", "pca-d16-", "pca-d32-"))]
    jobs = plan_jobs(arms, {arm.name: 2 for arm in arms}, tmp_path, ASK)
    made = {"pca-d8-whiten": (0.40, 0.42), "pca-d8-global": (0.37, 0.41),
            "pca-d16-whiten": (0.45,), "pca-d16-global": (0.43, 0.10),
            "pca-d32-whiten": (0.90, 0.90)}  # fmt: skip
    for job in jobs:
        if job.seed < len(made.get(job.arm.name, ())):
            finished(job, made[job.arm.name][job.seed])
    h3, h4 = summarise(study, jobs, {}, {}, {})["hypotheses"]
    said = "undecided: too few seeds (2)"
    assert (h3["better"], h3["n"], h3["verdict"]) == ("whiten", 2, said)
    assert h3["difference"] == pytest.approx((0.025 + 0.01) / 2)
    assert h3["p"] == pytest.approx(0.1289, abs=1e-4)  # t = 7 / 3, one degree
    assert (h4["worse"], h4["verdict"]) == ("pixel", "not tested: not run")


def test_a_claim_waits_for_arms_that_beat_their_untrained_encoders(tmp_path):
    """row13 is at its untrained encoder's 25 %: what it is compared with may be far ahead."""
    study = path_study(["12", "13", "even", "pixel"])
    jobs = plan_jobs(study.arms, {arm.name: 3 for arm in study.arms}, tmp_path, ASK)
    made = {"row12": 0.60, "row13": 0.25, "even": 0.60, "pixel": 0.40}
    for job in jobs:
        finished(job, made[job.arm.name] + 0.01 * job.seed * (job.arm.name in ("row12", "even")))
    summary = summarise(study, jobs, {}, {}, {})
    h1, h2 = summary["hypotheses"]
    assert (h1["verdict"], h2["verdict"]) == ("confirmed", "undecided: not learning yet")
    assert h2["p"] < 0.05
    assert [o["verdict"] for o in summary["orderings"]] == ["undecided: not learning yet"]


def test_a_probe_learns_as_the_run_that_it_probes(tmp_path):
    study = sweep("probe-t", recipe_config("ldae", 32))
    jobs = plan_jobs(study.arms, {arm.name: 3 for arm in study.arms}, tmp_path, ASK)
    for job in jobs:
        finished(job, 0.25)
        if job.after:
            at = study.arms.index(job.arm)
            job.output.write_text(json.dumps({"linear_top1": 0.1 * at + 0.01 * at * job.seed}))
    told = summarise(study, jobs, {}, {}, {})["orderings"]
    assert {o["verdict"] for o in told} == {"undecided: not learning yet"}


def test_the_papers_whole_path_gives_its_orders(monkeypatch):
    monkeypatch.setattr(what, "ROWS", dict.fromkeys(recipe for recipe, *_ in paper.PATH.values()))
    study = path_study(what.default_rows())
    assert [arm.name for arm in study.arms][:3] == ["row0", "row1", "row2"]
    assert len(study.arms) == 16
    steps = {after: before for before, after in study.pairs}
    assert steps["row13"] == "row12"
    assert [steps[f"row{n}"] for n in range(1, 13)] == [f"row{n}" for n in range(12)]


def test_outputs_agree(told):
    _, out = told
    assert json.loads((out / "trajectory.json").read_text())["of"] == 21
    text = (out / "trajectory.md").read_text()
    line = next(ln for ln in text.splitlines() if ln.startswith("| 12  predict"))
    assert [cell.strip() for cell in line.split("|")[2:-1]] == [
        "61.0", "1.0", "60.0, 61.0, 62.0", "51.0", "64.5",
    ]  # fmt: skip
    assert re.search(r"\| +failed \|", text)
    assert "H1: noise in a low-dimensional latent space" in text
    assert "raw pixels 30.0 %, colour histogram 20.0 %, untrained 25.0 %, chance 10.0 %" in text
    assert "row9-s0: <b>out of memory</b> at step 3" in text
    assert "perceptual loss compares by VGG16 from vgg.pth (row7)." in text
    html = (out / "trajectory.html").read_text()
    page = Tags(html)
    for cell in ('words">12  predict', 'figure">64.5', 'figure">failed'):
        assert f'<td class="{cell}' in html
    assert "row9-s0: <b>out of memory</b> at step 3" in page.text
    assert not {"b", "script", "link", "x"} & set(page.tags)
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "H2, many noise levels beat one: not confirmed" in page.text
    assert "A small set." in page.text
    assert "perceptual loss compares by VGG16 from vgg.pth (row7)." in page.text
    assert "This study is not finished." in page.text
    with Image.open(out / "trajectory.png") as image:
        blue = (np.asarray(image.convert("RGB")) == (0x2F, 0x5F, 0xD0)).all(axis=2)
        assert image.height > 6 * 60
    dots = blue[:, 700:1500].any(axis=1)  # rows 9 and 10 have none
    assert dots[150 : 150 + 66].any()
    assert not dots[150 + 66 + 4 : 150 + 3 * 66 - 4].any()
    assert all(dots[150 + k * 66 : 150 + (k + 1) * 66].any() for k in (3, 4, 5))


def test_what_a_run_took_is_its_training():
    said = outcome({"linear_top1": 0.28, "seconds": 0.699})
    assert said == "linear top-1 28.0 %, trained for 0.699 s"
    assert outcome({"linear_top1": 0.28}) == "linear top-1 28.0 %"  # a probe of another run


def test_a_study_without_figures_of_the_paper_draws_one_panel(tmp_path):
    study = sweep("scale", recipe_config("ldae", 32))
    jobs = plan_jobs(study.arms[:2], {a.name: 1 for a in study.arms}, tmp_path, ASK)
    told = {"command": "ldae", "data": "photos", "image_size": 32, "steps": 0, "epochs": 2.5,
            "minutes": 0}  # fmt: skip
    summary = summarise(study, jobs, {}, {study.arms[-1].name: "too large"}, told)
    write_reports(tmp_path, summary)
    text = (tmp_path / "trajectory.md").read_text()
    assert "* each run: 2.5 epochs" in text
    assert "## The paper's orderings" not in text
    assert "the paper, %" not in text
    assert "| linear top-1, % |\n" in text
    assert f"* {study.arms[-1].name}, left out: too large" in text
    html = (tmp_path / "trajectory.html").read_text()
    assert 'class="verdict"' not in html  # claims that were not run stand in their table alone
    assert "not tested: not run" in html
    with Image.open(tmp_path / "trajectory.png") as image:
        assert image.width < 1500


# --- Children -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Script(Job):
    """A job whose child is a few lines of Python instead of a training."""

    code: str = "open(sys.argv[1], 'w').write('{}')"

    def command(self):
        self.output.parent.mkdir(parents=True, exist_ok=True)
        lines = f"import os, signal, sys, time\nprint('begun', flush=True)\n{self.code}"
        return [sys.executable, "-c", lines, str(self.output)]


def script(tmp_path, name, after=None, **code) -> Script:
    return Script(Arm(name, name, "row7"), 0, tmp_path, ASK, after, **code)


def run_scripts(tmp_path, jobs, rooms, stopped=()):
    ended, most = [], [0]

    def show(running):
        most[0] = max(most[0], len(running))

    with open(tmp_path / "lock", "w") as lock, Children(rooms, lock) as children:
        run_jobs(jobs, children, list(stopped), show, lambda *one: ended.append(one))
    return {job.name: problem for job, problem in ended}, most[0]


def test_a_failed_job_is_told_in_its_own_words_and_the_rest_goes_on(tmp_path):
    bad = script(tmp_path, "bad", code="sys.exit('ldae: no such file: x.pt; name another')")
    probe = script(tmp_path, "probe", after=bad)
    mute = script(tmp_path, "mute", code="os.kill(os.getpid(), signal.SIGKILL)")
    good = script(tmp_path, "good")
    ended, most = run_scripts(tmp_path, [bad, probe, mute, good], [{}])
    assert ended == {
        "bad-s0": "no such file: x.pt; name another",
        "probe-s0": "bad-s0, which it probes, failed",
        "mute-s0": f"killed by SIGKILL, as the system does where memory runs out; its log is "
        f"{mute.log}",
        "good-s0": "",
    }
    assert most == 1


def test_jobs_run_side_by_side_each_in_its_place(tmp_path):
    code = "time.sleep(0.3); open(sys.argv[1], 'w').write(os.environ['PLACE'])"
    jobs = [script(tmp_path, name, code=code) for name in "abc"]
    ended, most = run_scripts(tmp_path, jobs, [{"PLACE": "x"}, {"PLACE": "y"}])
    assert (set(ended.values()), most) == ({""}, 2)
    assert {job.output.read_text() for job in jobs[:2]} == {"x", "y"}


def test_a_finished_job_is_kept(tmp_path):
    job = script(tmp_path, "a")
    finished(job, 0.5)
    assert run_scripts(tmp_path, [job], [{}]) == ({}, 0)
    assert job.result()["linear_top1"] == 0.5


def test_a_killed_child_is_called_that(tmp_path):
    """Not by its last line of progress; and what each attempt said stays in the log."""
    code = "print('train  step 7', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    job = script(tmp_path, "a", code=code)
    problems, _ = run_scripts(tmp_path, [job], [{}])
    assert problems["a-s0"].startswith(
        "killed by SIGKILL, as the system does where memory runs out"
    )
    assert str(job.log) in problems["a-s0"]
    run_scripts(tmp_path, [job], [{}])
    assert job.log.read_text().count("step 7") == 2


def test_long_budgets_are_told_to_the_digit(tmp_path):
    ask = replace(ASK, steps=1_250_228, epochs=0, minutes=0)
    arm = Arm("a", "a", "row12", budget=4.0)
    words = ask.training(arm, 0, tmp_path)
    assert words[words.index("--steps") + 1] == "5000912"
    words = replace(ask, steps=0, epochs=1234.5678).training(replace(arm, budget=1.0), 0, tmp_path)
    assert float(words[words.index("--epochs") + 1]) == 1234.5678


def test_children_are_asked_to_end_and_waited_for(tmp_path):
    code = (
        "def save(*_):\n    time.sleep(0.2); open(sys.argv[1] + '.saved', 'w'); sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, save)\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    job = script(tmp_path, "a", code=code)
    with open(tmp_path / "lock", "w") as lock, Children([{}], lock) as children:
        children.start(job)
        while "ready" not in job.log.read_text():
            time.sleep(0.01)
    assert Path(f"{job.output}.saved").exists()
    assert not job.done


def test_ctrl_c_ends_the_child_and_says_how_to_go_on(image_folder, tmp_path, monkeypatch, capsys):
    """The child is a script that presses Ctrl-C on the study and then waits to be ended."""
    code = "os.kill(os.getppid(), signal.SIGINT)\ntime.sleep(60)"
    child = script(tmp_path / "out", "row12", code=code)
    monkeypatch.setattr("ldae_fast.trajectory.study.plan_jobs", lambda *_: [child])
    words = ["trajectory", "--data", f"folder:{image_folder}", "--rows", "12", "--steps", "2"]
    began = time.monotonic()
    assert main([*words, "--out", str(tmp_path / "out")]) == 130
    assert time.monotonic() - began < 30
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == (
        f"ldae: stopped with 0 of 1 runs finished, in {tmp_path / 'out'}; the same command goes on"
    )
    told = json.loads((tmp_path / "out" / "trajectory.json").read_text())
    assert told["runs"][0]["state"] == "waiting"


# --- A whole study --------------------------------------------------------------------------------


def study_words(image_folder, out, *more) -> list[str]:
    return [
        "trajectory", "--data", f"folder:{image_folder}", "--rows", "12,13", "--out",
        str(out), *(more or ("--steps", "20")), *flags(checkpoint__every=2),
    ]  # fmt: skip


def test_killed_then_taken_up_then_mended(image_folder, tmp_path, monkeypatch, capsys):
    """SIGKILL to the study: its child saves and ends, a new study goes on from there. A row that
    fails is named, the others finish, and once it is mended only that row runs."""
    out = tmp_path / "study"
    words = study_words(image_folder, out)
    parent = subprocess.Popen(
        [sys.executable, "-m", "ldae_fast.cli", *words], env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    first = out / "runs" / "row12-s0"
    while not list(first.glob("checkpoints/step-*[0-9]")):
        assert parent.poll() is None
        time.sleep(0.005)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    said = ""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (out / "runs" / "row13-s0").write_text("in the way")
    while True:  # the child that was left holds the study until it has ended
        status = main([*words, "--jobs", "2"])
        said = capsys.readouterr().err
        if "is in use by another `ldae trajectory`" not in said:
            break
        assert status == 2
        time.sleep(0.05)
    assert status == 1
    assert "1 runs failed: row13-s0" in said
    assert "resuming" in (out / "logs" / "row12-s0.log").read_text()
    told = json.loads((out / "trajectory.json").read_text())
    states = {run["run"]: run["state"] for run in told["runs"]}
    assert states == {"row12-s0": "finished", "row13-s0": "failed"}
    problem = next(run["problem"] for run in told["runs"] if "problem" in run)
    assert "row13-s0 is a file" in problem
    assert problem in (out / "trajectory.md").read_text()

    (out / "runs" / "row13-s0").unlink()
    before = (first / "result.json").stat().st_mtime_ns
    assert main(words) == 0
    said = capsys.readouterr()
    assert "| 13  l-DAE with one noise level" in said.out
    told = json.loads((out / "trajectory.json").read_text())
    assert (told["finished"], told["of"]) == (2, 2)
    assert all(run["final_loss"] > 0 and run["steps"] == 20 for run in told["runs"])
    assert (first / "result.json").stat().st_mtime_ns == before
    assert main([*words, "--rows", "13"]) == 0  # what was run before stays in the reports
    assert "| 12  predict the original image" in capsys.readouterr().out

    assert main(study_words(image_folder, out, "--steps", "21")) == 2
    assert "holds a study with steps 20, not 21; give the same words" in capsys.readouterr().err
    assert main([*words, "--model.gates", "false"]) == 2
    assert "--model.gates false; give the same words" in capsys.readouterr().err

    probe = plan_jobs(sweep("cut", recipe_config("ldae", 32)).arms[:1], {"block1": 1}, out,
                      replace(ASK, data=f"folder:{image_folder}"))[1]  # fmt: skip
    assert main(probe.command()[3:]) == 0
    assert 0 <= probe.result()["linear_top1"] <= 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rows", "7,99"], r"there is no row '99'"),
        (["--table", "tabel2"], r"did you mean table2\?"),
        (["--seeds", "0"], "--seeds must be a number"),
        (["--seed", "3"], "say how many by --seeds N"),
        (["--model.dept", "3"], r"did you mean model.depth\?"),
        (["--data.image_size", "x"], "data.image_size must be a whole number"),
        (["--device", "cuda"], "torch sees no CUDA device"),
        (["--tokenizer.kind", "pca"], "is what this study varies"),
        (["--table", "size", "--size", "tiny"], "--size is what --table size varies"),
    ],
)
def test_bad_words_begin_nothing(image_folder, tmp_path, capsys, words, said):
    out = tmp_path / "out"
    base = ["trajectory", "--data", f"folder:{image_folder}", "--out", str(out), "--steps", "2"]
    assert main([*base, *words]) == 2
    line = capsys.readouterr().err
    assert line.startswith("ldae: ")
    assert line.count("\n") == 1
    assert re.search(said, line), line
    assert not out.exists()


def test_a_folder_that_is_taken(image_folder, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    words = ["trajectory", "--data", f"folder:{image_folder}", "--steps", "2", "--out"]
    assert main([*words, str(tmp_path)]) == 2
    assert "already holds other files" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "thesis.txt")]) == 2
    assert "is a file" in capsys.readouterr().err
