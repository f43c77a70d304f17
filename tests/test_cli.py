"""What a user can get wrong: each ends in one sentence, a non-zero status, nothing half-written."""

import fcntl
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import assert_same_state, flags, heeding_permissions, ldae, ldae_here, write_images
from ldae_fast.kernels.attention import ON_CPU

from ldae_fast.cli import main
from ldae_fast.cli.probe import WRITES
from ldae_fast.report.metrics import read_metrics
from ldae_fast.train.folder import RunError, locked, made_by, new_folder, read_launch

STEPS = ("--steps", "2")


def refused(*words, status: int = 2, by=ldae_here) -> str:
    """The one line that `ldae` says when it refuses; no traceback, nothing else."""
    done = by(*words)
    assert done.returncode == status, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("ldae: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


@pytest.fixture(scope="module")
def run(image_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    words = ["train", "ldae", "--data", f"folder:{image_folder}", "--steps", "1", *flags()]
    assert main([*words, "--out", str(out)]) == 0
    return out


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
        (["--config", "/nowhere/config.json"], r"/nowhere/config.json cannot be read"),
        (["ldae", "--config", "c.json"], r"name a RECIPE .* or start from a saved run by --config"),
        ([], r"name a RECIPE"),
        (
            ["ldae", "--image-size", "64", "--data.image_size", "32"],
            r"--image-size 64 and --data.image_size 32 are the same setting",
        ),
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
    for content, said in (
        ('{"launch": {}}', "another run; name a new folder, or go on with `ldae resume"),
        ('{"launch": {"verb": "tokenizer"}}', "a tokenizer; name a new folder"),
        ("{}", "other files"),
        ("of another program", "other files"),
    ):
        (taken / "config.json").write_text(content)
        line = refused("train", "ldae", *run, "--out", taken)
        assert f"--out {taken} already holds {said}" in line
        assert (taken / "config.json").read_text() == content
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


def test_a_folder_that_is_no_pre_training_run(image_folder, tmp_path):
    """What each verb says of a checkpoint, of a fine-tuning run, of a tokenizer's folder."""
    data = ["--data", f"folder:{image_folder}"]
    run, tuned, fitted = (str(tmp_path / name) for name in ("run", "tuned", "fitted"))
    assert main(["train", "ldae", *data, "--out", run, "--steps", "1", *flags()]) == 0
    few = ["--steps", "1", "--finetune.batch", "8"]
    assert main(["finetune", run, *data, "--out", tuned, *few]) == 0
    assert main(["tokenizer", "pca", *data, "--out", fitted]) == 0
    checkpoint = f"{run}/checkpoints/step-0000001"
    for path, verbs in ((run, (("resume",), ("probe", *data))), (tuned, (("resume",),))):
        saved = (Path(path) / "config.json").read_text()
        for old, new, said in (
            ('"width": 32', '"width": 64', f"describes another network than {path}/checkpoints"),
            ('"patch": 8', '"patch": 4', "another network than|model.patch must be 8"),
            ('"steps": 1,', '"steps": "one",', "launch.steps must be a whole number; got 'one'"),
            ('"steps": 1,', '"steps": 0,', "config.json: one of launch.steps, .* got 0, 0, 0"),
            ('"steps": 1,', '"steps": -1,', "config.json: one of launch.steps, .* got -1, 0, 0"),
            ('"epochs": 0', '"epochs": 2', "config.json: one of launch.steps, .* got 1, 2, 0"),
            ('"device": "cpu"', '"device": "tpu"', "launch.device must be one of cpu, cuda; got"),
            ('"impl": "auto"', '"impl": "best"', "launch.impl must be one of auto, reference; got"),
            ('"every": 0', '"every": -1', "checkpoint.every must not be negative; got -1"),
        ):
            (Path(path) / "config.json").write_text(saved.replace(old, new))
            for verb, *rest in verbs:
                line = refused(verb, path, *rest)
                assert re.search(said, line), line
        (Path(path) / "config.json").write_text(saved)
        with open(Path(path) / "metrics.jsonl", "a") as log:
            log.write("torn\n{}\n")
        assert "not a JSON object; mend that line or take it out" in refused("resume", path)
    for verb, *rest in (("resume",), ("probe", *data), ("sample",)):
        assert f"is a checkpoint; name its run's folder, {run}" in refused(verb, checkpoint, *rest)
    for verb, *rest in (
        ("probe", *data),
        ("sample",),
        ("finetune", *data, "--out", tmp_path / "x"),
    ):
        assert "was made by `ldae finetune`; name" in refused(verb, tuned, *rest)
        assert "was made by `ldae tokenizer`; name" in refused(verb, fitted, *rest)
    assert "which is not resumed" in refused("resume", fitted)


def test_a_run_killed_before_its_first_checkpoint_begins_again(image_folder, tmp_path):
    run, whole = tmp_path / "run", tmp_path / "whole"
    words = ("train", "ldae", "--data", f"folder:{image_folder}", "--steps", "4", *flags())
    command = [sys.executable, "-m", "ldae_fast.cli", *words, "--checkpoint.every", "100"]
    with subprocess.Popen([*command, "--out", str(run)], stderr=subprocess.PIPE) as child:
        while not (run / "tokenizer.safetensors").exists():
            time.sleep(0.002)
        child.kill()
    assert "no checkpoint yet; `ldae resume" in refused(
        "probe", run, "--data", f"folder:{image_folder}"
    )
    resumed = ldae_here("resume", run)
    assert resumed.returncode == 0, resumed.stderr
    assert "has no checkpoint yet: beginning at step 0" in resumed.stdout
    assert ldae_here(*words, "--out", whole).returncode == 0
    assert_same_state(run, whole)
    logs = (read_metrics(path / "metrics.jsonl") for path in (run, whole))
    resumed, uninterrupted = ([(r["step"], r["loss"]) for r in log if "loss" in r] for log in logs)
    assert resumed == uninterrupted


def test_a_trained_run_that_lost_its_checkpoints_is_not_begun_again(tmp_path):
    launch = {"data": "photos", "steps": 1}
    (tmp_path / "config.json").write_text(json.dumps({"launch": launch}))
    (tmp_path / "result.json").write_text("{}")
    assert "no whole checkpoint is left in it; train anew into another" in refused(
        "resume", tmp_path
    )
    assert (tmp_path / "result.json").read_text() == "{}"
    (tmp_path / "result.json").unlink()
    (tmp_path / "checkpoints" / "damaged-step-0000001-7").mkdir(parents=True)
    assert "no whole checkpoint is left in it; train anew into another" in refused(
        "resume", tmp_path
    )


@pytest.mark.parametrize(
    ("settings", "verb"),
    [
        ({"launch": {"data": "photos", "steps": 1}}, "train"),
        ({"launch": {"data": "photos", "epochs": 1}, "encoder": {}}, "finetune"),
        (
            {"launch": {"data": "photos"}, "command": "ldae tokenizer pca --data photos"},
            "tokenizer",
        ),
        ({"launch": {"data": "photos", "minutes": 1, "verb": "finetune"}}, "finetune"),
    ],
)
def test_the_verb_that_made_a_folder(tmp_path, settings, verb):
    """Also of folders that do not say it, as the first ones did not."""
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert made_by(tmp_path) == verb
    assert read_launch(tmp_path, settings, verb).verb == verb


def test_a_checkpoint_is_named_from_inside_it(tmp_path, monkeypatch):
    inside = tmp_path / "checkpoints" / "step-0000001"
    inside.mkdir(parents=True)
    (inside / "MANIFEST.json").write_text("{}")
    monkeypatch.chdir(inside)
    assert f"name its run's folder, {tmp_path}" in refused("resume", ".")


def test_a_folder_that_was_taken_meanwhile(tmp_path):
    """Another process trained and ended between the look at --out and the start."""
    folder = new_folder(tmp_path / "run")
    with folder.claim(for_new=True):
        (folder.path / "config.json").write_text('{"launch": {}}')
    with pytest.raises(RunError, match="already holds another run"), folder.claim(for_new=True):
        pass
    with folder.claim():
        pass


def test_a_lock_that_was_taken_away_holds_nothing(tmp_path, monkeypatch):
    """The file is opened, then taken away by the process that held it, then locked."""
    file, flock = tmp_path / "run.lock", fcntl.flock

    def late(lock, how):
        file.unlink()
        flock(lock, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(RunError, match="busy"), locked(file, "busy"):
        pass


def test_two_processes_do_not_train_one_run(image_folder, tmp_path):
    run = tmp_path / "run"
    data = ("--data", f"folder:{image_folder}")
    command = ["train", "ldae", *data, "--steps", "100000", "--out", str(run), *flags()]
    with subprocess.Popen(
        [sys.executable, "-m", "ldae_fast.cli", *command], stderr=subprocess.DEVNULL
    ) as child:
        try:
            while not (run / "metrics.jsonl").exists():
                time.sleep(0.01)
            line = refused("resume", run, by=ldae)
            assert f"another process trains in {run}" in line
            child.terminate()
            assert child.wait(timeout=60) == 143
        finally:
            child.kill()
    again = ldae_here("resume", run, "--model.depth", 2)
    assert again.returncode == 2  # free again: its own reason


def test_settings_without_effect_are_told(image_folder, tmp_path):
    words = ("--data", f"folder:{image_folder}", "--steps", "1", *flags())
    idle = ("--noise.single_sigma", "0.3", "--finetune.mixup", "0", "--model.classes", "5")
    done = ldae_here("train", "ldae", *words, *idle, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    notes = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert notes == [
        "note: --noise.single_sigma decides nothing here, with noise.schedule unscaled",
        "note: --finetune.mixup decides nothing here, but in `ldae finetune`",
        "note: --model.classes decides nothing here, where the network is told no class",
    ]


def test_a_tokenizer_is_of_a_kind_or_of_a_recipe(tmp_path):
    line = refused("tokenizer", "foo", "--data", "photos", "--out", tmp_path / "out")
    assert "unknown tokenizer 'foo': it must be one of conv-vae, patch-vae, " in line
    assert ", pixel, or a recipe: row0, row1," in line


def test_a_tokenizer_tells_what_only_training_takes(image_folder, tmp_path, capsys):
    given = ("--model.patch", "8", "--tokenizer.lr", "0.1", "--noise.levels", "99", "--seed", "1")
    words = ("tokenizer", "pca", "--data", f"folder:{image_folder}", *given)
    assert main([*words, "--out", str(tmp_path / "fitted")]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert notes == [
        "note: --tokenizer.lr decides nothing here, with tokenizer.kind pca",
        "note: --noise.levels decides nothing here, but in `ldae train`",
    ]


@pytest.mark.parametrize(
    ("verb", "option", "place", "said"),
    [
        ("probe", "--json", "", r"--json \S+ is a folder; name a file"),
        ("export", "--out", "file.txt/encoder.safetensors", r"file.txt is no folder; name a file"),
        ("export", "--out", "no/encoder.safetensors", r": \S+/no is no folder; name a file in one"),
        ("probe", "--json", "no/probe.json", r": \S+/no is no folder; name a file in one"),
        ("export", "--out", "encoder.bin", r"--out must end in .safetensors"),
        (
            "probe",
            "--json",
            "result.json",
            r"is there already, and no result of `ldae probe`; name",
        ),
        ("probe", "--json", "link", r"is there already, and no result of `ldae probe`; name"),
        ("probe", "--json", "pipe", r"is there already, and no result of `ldae probe`; name"),
        ("probe", "--json", "probe.json", r"config.json cannot be read"),  # which is replaced
        ("export", "--out", "broken.safetensors", r"is there already, and no encoder of `ldae exp"),
        ("sample", "--out", "some.png", r"--out \S+/some.png is there already; name another file"),
        ("sample", "--classifier", "broken.safetensors", r"is there already; name another file"),
        ("sample", "--out", "samples.jpg", r"--out must end in .png"),
        ("sample", "--classifier", "c.pt", r"--classifier must end in .safetensors"),
        ("sample", "--classifier", "", r"--classifier \S+ is a folder; name a file"),
        ("sample", "--classifier", "file.txt", r"config.json cannot be read"),  # it is there: read
    ],
)
def test_outputs_are_looked_at_before_the_work(tmp_path, verb, option, place, said):
    (tmp_path / "file.txt").touch()
    (tmp_path / "some.png").touch()
    (tmp_path / "result.json").write_text('{"recipe": "row7", "data": "photos", "linear_top1": 1}')
    (tmp_path / "probe.json").write_text(json.dumps(dict.fromkeys(WRITES)))
    (tmp_path / "link").symlink_to(tmp_path / "probe.json")
    (tmp_path / "broken.safetensors").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    more = {"probe": ("--data", "photos"), "sample": ("--frechet", "photos")}.get(verb, ())
    line = refused(verb, tmp_path / "no-run", *more, option, tmp_path / place)
    assert re.search(said, line), line


def test_samples_need_a_place_before_they_are_drawn(run, tmp_path, monkeypatch):
    """The place of their picture where no other is named."""
    shutil.copytree(run, tmp_path / "run")
    monkeypatch.setattr("ldae_fast.train.sample.draw_samples", lambda *_: {"picture": "it"})
    assert main(["sample", str(tmp_path / "run")]) == 0
    for folder in (tmp_path / "run" / "pictures", tmp_path / "run"):
        folder.chmod(0o500)
        with heeding_permissions():
            line = refused("sample", tmp_path / "run")
        assert line == f"ldae: {folder} may not be written to; name a file elsewhere by --out"
        folder.chmod(0o700)
        shutil.rmtree(tmp_path / "run" / "pictures", ignore_errors=True)


def test_a_length_is_not_for_resuming_and_a_default_is_told(image_folder, run, tmp_path, capsys):
    for words in (("--steps", "50"), ("--minutes=3",)):
        assert main(["resume", str(run), *words]) == 2
        said = capsys.readouterr().err
        name = words[0].partition("=")[0]
        assert said == (
            f"ldae: {name}: a run's length is fixed by the `ldae train` that began it; train anew "
            "for another\n"
        )
    assert (
        main(
            [
                "train",
                "ldae",
                "--data",
                "photoz",
                "--out",
                str(tmp_path / "out"),
                "--image-size",
                "32",
            ]
        )
        == 2
    )
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "note: no length is given by --steps, --epochs or --minutes: 400 epochs"
    for verb, epochs in (("train", 400), ("finetune", 100), ("trajectory", 400)):
        assert f"default {epochs}, where no length is given" in ldae(verb, "--help").stdout


def test_resuming_a_finished_run_evaluates_it_again(image_folder, run, tmp_path, capsys):
    assert main(["resume", str(run)]) == 0
    said = capsys.readouterr().out.splitlines()[0]
    assert said == f"{run} is finished, at step 1: evaluating it again"
    words = ["--data", f"folder:{image_folder}", "--steps", "1", "--finetune.batch", "8"]
    out = str(tmp_path / "tuned")
    assert main(["finetune", str(run), *words, "--out", out]) == 0
    capsys.readouterr()
    assert main(["resume", out]) == 0
    said = capsys.readouterr().out.splitlines()[0]
    assert said == f"{out} is finished, at step 1: evaluating it again"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"LDAE_IMPL": "fast"}, r"LDAE_IMPL must be reference, or op=impl by comma; got 'fast'"),
        ({"LDAE_IMPL": "atention=sdpa"}, r"LDAE_IMPL: there is no op 'atention'; the ops are"),
        (
            {"LDAE_ISA": "avx1024"},
            r"LDAE_ISA must be one of best, generic, avx2, avx512, avx512bf16",
        ),
        ({"LDAE_NATIVE": "yes"}, r"LDAE_NATIVE must be one of auto, 0, 1; got 'yes'"),
    ],
)
def test_variables_are_checked(monkeypatch, variables, said):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    line = refused("info")
    assert re.match(f"ldae: {said}", line), line


def test_an_implementation_that_is_not_there_is_one_sentence(image_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("LDAE_IMPL", "attention=quick")
    words = ("train", "ldae", "--data", f"folder:{image_folder}", "--steps", "1", *flags())
    line = refused(*words, "--out", tmp_path / "run")
    choices = ", ".join(["auto", *ON_CPU])
    assert line.startswith(
        f"ldae: LDAE_IMPL: attention: impl must be one of {choices}; got 'quick'"
    )


def test_nobody_reads_on():
    """A closed pipe ends quietly, a full device in one sentence."""
    command = [sys.executable, "-m", "ldae_fast.cli", "plan", "ldae", "--image-size", "32"]
    how = {"stderr": subprocess.PIPE, "text": True, "env": os.environ | {"PYTHONUNBUFFERED": ""}}
    with subprocess.Popen(command, stdout=subprocess.PIPE, **how) as child:
        child.stdout.close()
        assert child.stderr.read() == ""
    assert child.returncode == 141
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, check=False, **how)
    assert done.stderr == "ldae: standard output: No space left on device\n"
    assert done.returncode == 1
    closed = ["bash", "-c", '"$@" >&-', "bash", *command]
    done = subprocess.run(closed, check=False, **how)
    assert (done.stderr, done.returncode) == ("", 0)


def test_probe_refuses_training_settings(tmp_path, image_folder):
    (tmp_path / "config.json").write_text(json.dumps({"launch": {"data": "photos", "steps": 1}}))
    line = refused("probe", tmp_path, "--data", f"folder:{image_folder}", "--model.depth", "3")
    assert "--model.depth belongs to training" in line


def test_broken_images_are_named_counted_and_replaced(tmp_path):
    """Each is broken in its own way; the run ends well, and is the same in another process."""
    images = write_images(tmp_path / "images")
    (images / "class0" / "003.png").write_bytes(b"")
    (images / "class1" / "004.png").write_text("this is a poem")
    (images / "class1" / "009.png").write_bytes(b"")  # every tenth: a test image
    whole = (images / "class2" / "005.png").read_bytes()
    (images / "class2" / "005.png").write_bytes(whole[: len(whole) // 2])
    (images / "lost").mkdir()
    (images / "lost" / "000.png").write_bytes(b"")
    run = ("train", "ldae", "--data", f"folder:{images}", "--steps", "12", *flags())
    results = []
    for name, train in (("a", ldae_here), ("b", ldae)):
        done = train(*run, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
        results.append(json.loads((tmp_path / name / "result.json").read_text()))
    assert "5 of 91 images are broken and were replaced, the first: " in done.stdout
    assert "no training image of these classes can be read: lost\n" in done.stdout
    places = ("class0/003.png", "class1/004.png", "class1/009.png", "class2/005.png",
              "lost/000.png")  # fmt: skip
    assert len(results[0]["bad_images"]) == len(places)
    for place in places:
        assert sum(place in said for said in results[0]["bad_images"]) == 1
    assert results[0]["final_loss"] == results[1]["final_loss"]
    probed = ldae_here("probe", tmp_path / "a", "--data", f"folder:{images}", "--method", "knn")
    assert json.loads(probed.stdout)["bad_images"] == results[0]["bad_images"]
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


@contextmanager
def files_up_to(size: int):
    """Lets no file of this process grow above so many bytes: as on a full disk."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, old)


def test_full_disk_keeps_the_run_resumable(image_folder, tmp_path):
    """The first checkpoint does not fit."""
    words = ["train", "ldae", "--data", f"folder:{image_folder}", "--steps", "6", *flags()]
    with files_up_to(250_000):
        line = refused(*words, "--out", tmp_path / "run", status=1)
    assert re.search(r"File too large|no space left for \S+/checkpoints/\S+; free", line)
    assert str(tmp_path / "run" / "checkpoints") in line
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.parametrize("verb", ["tokenizer", "finetune"])
def test_what_cannot_be_written_is_not_in_its_own_way(image_folder, run, tmp_path, capsys, verb):
    """In 10 kB, less than a tokenizer or an encoder takes; the same command does it given more."""
    own = {"tokenizer": ["pca", "--model.patch", "8"],
           "finetune": [str(run), "--steps", "1", "--finetune.batch", "8"]}[verb]  # fmt: skip
    words = [verb, *own, "--data", f"folder:{image_folder}", "--out", str(tmp_path / "new")]
    with files_up_to(10_000):
        assert main(words) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"^ldae: \S+/new/\S+\.safetensors: ", said), said
    assert not (tmp_path / "new").exists()
    assert main(words) == 0


def test_what_may_not_be_read_is_not_called_missing(tmp_path, capsys):
    """Files and folders that are there, closed to whoever asks."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"launch": {"data": "photos", "steps": 1}}))
    closed = tmp_path / "encoder.safetensors"
    closed.touch()
    (tmp_path / "checkpoints").mkdir()
    for path in (closed, tmp_path / "checkpoints"):
        path.chmod(0)
    new = ["--data", "photos", "--out", str(tmp_path / "out")]
    with heeding_permissions():
        for status, place, *words in (
            (1, closed, "finetune", closed, *new),
            (1, tmp_path / "checkpoints", "probe", tmp_path, "--data", "photos"),
            (2, closed, "train", "row7", *new, "--tokenizer.file", closed, *flags()),
        ):
            assert main([str(word) for word in words]) == status
            (line,) = [s for s in capsys.readouterr().err.splitlines() if s.startswith("ldae: ")]
            assert f"{place}: Permission denied" in line or f"{place} cannot be read (Perm" in line
    (tmp_path / "checkpoints").chmod(0o700)


def test_settings_can_come_from_a_saved_run(image_folder, tmp_path):
    data = ("--data", f"folder:{image_folder}", "--steps", "3")
    done = ldae_here("train", "row10", *data, "--out", tmp_path / "a", *flags(), "--seed", "5")
    assert done.returncode == 0, done.stderr
    done = ldae_here("train", *data, "--out", tmp_path / "b", "--config", tmp_path / "a")
    assert done.returncode == 0, done.stderr
    a, b = (json.loads((tmp_path / n / "config.json").read_text()) for n in "ab")
    assert {k: v for k, v in a.items() if k not in ("launch", "command")} == {
        k: v for k, v in b.items() if k not in ("launch", "command")
    }
    first, second = (json.loads((tmp_path / n / "result.json").read_text()) for n in "ab")
    assert first["linear_top1"] == second["linear_top1"]


def test_packing_takes_no_settings(image_folder, tmp_path):
    words = ("pack", f"folder:{image_folder}", "--out", tmp_path / "out", "--model.depth", "3")
    assert "--model.depth decides nothing in packing" in refused(*words)


def test_pack_and_train_on_it(image_folder, tmp_path):
    done = ldae_here("pack", f"folder:{image_folder}", "--out", tmp_path / "packed")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1].startswith("pack  images 90/90  in ")
    size = sum(file.stat().st_size for file in (tmp_path / "packed").rglob("*.*"))
    assert f": 90 images, {size / 1e6:.4f} MB; use" in done.stdout
    assert f"--data packed:{tmp_path / 'packed'}" in done.stdout
    assert str(tmp_path / "packed") in refused(
        "pack", f"folder:{image_folder}", "--out", tmp_path / "packed"
    )
    results = []
    for name, spec in (("a", f"folder:{image_folder}"), ("b", f"packed:{tmp_path / 'packed'}")):
        run = ldae_here(
            "train", "ldae", "--data", spec, "--steps", 5, "--out", tmp_path / name, *flags()
        )
        assert run.returncode == 0, run.stderr
        results.append(json.loads((tmp_path / name / "result.json").read_text())["final_loss"])
    assert results[0] == results[1]


def test_settings_may_stand_anywhere(tmp_path):
    """Also before the argument of the verb, with a negative value, with none where one is due."""
    data = ("--data", "photos", "--out", tmp_path / "out")
    for words, said in (
        (("train", "--model.depth", "0", "ldae", *data), "model.depth must be 1 or more; got 0"),
        (("train", "--model.depth=0", "ldae", *data), "model.depth must be 1 or more; got 0"),
        (("train", "--evaluate.t", "-1", "ldae", *data), "evaluate.t must be 0 to noise.levels"),
        (("train", "--model.depth", *data, "ldae", "stray"), "unexpected argument 'stray'"),
        (("train", "ldae", "--model.depth", *data), "--model.depth needs a value"),
        (("probe", "--evaluate.t", "50", tmp_path, *data[:2]), f"{tmp_path}/config.json cannot"),
        (("sample", "--evaluate.t", "50", tmp_path), "unexpected argument '--evaluate.t'"),
        (("finetune", "--seed", "3", tmp_path / "none", *data), f"{tmp_path}/none: there is no"),
    ):
        assert said in refused(*words)


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


def stopped(number: int, at: str, *words) -> tuple[int, str]:
    """The status and the last line of `ldae`, sent a signal once it says that it is `at` some work.

    As on a terminal: a shell hands its background jobs a SIGINT that is ignored.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "ldae_fast.cli", *map(str, words)], text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as child:  # fmt: skip
        told = next((line for line in child.stderr if line.startswith(at)), "")
        assert told, "it ended before"
        child.send_signal(number)
        said = child.stderr.read()
    assert "Traceback" not in said
    return child.returncode, said.splitlines()[-1]


LONG = ("--evaluate.epochs", "1000000")
AGAIN = "ldae: stopped and nothing was kept; run the same command again"


def test_a_signal_outside_of_a_step_is_one_sentence(image_folder, run, tmp_path):
    """It names a folder where there is one that can be resumed."""
    data, out = ("--data", f"folder:{image_folder}"), tmp_path / "new"
    train = ("train", "ldae", *data, "--steps", "1", "--out", out)
    fit = (*train, *flags(model__patch=32))
    for number, at, *words in (
        (signal.SIGINT, "fit tokenizer", *fit),
        (signal.SIGTERM, "fit tokenizer", *fit),
        (signal.SIGINT, "sample", "sample", run, "--count", "100000"),
        (signal.SIGTERM, "probe", "probe", run, *data, *LONG),
    ):
        assert stopped(number, at, *words) == (128 + number, AGAIN)
    assert not out.exists()
    goes_on = f"ldae: stopped; go on with `ldae resume {out}`"
    for number, *words in (
        (signal.SIGTERM, *train, *flags(), *LONG),
        (signal.SIGINT, "resume", out),
    ):
        assert stopped(number, "evaluate", *words) == (128 + number, goes_on)


@pytest.mark.parametrize("verb", ["train ldae", "tokenizer pca"])
def test_ctrl_c_before_a_folder_is_refused_resumes_nobody_elses_run(run, verb):
    """What is in the folder is of another run, whatever the command is."""
    words = (*verb.split(), "--data", "photos", "--steps", "1", "--out", run)
    command = [sys.executable, "-X", "importtime", "-m", "ldae_fast.cli", *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        assert any("torch._utils" in line for line in child.stderr)  # long before torch is there
        child.send_signal(signal.SIGINT)
        said = child.stderr.read().splitlines()[-1]
    assert child.returncode == 130
    assert said == (
        f"ldae: stopped and nothing was kept: --out {run} already holds another run; name a new "
        f"folder, or go on with `ldae resume {run}`"
    )


def test_sigterm_while_a_fine_tuning_is_measured(run, tmp_path):
    """The test image is a pipe, so it is never read to its end."""
    write_images(tmp_path / "data" / "train", each=4)
    for name in ("class0", "class1", "class2"):
        (tmp_path / "data" / "test" / name).mkdir(parents=True)
        os.mkfifo(tmp_path / "data" / "test" / name / "0.png")
    out = tmp_path / "tuned"
    few = ("--steps", "1", "--finetune.batch", "4", "--speed.workers", "0")
    words = ("finetune", run, "--data", f"folder:{tmp_path / 'data'}", "--out", out, *few)
    command = [sys.executable, "-m", "ldae_fast.cli", *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        while not (out / "checkpoints" / "step-0000001").exists():
            assert child.poll() is None
            time.sleep(0.01)
        time.sleep(0.3)
        child.terminate()
        _, said = child.communicate(timeout=60)
    assert said.splitlines()[-1] == f"ldae: stopped; go on with `ldae resume {out}`"
    assert child.returncode == 143


def on_a_full_disk(room: str, place: Path, *words) -> str:
    """The line of `ldae` where `place` is a disk of its own with so much room."""
    own = ["unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size={room} none "$0" && exec "$@"']
    place.mkdir()
    if subprocess.run([*own, place, "true"], capture_output=True, check=False).returncode:
        pytest.skip("the system lets nobody mount a disk of their own")
    command = [*own, place, sys.executable, "-m", "ldae_fast.cli", *words]
    done = subprocess.run(map(str, command), capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    return done.stderr.splitlines()[-1]


def test_a_full_disk_is_said_as_each_verb_needs_it(image_folder, run, tmp_path):
    data, disk = f"folder:{image_folder}", tmp_path / "disk"
    again = "and nothing was kept; free some and run the same command again"
    file = disk / "encoder.safetensors"
    line = on_a_full_disk("16k", disk, "export", run, "--out", file)
    assert line == f"ldae: no space left for {file} {again}"
    disk.rmdir()
    line = on_a_full_disk("100k", disk, "pack", data, "--out", disk / "packed")
    assert line == f"ldae: no space left for {disk / 'packed'} {again}"
    disk.rmdir()
    words = ("train", "ldae", "--data", data, "--steps", "1", "--out", disk / "run", *flags())
    line = on_a_full_disk("100k", disk, *words)
    assert line.startswith(f"ldae: no space left for {disk}/run/")
    assert line.endswith(f"; free some and go on with `ldae resume {disk / 'run'}`")


def test_ctrl_c_before_anything_was_begun(tmp_path):
    """Here while a file is read that never ends."""
    pipe = tmp_path / "config.json"
    os.mkfifo(pipe)
    words = ["train", "--data", "photos", "--out", str(tmp_path / "run"), "--config", str(pipe)]
    with (
        subprocess.Popen(
            [sys.executable, "-m", "ldae_fast.cli", *words], stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as child,
        open(pipe, "w"),  # waits until the child has opened it
    ):  # fmt: skip
        time.sleep(0.1)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=60)
    assert (child.returncode, said) == (130, f"{AGAIN}\n")
