"""What a device can do at most, measured on it: bytes a second of a copy, FLOPs of a product.

Before every call the caches are written over, so that a call finds its inputs in memory, as a step
does. On CUDA, events time the device; on a CPU, perf_counter does.
"""

import re
import time
from collections.abc import Callable

import torch

# By the makers' datasheets, by what torch calls the device: dense bfloat16 FLOP a second, and bytes
# of memory, of which the largest variant's.
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12}
SLOWER = {"H100 PCIe": 756e12, "H100 NVL": 835e12}  # than their names say
MEMORY = {"H100": 80e9, "H200": 141e9, "A100": 80e9, "B200": 180e9}
WARM_UP, LEAST, MOST, SECONDS = 3, 5, 200, 0.5
CPU_CACHE = 64 << 20  # bytes to write between calls: more than a core's share of any cache
# On a GPU far more than its cache: about a millisecond, in which the host gets ahead of the device,
# so that what is timed is the device's work and not how long Python takes to ask for it.
GPU_CACHE = 2 << 30


def peak(name: str) -> float | None:
    """Dense bfloat16 FLOP/s of a device by its name, such as 'NVIDIA H100 80GB HBM3', if known."""
    known = (SLOWER | PEAKS).items()
    return next((rate for part, rate in known if re.search(rf"\b{part}\b", name)), None)


class Evictor:
    """Overwrites the caches of a device when called."""

    def __init__(self, device: str):
        size = CPU_CACHE
        if device == "cuda":
            least = 2 * torch.cuda.get_device_properties(0).L2_cache_size
            size = max(least, min(GPU_CACHE, torch.cuda.mem_get_info()[0] // 8))
        self.buffer = torch.zeros(size, dtype=torch.uint8, device=device)

    def __call__(self) -> None:
        self.buffer.add_(1)


def stopwatch(device: str) -> Callable[[Callable[[], object], Evictor], float]:
    """A function of (call, evict): the seconds of one call that finds its data in memory."""
    return _once_on_cuda if device == "cuda" else _once_on_cpu


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


def copy_rate(device: str) -> float:
    """Bytes a second, read and written, of a plain copy much larger than the caches."""
    source = torch.ones((1 << 28) if device == "cuda" else (1 << 26), device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _quick_seconds(lambda: target.copy_(source), device)


def gemm_rate(device: str, dtype: torch.dtype) -> float:
    """FLOPs a second of a large square product."""
    n = 8192 if device == "cuda" else 1536
    g = torch.Generator(device).manual_seed(0)  # not the process's own: nobody's draws may move
    a, b = (torch.randn(n, n, device=device, generator=g).to(dtype) for _ in range(2))
    return 2 * n**3 / _quick_seconds(lambda: a @ b, device)


def _quick_seconds(call: Callable[[], object], device: str) -> float:
    """Of a call in a quiet moment: a fifth of the calls were faster."""
    once, evict = stopwatch(device), Evictor(device)
    _repeat(call, WARM_UP, 0.0)
    samples = _repeat(lambda: once(call, evict), LEAST, SECONDS)
    return sorted(samples)[round(0.2 * (len(samples) - 1))]


def _repeat(call: Callable[[], object], least: int, seconds: float) -> list:
    """What it gives, called for so long and so often at least, but not when it takes seconds."""
    began = time.perf_counter()
    given = [call()]
    while len(given) < MOST:
        spent = time.perf_counter() - began
        if spent > 10 * SECONDS or (spent > seconds and len(given) >= least):
            break
        given.append(call())
    return given
