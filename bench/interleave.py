"""Times contenders in turns, one call of each a round: a slow moment of the machine meets all.

A call finds its inputs in memory, as a step does: ldae_fast/rates.py clears the caches and times.
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from ldae_fast.rates import Evictor, stopwatch

MINIMUM_ROUNDS, MAXIMUM_ROUNDS, WARM_UP = 5, 200, 3


class Times(NamedTuple):
    """Seconds of each call, in the order of the rounds."""

    samples: list[float]

    def quantile(self, q: float) -> float:
        """The nearest sample at share q of the sorted ones."""
        ranked = sorted(self.samples)
        return ranked[round(q * (len(ranked) - 1))]

    @property
    def p50(self) -> float:
        return statistics.median(self.samples)


def measure(
    contenders: Mapping[str, Callable[[], object]], device: str, seconds: float
) -> dict[str, Times]:
    """Times of each contender after warm-up, in rounds for about `seconds`, at least five.

    Each round starts with the next contender, so that none always follows the same neighbour.
    """
    once, evict = stopwatch(device), Evictor(device)
    names = list(contenders)
    for call in contenders.values():
        for _ in range(WARM_UP):
            call()
    collected = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        began, rounds = time.perf_counter(), 0
        while rounds < MINIMUM_ROUNDS or (
            rounds < MAXIMUM_ROUNDS and time.perf_counter() - began < seconds
        ):
            first = rounds % len(names)
            for name in names[first:] + names[:first]:
                collected[name].append(once(contenders[name], evict))
            rounds += 1
    finally:
        gc.enable()
    return {name: Times(samples) for name, samples in collected.items()}


class Replay:
    """A clock for pytest-benchmark that hands it the durations that were measured in turns."""

    def __init__(self):
        self.now, self.pending, self.running = 0.0, [], False

    def record(self, benchmark, times: Times) -> None:
        self.pending, self.running = list(times.samples), False
        benchmark.pedantic(lambda: None, rounds=len(times.samples), iterations=1)

    def __call__(self) -> float:
        if self.running and self.pending:
            self.now += self.pending.pop(0)
        self.running = not self.running
        return self.now


CLOCK = Replay()


def peak_mib(call, device: str) -> float:
    """The most memory that one call holds above what was there before it."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU],
                                profile_memory=True) as profile:  # fmt: skip
        call()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most / 2**20
