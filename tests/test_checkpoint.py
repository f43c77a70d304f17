"""Checkpoints: whole or not there. Real files, real damage, real kills."""

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import heeding_permissions
from saver import __file__ as SAVER
from saver import save, state

from ldae_fast.train.checkpoint import (
    CheckpointError,
    list_checkpoints,
    load_newest,
    read_checkpoint,
    replace_durably,
    save_checkpoint,
)


def assert_is(step, tensors, files):
    for stem, named in state(step).items():
        for name, tensor in named.items():
            assert torch.equal(tensors[stem][name], tensor)
    assert json.loads(files["state.json"]) == {"step": step}


def test_round_trip_and_pruning(tmp_path):
    for step in (1, 10, 9, 200):
        save(tmp_path, step)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-0000200", "step-0000010"]
    path, tensors, files = load_newest(tmp_path)
    assert path.name == "step-0000200"
    assert_is(200, tensors, files)


def test_every_kind_of_damage_is_detected_and_stepped_over(tmp_path):
    """Bit flips, truncations, zeroed pages and missing files, at random places, seeded."""
    dice = random.Random(0)
    for trial in range(60):
        folder = tmp_path / str(trial)
        save(folder, 1)
        newest = save(folder, 2)
        victim = newest / dice.choice(sorted(os.listdir(newest)))
        content = bytearray(victim.read_bytes())
        kind = ("flip", "truncate", "zero", "gone")[trial % 4]
        place = dice.randrange(len(content))
        if kind == "flip":
            content[place] ^= 1 << dice.randrange(8)
        elif kind == "truncate":
            del content[place:]
        elif kind == "zero":
            content[place : place + 64] = b"\x01" * len(content[place : place + 64])
        victim.unlink() if kind == "gone" else victim.write_bytes(content)
        said = []
        path, tensors, files = load_newest(folder, said.append, set_aside=True)
        assert path.name == "step-0000001", (kind, victim.name)
        assert_is(1, tensors, files)
        assert newest.name in said[0]
        assert list(folder.glob("damaged-step-0000002-*"))


def test_whoever_only_reads_steps_over_damage_and_renames_nothing(tmp_path):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    (newest / "state.json").unlink()
    said = []
    assert load_newest(tmp_path, said.append)[0].name == "step-0000001"
    assert re.search(r"step-0000002/state.json cannot be .*; going back to the checkpoint", said[0])
    assert newest.exists()


def test_a_checkpoint_that_cannot_be_read_is_no_damaged_one(tmp_path):
    save(tmp_path, 1)
    closed = save(tmp_path, 2) / "model.safetensors"
    closed.chmod(0)
    with heeding_permissions(), pytest.raises(PermissionError) as raised:
        load_newest(tmp_path, pytest.fail, set_aside=True)
    assert raised.value.filename == str(closed)
    assert_is(2, *load_newest(tmp_path, pytest.fail)[1:])


def test_what_a_killed_save_left_is_in_nobodys_way(tmp_path):
    """In a container the next process may have the same id."""
    left = [tmp_path / f"step-0000003.tmp-{pid}" for pid in (os.getpid(), 999_999)]
    for folder in left:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
    save_checkpoint(tmp_path, 3, {"model": {"w": torch.ones(2)}}, {}, keep=2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-0000003"]


def test_a_whole_checkpoint_of_the_same_step_stays(tmp_path):
    """Taken away first, it would be missing while the new one is put in its place."""
    path = save_checkpoint(tmp_path, 3, {"model": {"w": torch.ones(2)}}, {}, keep=1)
    before = path.stat().st_ino
    assert save_checkpoint(tmp_path, 3, {"model": {"w": torch.ones(2)}}, {}, keep=1) == path
    assert path.stat().st_ino == before
    (path / "model.safetensors").write_bytes(b"damaged")
    save_checkpoint(tmp_path, 3, {"model": {"w": torch.ones(2)}}, {}, keep=1)
    assert torch.equal(read_checkpoint(path)[0]["model"]["w"], torch.ones(2))


def test_no_whole_checkpoint_is_one_sentence(tmp_path):
    with pytest.raises(CheckpointError, match="no whole checkpoint under"):
        load_newest(tmp_path)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/b"])
def test_manifest_cannot_point_outside(tmp_path, name):
    path = save(tmp_path, 1)
    manifest = json.loads((path / "MANIFEST.json").read_text())
    manifest[name] = {"bytes": 0, "sha256": ""}
    (path / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="not a plain file name"):
        read_checkpoint(path)


def saver(*words) -> subprocess.Popen:
    """A process that saves in a loop."""
    command = [sys.executable, SAVER, *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_sigkill_at_random_moments_loses_nothing(tmp_path):
    """A child saves in a loop and is killed; what it reported as saved is there and whole."""
    dice, step = random.Random(1), 0
    for _ in range(6):
        child = saver(tmp_path, step, 2)
        assert child.stdout.readline() == "ready\n"
        time.sleep(dice.uniform(0.0, 0.08))
        child.send_signal(signal.SIGKILL)
        reported = child.stdout.read().split()
        child.wait()
        if reported or list_checkpoints(tmp_path):
            path, tensors, files = load_newest(tmp_path, warn=pytest.fail)
            step = int(path.name[5:])
            assert step >= int((reported or ["0"])[-1])
            assert_is(step, tensors, files)
    assert step > 0


def test_reading_while_a_trainer_prunes(tmp_path):
    """What is taken away in the midst of it was no damage: the reader looks again."""
    save(tmp_path, 0)
    with saver(tmp_path, 0, 1) as child:
        assert child.stdout.readline() == "ready\n"
        seen = set()
        while len(seen) < 20:
            path, tensors, files = load_newest(tmp_path, pytest.fail)
            assert_is(int(path.name[5:]), tensors, files)
            seen.add(path)
        child.kill()


def test_full_disk_keeps_the_checkpoint_before(tmp_path):
    """A real write that fails half way: the process may write no file over 1,000 bytes."""
    save(tmp_path, 1)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save(tmp_path, 2)
        with pytest.raises(OSError, match="File too large"):
            replace_durably(tmp_path / "step-0000001" / "state.json", b"x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, old)
    assert [p.name for p in tmp_path.iterdir()] == ["step-0000001"]
    assert_is(1, *load_newest(tmp_path)[1:])


def test_nothing_is_pickled(tmp_path):
    path = save(tmp_path, 1)
    assert {p.suffix for p in path.iterdir()} == {".safetensors", ".json"}
