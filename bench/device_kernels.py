"""What a GPU runs in a step, by torch.profiler: which kernels take its time."""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

STEPS = 2
LONGEST = 100  # characters of a kernel's name


def busiest(step: Callable[[int], object], first: int, most: int) -> str:
    """The kernels of STEPS steps from `first` on that take most, a line each, below all together.

    ms and launches are of one step.
    """
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        for number in range(first, first + STEPS):
            step(number)
        torch.cuda.synchronize()
    events = [
        (event.name(), event.duration_ns() * 1e-6)
        for event in seen.profiler.kineto_results.events()
        if str(event.device_type()).endswith("CUDA")
    ]
    return lines(events, most)


def lines(events: list[tuple[str, float]], most: int) -> str:
    """events: (name, ms) of all launches, and of ranges around some, which are left out."""
    times = defaultdict(list)
    for name, ms in events:
        if "#" not in name and not name.startswith(("Torch-Compiled", "ProfilerStep")):
            times[name].append(ms)
    total = sum(map(sum, times.values())) / STEPS
    ranked = sorted(times.items(), key=lambda item: -sum(item[1]))[:most]
    count = sum(map(len, times.values())) // STEPS
    return "\n".join(
        [f"{total:10.3f} ms {count:6}x  in all"]
        + [f"{sum(ms) / STEPS:10.3f} ms {len(ms) // STEPS:6}x {1e3 * sum(ms) / len(ms):9.1f} us  "
           f"{name[:LONGEST]}" for name, ms in ranked]
    )  # fmt: skip
