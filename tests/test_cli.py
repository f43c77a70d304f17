"""What a user can get wrong: each ends in one sentence, a non-zero status, nothing half-written."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import flags, ldae, write_images

STEPS = ("--steps", "2")


def refused(*words, status: int = 2) -> str:
    """The one line that `ldae` says when it refuses; no traceback, nothing else."""
    done = ldae(*words)
    assert done.returncode == status, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("ldae: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["row99"], r"unknown recipe 'row99'.*did you mean row9\?"),
        (
            ["ldae", "--model.dept", "3"],
            r"unknown setting 'model.dept'; did you mean model.depth\?",
        ),
        (["ldae", "--model.depth", "x"], r"model.depth must be a whole number; got 'x'"),
        (["ldae", "--model.depth"], r"--model.depth needs a value"),
        (["ldae", "stray"], r"unexpected argument 'stray'"),
        (["ldae", "--tokenizer.d", "999"], r"tokenizer.d must be at most 48.*got 999"),
        (["ldae", "--image-size", "30"], r"data.image_size must be a multiple of model.patch"),
        (["ldae", "--size", "XXL"], r"unknown --size 'XXL'"),
        (["ldae", "--seed", "-3"], r"seed must not be negative"),
        (["ldae", "--config", "/nowhere/config.json"], r"/nowhere/config.json cannot be read"),
        (["ldae", "--device", "cuda"], r"--device cuda: torch sees no CUDA device"),
    ],
)
def test_bad_train_words(image_folder, tmp_path, words, said):
    out = tmp_path / "out"
    line = refused("train", *words, "--data", f"folder:{image_folder}", "--out", out, *STEPS)
    assert re.search(said, line), line
    assert not out.exists()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("photoz", r"did you mean photos\?"),
        ("folder:/no/such/place", r"/no/such/place"),
        ("parquet:/no/such/file", r"/no/such/file"),
        ("wds:/no/such/*.tar", r"/no/such"),
        ("packed:/no/such/pack", r"/no/such/pack"),
        ("folder:", r"folder needs a path"),
    ],
)
def test_bad_data(tmp_path, spec, said):
    out = tmp_path / "out"
    line = refused("train", "ldae", "--data", spec, "--out", out, *STEPS)
    assert re.search(said, line), line
    assert not out.exists()


def test_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    line = refused(
        "train", "ldae", "--data", f"folder:{tmp_path / 'empty'}", "--out", tmp_path / "out", *STEPS
    )
    assert str(tmp_path / "empty") in line


def test_out_that_is_taken(image_folder, tmp_path):
    run = ("--data", f"folder:{image_folder}", *STEPS)
    taken = tmp_path / "run"
    taken.mkdir()
    (taken / "config.json").write_text("{}")
    assert "already holds another run" in refused("train", "ldae", *run, "--out", taken)
    assert (taken / "config.json").read_text() == "{}"
    (taken / "config.json").rename(taken / "thesis.txt")
    assert "already holds other files" in refused("train", "ldae", *run, "--out", taken)
    assert "is a file" in refused("train", "ldae", *run, "--out", taken / "thesis.txt")


def test_resume_and_probe_need_a_run(tmp_path):
    for verb, *rest in (("resume",), ("probe", "--data", "photos")):
        assert "cannot be read" in refused(verb, tmp_path, *rest)
    (tmp_path / "config.json").write_text('{"launch": {"data": "photos", "surprise": 1}}')
    assert "is not a run's config" in refused("resume", tmp_path)
    (tmp_path / "config.json").write_text("not json")
    assert "is not JSON" in refused("resume", tmp_path)


def test_probe_refuses_training_settings(tmp_path, image_folder):
    (tmp_path / "config.json").write_text(json.dumps({"launch": {"data": "photos"}}))
    line = refused("probe", tmp_path, "--data", f"folder:{image_folder}", "--model.depth", "3")
    assert "--model.depth belongs to training" in line


def test_broken_images_are_named_counted_and_replaced(tmp_path):
    """Each is broken in its own way; the run ends well, and a second run is the same."""
    images = write_images(tmp_path / "images")
    (images / "class0" / "003.png").write_bytes(b"")
    (images / "class1" / "004.png").write_text("this is a poem")
    whole = (images / "class2" / "005.png").read_bytes()
    (images / "class2" / "005.png").write_bytes(whole[: len(whole) // 2])
    run = ("train", "ldae", "--data", f"folder:{images}", "--steps", "12", *flags())
    results = []
    for name in ("a", "b"):
        done = ldae(*run, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
        results.append(json.loads((tmp_path / name / "result.json").read_text()))
    assert len(results[0]["bad_images"]) == 3
    for place in ("class0/003.png", "class1/004.png", "class2/005.png"):
        assert sum(place in said for said in results[0]["bad_images"]) == 1
    assert results[0]["final_loss"] == results[1]["final_loss"]
    line = refused(*run, "--out", tmp_path / "c", "--bad-images", "raise")
    assert re.search(r"class\d/00\d.png", line)


def test_read_only_place(image_folder):
    line = refused(
        "train",
        "ldae",
        "--data",
        f"folder:{image_folder}",
        "--out",
        "/proc/out",
        *STEPS,
        *flags(),
        status=1,
    )
    assert "/proc/out" in line


def test_full_disk_keeps_the_run_resumable(image_folder, tmp_path):
    """No file may grow above 250 kB, so the first checkpoint fails as on a full disk."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, resource.RLIM_INFINITY));"
        "from ldae_fast.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = ["train", "ldae", "--data", f"folder:{image_folder}", "--steps", "6", "--out",
             str(tmp_path / "run"), *flags()]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("ldae: ") == 1
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_settings_can_come_from_a_saved_run(image_folder, tmp_path):
    data = ("--data", f"folder:{image_folder}", "--steps", "3")
    done = ldae("train", "row10", *data, "--out", tmp_path / "a", *flags(), "--seed", "5")
    assert done.returncode == 0, done.stderr
    done = ldae(
        "train", "row10", *data, "--out", tmp_path / "b", "--config", tmp_path / "a" / "config.json"
    )
    assert done.returncode == 0, done.stderr
    a, b = (json.loads((tmp_path / n / "config.json").read_text()) for n in "ab")
    assert {k: v for k, v in a.items() if k not in ("launch", "command")} == {
        k: v for k, v in b.items() if k not in ("launch", "command")
    }
    first, second = (json.loads((tmp_path / n / "result.json").read_text()) for n in "ab")
    assert first["linear_top1"] == second["linear_top1"]


def test_pack_and_train_on_it(image_folder, tmp_path):
    done = ldae("pack", f"folder:{image_folder}", "--out", tmp_path / "packed")
    assert done.returncode == 0, done.stderr
    assert f"--data packed:{tmp_path / 'packed'}" in done.stdout
    assert str(tmp_path / "packed") in refused(
        "pack", f"folder:{image_folder}", "--out", tmp_path / "packed"
    )
    results = []
    for name, spec in (("a", f"folder:{image_folder}"), ("b", f"packed:{tmp_path / 'packed'}")):
        run = ldae(
            "train", "ldae", "--data", spec, "--steps", 5, "--out", tmp_path / name, *flags()
        )
        assert run.returncode == 0, run.stderr
        results.append(json.loads((tmp_path / name / "result.json").read_text())["final_loss"])
    assert results[0] == results[1]


def test_help_has_examples_and_every_setting():
    assert "examples:" in ldae("--help").stdout
    shown = ldae("train", "--help").stdout
    for name in ("--model.depth", "--optimizer.base_lr", "--evaluate.cut", "--profile"):
        assert name in shown


def test_help_does_not_wait_for_torch():
    """A list of verbs in a tenth of a second, not in the seconds that torch takes to load."""
    code = "import sys; from ldae_fast.cli import build_parser; build_parser(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy"} & set(done.stdout.split())


def test_ctrl_c_anywhere_is_one_sentence(tmp_path):
    """Here while a file is read that never ends: no checkpoint is near."""
    pipe = tmp_path / "config.json"
    os.mkfifo(pipe)
    words = [
        "train",
        "ldae",
        "--data",
        "photos",
        "--out",
        str(tmp_path / "run"),
        "--config",
        str(pipe),
    ]
    command = [sys.executable, "-m", "ldae_fast.cli", *words]
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as child,
        open(pipe, "w"),  # waits until the child has opened it
    ):
        time.sleep(0.1)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=60)
    assert said == "ldae: stopped; a run that has a checkpoint goes on with `ldae resume DIR`\n"
    assert child.returncode == 130
