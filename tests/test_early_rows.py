"""Rows 0 to 6 as runs: labels, steps, the tokenizer's training, its cache, its file, resuming."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY, assert_same_state, final_state, flags, quick_tokenizer

from ldae_fast.cli import main
from ldae_fast.config import SettingError
from ldae_fast.data import DataError, Loader, open_source
from ldae_fast.noise import drop_labels
from ldae_fast.recipes import EARLY_ROWS, build_config
from ldae_fast.report.atomic import replace_bytes
from ldae_fast.report.metrics import read_metrics
from ldae_fast.tokenizers import TokenizerError
from ldae_fast.train.checkpoint import list_checkpoints
from ldae_fast.train.classes import with_classes
from ldae_fast.train.engine import Engine
from ldae_fast.train.export import export
from ldae_fast.train.folder import Launch, RunError, RunFolder
from ldae_fast.train.loop import pretrain, resume
from ldae_fast.train.memory import return_freed_memory
from ldae_fast.train.probe import probe
from ldae_fast.train.signals import Interrupted
from ldae_fast.train.tokenizer import cached_path, find_tokenizer, make_tokenizer

QUICK = TINY | {
    "tokenizer.channels": "4",
    "tokenizer.steps": "3",
    "tokenizer.batch": "8",
    "tokenizer.classifier_steps": "2",
    "tokenizer.patches": "500",
    "speed.workers": "0",
}


@pytest.fixture(scope="module")
def source(image_folder):
    return open_source(f"folder:{image_folder}", "train", 32)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LDAE_CACHE", str(tmp_path / "cache"))
    yield
    return_freed_memory()  # which a run in this process keeps


def settings(row: str, **changes):
    return build_config(row, 32, "", QUICK | {k.replace("__", "."): v for k, v in changes.items()})


def engine_of(row: str, source, **changes) -> tuple[Engine, Loader]:
    config = with_classes(settings(row, **changes), source)
    loader = Loader(source, batch_size=16, image_size=32, seed=1, workers=0)
    return Engine(config, quick_tokenizer(config, loader.batch(0).images)), loader


def curve(engine, loader, steps=6) -> list[float]:
    return [engine.step(loader.batch(i), i, i / steps).loss for i in range(steps)]


def test_rows_are_the_papers():
    """Section 3, one statement a row: what changes against the row before."""
    rows = {name: build_config(name, 256) for name in EARLY_ROWS}
    assert rows["row0"].model.conditional
    assert replace(rows["row0"], recipe="row1", model=rows["row1"].model) == rows["row1"]
    assert not rows["row1"].model.conditional
    terms = {n: (r.tokenizer.perceptual, r.tokenizer.adversarial) for n, r in rows.items()}
    assert terms["row0"] == terms["row1"] == (1.0, 0.5)
    assert (terms["row2"], terms["row3"]) == ((0.0, 0.5), (0.0, 0.0))
    assert (rows["row3"].noise.schedule, rows["row4"].noise.schedule) == ("ddpm", "linear")
    assert rows["row3"].tokenizer == rows["row4"].tokenizer
    kinds = [rows[f"row{i}"].tokenizer.kind for i in (4, 5, 6)]
    assert kinds == ["conv-vae", "patch-vae", "patch-ae"]
    assert {r.tokenizer.d for r in rows.values()} == {16}
    assert all(r.objective.predict == "noise" for r in rows.values())


@pytest.mark.parametrize("row", EARLY_ROWS)
def test_every_early_row_takes_steps(source, row):
    """On one batch with one noise draw the loss falls: gradients reach what they should."""
    engine, loader = engine_of(row, source, optimizer__base_lr="3e-2")
    losses = [engine.step(loader.batch(0), 0, 0.3).loss for _ in range(12)]
    assert losses[-1] < 0.9 * losses[0]
    assert not any(p.requires_grad for p in tensors_of(engine.tokenizer))


def tensors_of(tokenizer):
    net = getattr(tokenizer, "net", None)
    return list(net.parameters()) if net else [tokenizer.encoder]


# --- Labels ---------------------------------------------------------------------------------------


def test_labels_are_dropped_by_sample():
    ids, labels = torch.arange(20_000), torch.arange(20_000) % 7
    dropped = drop_labels(0, 3, ids, labels, 0.1)
    gone = dropped == -1
    assert gone.float().mean() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(dropped[~gone], labels[~gone])
    assert torch.equal(drop_labels(0, 3, ids[50:60], labels[50:60], 0.1), dropped[50:60])
    assert not torch.equal(drop_labels(0, 4, ids, labels, 0.1), dropped)
    assert not torch.equal(drop_labels(1, 3, ids, labels, 0.1), dropped)
    assert (drop_labels(0, 3, ids, labels, 1.0) == -1).all()
    assert torch.equal(drop_labels(0, 3, ids, labels, 0.0), labels)


def test_a_network_that_is_told_no_class_is_the_one_without(source):
    """At label dropout 1 every loss is row 1's, bit for bit: the null label's vector stays zero."""
    told_none = curve(*engine_of("row0", source, objective__label_dropout="1"))
    assert told_none == curve(*engine_of("row1", source))
    told = curve(*engine_of("row0", source, objective__label_dropout="0"))
    assert told[0] == told_none[0]  # adaLN-Zero: the first answer is zero whatever is asked
    assert told[-1] != told_none[-1]


def test_labels_reach_the_loss_and_the_null_label_does_not_learn(source):
    engine, loader = engine_of("row0", source, optimizer__base_lr="0.1")
    curve(engine, loader)
    model, batch = engine.model, loader.batch(0)
    table = model.modulation.labels.weight
    assert table.shape == (4, 8)  # three classes and the null label, a quarter of the width
    assert not table[3].any()
    tokens, t = torch.randn(2, 16, 8), torch.tensor([500, 500])
    none, zero, one = (
        model(tokens, t, None, labels)
        for labels in (None, torch.tensor([0, 0]), torch.tensor([0, 1]))
    )
    assert torch.equal(none, model(tokens, t, None, torch.tensor([-1, -1])))
    assert torch.equal(zero[0], one[0])
    assert not torch.equal(zero[1], one[1])
    whole = engine.loss(batch, 0)
    other = engine.loss(replace(batch, labels=(batch.labels + 1) % 3), 0)
    assert float(whole) != float(other)


def test_accumulation_tells_each_part_its_labels(source):
    whole = curve(*engine_of("row0", source))
    parts = curve(*engine_of("row0", source, optimizer__accumulate="4"))
    assert parts == pytest.approx(whole, rel=1e-4)


def test_a_conditional_network_is_one_graph(source):
    """torch.compile must find no reason to stop in it, as in every other network."""
    model = engine_of("row0", source)[0].model
    given = torch.randn(2, 16, 8), torch.tensor([5, 900]), None, torch.tensor([1, -1])
    whole = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(whole(*given), model(*given))


@pytest.mark.parametrize(
    ("labels", "classes", "said"),
    [
        ([0, 0, 0], 1, "there is 1 class"),
        ([0, 2, 2, 4], 5, "class 1 has no image"),
    ],
)
def test_labels_that_cannot_be_told_are_refused(labels, classes, said):
    class Labelled:
        name = "folder:x"

    Labelled.labels, Labelled.classes = np.array(labels), tuple(map(str, range(classes)))
    with pytest.raises(DataError, match=f"folder:x: model.conditional needs .*{said}") as caught:
        with_classes(settings("row0"), Labelled())
    assert "\n" not in str(caught.value)
    assert with_classes(settings("row1"), Labelled()).model.classes == 0


def test_classes_of_other_data_are_refused(source):
    assert with_classes(settings("row0"), source).model.classes == 3
    with pytest.raises(SettingError, match=r"model.classes is 7, but folder:.* has 3 classes"):
        with_classes(settings("row0", model__classes="7"), source)


# --- The tokenizer --------------------------------------------------------------------------------


def test_training_depends_on_the_seed_alone(source):
    """All four terms on from the start, twice: the same file, byte for byte."""

    def made(**changes):
        config = settings("row0", tokenizer__adversarial_start="0", **changes)
        records = []
        tokenizer = make_tokenizer(config, source, "cpu", log=records.append)
        return tokenizer.to_bytes(), records

    first, records = made()
    torch.manual_seed(9)
    assert first == made()[0]
    assert first != made(seed="1")[0]
    assert {"l1", "kl", "perceptual", "adversarial", "adversarial_weight", "critic"} <= set(
        records[-1]
    )
    assert [r["step"] for r in records] == [1, 2, 3]


def test_training_makes_reconstructions_better(source):
    """Where nothing but L1 and KL counts, a few steps on smooth images already tell."""
    losses = []
    config = settings("row3", tokenizer__steps="25", tokenizer__lr="1e-2")
    tokenizer = make_tokenizer(config, source, "cpu", log=losses.append)
    assert losses[-1]["l1"] < 0.6 * losses[0]["l1"]
    assert tokenizer.explained > 0.5


def test_a_training_that_is_asked_to_stop_does(source, tmp_path):
    def stop(record):
        os.kill(os.getpid(), signal.SIGTERM)

    config, before = settings("row3"), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="stopped at step 2 of the tokenizer; nothing of it"):
        make_tokenizer(config, source, "cpu", log=stop)
    assert signal.getsignal(signal.SIGTERM) is before
    assert not (tmp_path / "cache" / "tokenizers").exists()


@pytest.mark.parametrize("row", ["row0", "row3"])
def test_a_stopped_training_goes_on_to_the_same_bits(row, source, tmp_path):
    """Stopped twice, once before and once after the adversary began; then left to end."""
    config = settings(row, tokenizer__steps="8", tokenizer__adversarial_start="0.4")
    whole, kept, steps = make_tokenizer(config, source, "cpu"), tmp_path / "t.safetensors", []

    def stop(record):
        steps.append(record["step"])
        if record["step"] in (1, 5):
            os.kill(os.getpid(), signal.SIGTERM)

    for _ in range(2):
        with pytest.raises(Interrupted, match="the same command goes on from there"):
            make_tokenizer(config, source, "cpu", log=stop, kept=kept)
    made = make_tokenizer(config, source, "cpu", log=stop, kept=kept)
    assert steps == [1, 3, 4, 5, 7, 8]  # the step at which a training stops is not logged
    assert made.to_bytes() == whole.to_bytes()
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_diverging_training_says_so(source):
    with pytest.raises(RunError, match=r"the tokenizer's loss is .*lower --tokenizer\.lr"):
        make_tokenizer(settings("row3", tokenizer__lr="1e30"), source, "cpu")


def test_the_cache_holds_one_tokenizer_for_the_same_settings_and_data(source, tmp_path):
    said = []
    config = settings("row3")
    first = find_tokenizer(config, source, "cpu", said.append)
    written = cached_path(config, source).read_bytes()
    again = find_tokenizer(settings("row4"), source, "cpu", said.append)
    assert "trained before" in said[-1]
    assert again.to_bytes() == first.to_bytes() == written
    kept = list((tmp_path / "cache" / "tokenizers").iterdir())
    assert kept == [cached_path(config, source)]
    others = [
        settings("row3", **{name: value})
        for name, value in (
            ("seed", "1"), ("tokenizer__steps", "5"), ("model__patch", "4"), ("tokenizer__kl", "1"),
            ("tokenizer__scale", "global"), ("data__flip", "false"),
        )
    ]  # fmt: skip
    assert len({cached_path(c, source) for c in [config, *others]}) == 7
    kept[0].write_bytes(written[:200])
    mended = find_tokenizer(config, source, "cpu", said.append)
    assert any("trained again" in words for words in said)
    assert torch.equal(mended.center, first.center)


HOLD = """import sys, time; from pathlib import Path; from ldae_fast.train.tokenizer import alone
with alone(Path(sys.argv[1]), print): print("held", flush=True); time.sleep(600)"""


def find_beside_another(config, source, made: bytes = b"") -> tuple:
    """The tokenizer that is found while a real process has it to itself, and what was said.

    The other is killed once this one waits for it, after it has left what it `made`.
    """
    path, said, waited = cached_path(config, source), [], []
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"

        def end_other():
            while not said:
                time.sleep(0.002)
            time.sleep(0.3)
            waited.append(len(said) == 1)
            if made:
                replace_bytes(path, made)
            other.kill()

        ending = threading.Thread(target=end_other)
        ending.start()
        found = find_tokenizer(config, source, "cpu", said.append)
        ending.join()
    assert "waiting for another run" in said[0]
    assert waited == [True]
    return found, said


def test_runs_side_by_side_train_one_tokenizer(source):
    made = make_tokenizer(settings("row3"), source, "cpu").to_bytes()
    found, said = find_beside_another(settings("row3"), source, made)
    assert found.to_bytes() == made
    assert "trained before" in said[1]


def test_a_run_that_is_killed_holds_no_other_off(source):
    found, said = find_beside_another(settings("row3"), source)
    assert "conv-vae tokenizer: d=" in said[1]
    assert cached_path(settings("row3"), source).read_bytes() == found.to_bytes()


def test_a_cache_that_takes_no_locks_is_no_failure(source, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "locks").write_text("")
    said = []
    find_tokenizer(settings("row3"), source, "cpu", said.append)
    find_tokenizer(settings("row3"), source, "cpu", said.append)
    assert "trained before" in said[-1]


def test_the_cache_knows_other_data(source, image_folder, tmp_path):
    copy = tmp_path / "other"
    shutil.copytree(image_folder, copy)
    config = settings("row3")
    same = open_source(f"folder:{copy}", "train", 32)
    assert cached_path(config, same) == cached_path(config, source)
    shutil.copy(copy / "class0" / "001.png", copy / "class0" / "000.png")
    other = open_source(f"folder:{copy}", "train", 32)
    assert cached_path(config, other) != cached_path(config, source)


@pytest.fixture(scope="module")
def patch_ae(source):
    return make_tokenizer(settings("row6"), source, "cpu")


@pytest.mark.parametrize(
    ("row", "changes", "said"),
    [
        ("row6", {"model__patch": "4"}, "fitted at model.patch 8, but the run has 4"),
        ("row6", {"data__image_size": "16"}, "fitted at data.image_size 32, but the run has 16"),
        ("row6", {"tokenizer__d": "12"}, "fitted at tokenizer.d 8, but the run has 12"),
        ("row7", {}, "fitted at tokenizer.kind patch-ae, but the run has pca"),
    ],
)
def test_a_given_file_must_fit(source, patch_ae, tmp_path, row, changes, said):
    path, made = tmp_path / "ae.safetensors", patch_ae
    path.write_bytes(made.to_bytes())
    taken = find_tokenizer(settings("row6", tokenizer__file=str(path)), source, "cpu", print)
    assert torch.equal(taken.encoder, made.encoder)
    with pytest.raises(TokenizerError, match=said) as caught:
        find_tokenizer(settings(row, tokenizer__file=str(path), **changes), source, "cpu", print)
    assert "\n" not in str(caught.value)


# --- Whole runs -----------------------------------------------------------------------------------


def test_row0_runs_resumes_and_is_probed(image_folder, tmp_path):
    """The latest checkpoint taken away, the run goes on from the one before to the same weights."""
    data = f"folder:{image_folder}"
    config = settings("row0", checkpoint__every="3")
    whole = RunFolder(tmp_path / "whole")
    result = pretrain(config, Launch(data, steps=6), whole)
    assert result["perceptual"] == f"classifier trained with the labels of {data}, 2 steps"
    assert {"raw_pixels", "pca", "conv_vae", "untrained"} <= set(result["baselines"])
    assert json.loads((whole.path / "config.json").read_text())["model"]["classes"] == 3
    names = {path.name for path in whole.pictures.iterdir()}
    assert names == {
        "bars.png", "curves.png", "denoising.png", "noise_levels.png", "reconstructions.png",
    }  # fmt: skip
    part = tmp_path / "part"
    shutil.copytree(whole.path, part)
    shutil.rmtree(list_checkpoints(part / "checkpoints")[0])
    shutil.rmtree(tmp_path / "cache")  # resuming needs no cache: the checkpoint has the tokenizer
    resume(part)
    assert_same_state(part, whole.path)
    assert "tokenizer" in final_state(part)
    found = probe(whole.path, data, "knn", "trained", {})
    assert found["knn_top1"] == pytest.approx(result["knn_top1"])
    with pytest.raises(SettingError, match="row0 reads the latents of a convolutional network"):
        export(whole.path, tmp_path / "encoder.safetensors", "trained", {})


def test_the_command_makes_a_tokenizer_that_a_run_takes(image_folder, tmp_path, capsys):
    def said(*words, status=0):
        assert main([str(word) for word in words]) == status
        out, err = capsys.readouterr()
        return out + err

    quick = [w for name, value in QUICK.items() if name.startswith("tokenizer")
             for w in (f"--{name}", value)]  # fmt: skip
    words = ("--data", f"folder:{image_folder}", "--model.patch", "8", *quick)
    made = said("tokenizer", "conv-vae", *words, "--steps", 3, "--out", tmp_path / "t")
    assert "--tokenizer.file" in made
    assert (tmp_path / "t" / "pictures" / "reconstructions.png").exists()
    last = read_metrics(tmp_path / "t" / "metrics.jsonl")[-1]
    assert last["step"] == 3
    assert "l1" in last
    file = tmp_path / "t" / "tokenizer.safetensors"
    again = said("tokenizer", "conv-vae", *words, "--steps", 3, "--out", tmp_path / "again")
    assert "trained before" in again
    assert (tmp_path / "again" / "tokenizer.safetensors").read_bytes() == file.read_bytes()
    assert not read_metrics(tmp_path / "again" / "metrics.jsonl")
    said(
        "train", "row3", "--data", f"folder:{image_folder}", "--steps", 2, "--out", tmp_path / "r",
        "--tokenizer.file", file, *flags(),
    )  # fmt: skip
    assert (tmp_path / "r" / "tokenizer.safetensors").read_bytes() == file.read_bytes()
    wrong = tmp_path / "vgg.pth"
    wrong.write_text("no weights")
    refused = said("tokenizer", "row1", *words, "--tokenizer.vgg", wrong, "--out", tmp_path / "x",
                   status=2)  # fmt: skip
    assert f"--tokenizer.vgg {wrong} holds no plain tensors" in refused
    assert not (tmp_path / "x").exists()
    refused = said("tokenizer", "pca", *words, "--steps", 3, "--out", tmp_path / "x", status=2)
    assert "--steps and --minutes are for conv-vae" in refused
    assert not (tmp_path / "x").exists()
