"""How many threads compute on a CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ldae_fast import threads

ASK = "from ldae_fast.threads import use_cores; print(use_cores())"


def cores(environment: dict | None = None, **options) -> int:
    clean = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | (environment or {})
    ran = subprocess.run([sys.executable, "-c", ASK], env=clean, capture_output=True, text=True,
                         check=True, timeout=60, **options)  # fmt: skip
    return int(ran.stdout)


def test_affinity_and_the_users_word_decide():
    def on_one_core() -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    assert cores(preexec_fn=on_one_core) == 1
    asked = cores({"OMP_NUM_THREADS": "2"}, preexec_fn=on_one_core)
    assert asked == 2 or os.cpu_count() == 1


def test_a_quota_holds():
    """A real cgroup that allows less than one core, where one can be made."""
    group = Path("/sys/fs/cgroup/cpu/ldae-fast-test")
    try:
        group.mkdir()
        (group / "cpu.cfs_quota_us").write_text("50000")
    except OSError:
        pytest.skip("needs leave to make a cgroup (version 1)")
    try:
        assert cores(preexec_fn=lambda: (group / "tasks").write_text(str(os.getpid()))) == 1
    finally:
        group.rmdir()


@pytest.mark.parametrize(
    ("own", "files", "found"),
    [
        ("0::/a/b", {"a/b/cpu.max": "150000 100000", "a/cpu.max": "max 100000"}, [1.5]),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "400000 100000"}, [4.0]),
        ("0::/of/the/host", {"cpu.max": "200000 100000"}, [2.0]),
        ("3:cpu,cpuacct:/x\n4:memory:/y", {"cpu/x/cpu.cfs_quota_us": "250000\n",
                                           "cpu/x/cpu.cfs_period_us": "100000\n"}, [2.5]),
        ("3:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, []),
        ("4:memory:/y", {"cpu.max": "200000 100000"}, []),
    ],
)  # fmt: skip
def test_quotas_of_both_kinds_of_cgroups(tmp_path, own, files, found):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "own").write_text(own)
    assert list(threads.quotas(tmp_path, tmp_path / "own")) == found


@pytest.mark.parametrize(
    ("wanted", "device", "cores", "count"),
    [
        (-1, "cpu", 64, 2), (-1, "cuda", 64, 16), (-1, "cuda", 8, 7), (-1, "cuda", 1, 1),
        (0, "cuda", 64, 0), (30, "cpu", 2, 30),
    ],
)  # fmt: skip
def test_reading_threads_follow_the_device(monkeypatch, wanted, device, cores, count):
    monkeypatch.setattr(threads, "usable_cores", lambda: cores)
    assert threads.reading_threads(wanted, torch.device(device)) == count


def test_threads_of_one_core_count_once(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(threads, "siblings", lambda cpu: f"{cpu % 2}")
    monkeypatch.setattr(threads, "quotas", lambda: iter([]))
    assert threads.usable_cores() == 2
