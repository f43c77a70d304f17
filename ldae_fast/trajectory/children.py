"""Jobs as child processes, some side by side, ended cleanly when the study is asked to stop."""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import IO

import torch

from ..threads import usable_cores
from ..train.device import require
from ..train.folder import RunError
from .jobs import BEGINS, Job

POLL_S = 0.1
PR_SET_PDEATHSIG = 1


def places(device: str, count: int) -> list[dict[str, str]]:
    """The environment of each of `count` places for a child: a GPU each, and a share of cores."""
    require(device)
    share = {}
    if count > 1:
        cores = os.environ.get("OMP_NUM_THREADS", "") or str(usable_cores())
        share = {"OMP_NUM_THREADS": str(max(1, int(cores.split(",")[0]) // count))}
    if device == "cpu":
        return [share] * count
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    visible = named.split(",") if named else [*map(str, range(torch.cuda.device_count()))]
    if count > len(visible):
        raise RunError(f"--jobs must be at most {len(visible)}, one a visible GPU; got {count}")
    return [{"CUDA_VISIBLE_DEVICES": name, **share} for name in visible[:count]]


class Children:
    """At most one child a place. Leaving the context ends those that still run."""

    def __init__(self, places: list[dict[str, str]], lock: IO):
        self.free, self.lock = list(places), lock
        self.running: list[tuple[Job, dict[str, str], subprocess.Popen]] = []

    def __enter__(self) -> "Children":
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.stop()

    def start(self, job: Job) -> None:
        """In a session of its own, so that Ctrl-C reaches the study alone, which then decides. The
        child keeps the study's lock, so that no second study meets what it writes."""
        place = self.free.pop()
        job.log.parent.mkdir(parents=True, exist_ok=True)
        words = job.command()
        with open(job.log, "a") as log:  # what an attempt before it said stays
            print(BEGINS, job.name, file=log, flush=True)
            child = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env=os.environ | place, start_new_session=True, pass_fds=[self.lock.fileno()],
                preexec_fn=END_WITH_PARENT,
            )  # fmt: skip
        self.running.append((job, place, child))

    def ended(self) -> list[tuple[Job, int]]:
        """Jobs whose child has ended, with its status; each is told once."""
        over = [one for one in self.running if one[2].poll() is not None]
        self.running = [one for one in self.running if one not in over]
        self.free += [place for _, place, _ in over]
        return [(job, child.returncode) for job, _, child in over]

    def stop(self) -> None:
        """Asks every child to save and end, and waits; a second Ctrl-C no longer waits."""
        for _, _, child in self.running:
            child.terminate()
        try:
            for _, _, child in self.running:
                child.wait()
        finally:
            for _, _, child in self.running:
                child.kill()
                child.wait()
            self.running = []


def end_with_parent() -> Callable[[], None] | None:
    """For the child, before it begins: SIGTERM when the study is gone, where the system can."""
    try:
        prctl = ctypes.CDLL(None).prctl
    except (OSError, AttributeError):
        return None
    return lambda: prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


END_WITH_PARENT = end_with_parent()


def run_jobs(
    jobs: list[Job],
    children: Children,
    stopped: list,
    show: Callable[[list[Job]], None],
    over: Callable[[Job, str], None],
) -> None:
    """Runs every job that is not done, in order, until all have ended or `stopped` fills.

    show(jobs that run now), often; over(job, problem) after each, problem '' where it went well.
    """
    waiting = [job for job in jobs if not job.done]
    failed: set[str] = set()
    while (waiting or children.running) and not stopped:
        for job in [j for j in waiting if j.after and j.after.name in failed]:
            waiting.remove(job)
            over(job, f"{job.after.name}, which it probes, failed")
        ready = [job for job in waiting if not job.after or job.after.done]
        for job in ready[: len(children.free)]:
            waiting.remove(job)
            children.start(job)
        show([job for job, _, _ in children.running])
        time.sleep(POLL_S)
        for job, status in children.ended():
            problem = "" if status == 0 and job.done else job.problem(status)
            if problem:
                failed.add(job.name)
            over(job, problem)
