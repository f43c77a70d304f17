"""Times contenders in turns, one call of each a round: a slow moment of the machine meets all.

Before every call the caches are written over, so that a call finds its inputs in memory, as a step
does. On CUDA, events time the device; on a CPU, perf_counter does.
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

MINIMUM_ROUNDS, MAXIMUM_ROUNDS, WARM_UP = 5, 200, 3
CPU_CACHE = 64 << 20  # bytes to write between calls: more than a core's share of any cache


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


class Evictor:
    """Overwrites the caches of a device when called."""

    def __init__(self, device: str):
        size = CPU_CACHE
        if device == "cuda":
            size = 2 * torch.cuda.get_device_properties(0).L2_cache_size
        self.buffer = torch.zeros(size, dtype=torch.uint8, device=device)

    def __call__(self) -> None:
        self.buffer.add_(1)


def measure(
    contenders: Mapping[str, Callable[[], object]], device: str, seconds: float
) -> dict[str, Times]:
    """Times of each contender after warm-up, in rounds for about `seconds`, at least five.

    Each round starts with the next contender, so that none always follows the same neighbour.
    """
    one = _once_on_cuda if device == "cuda" else _once_on_cpu
    evict = Evictor(device)
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
                collected[name].append(one(contenders[name], evict))
            rounds += 1
    finally:
        gc.enable()
    return {name: Times(samples) for name, samples in collected.items()}


def _once_on_cpu(call: Callable, evict: Evictor) -> float:
    evict()
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _once_on_cuda(call: Callable, evict: Evictor) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    evict()  # runs while the host prepares the call, which hides the launch
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3


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


def copy_rate(device: str) -> float:
    """Bytes a second, read and written, of a plain copy much larger than the caches."""
    source = torch.ones((1 << 29) if device == "cuda" else (1 << 26), device=device)
    target = torch.empty_like(source)
    times = measure({"copy": lambda: target.copy_(source)}, device, 0.5)
    return 2 * source.nbytes / times["copy"].quantile(0.2)


def gemm_rate(device: str, dtype: torch.dtype) -> float:
    """FLOPs a second of a large square product."""
    n = 8192 if device == "cuda" else 1536
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    times = measure({"gemm": lambda: a @ b}, device, 0.5)
    return 2 * n**3 / times["gemm"].quantile(0.2)


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
