"""How many threads compute on a CPU, one a core that this process may really use; how many read."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch

MOST_READING = 16
CGROUPS = Path("/sys/fs/cgroup")
TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def use_cores() -> int:
    """Lets torch compute on `usable_cores` threads, unless OMP_NUM_THREADS says otherwise.

    torch takes a thread for every hardware thread it may run on. Twice as many as there are cores,
    or more than a container's quota lets run, and every product waits for the slowest of them.
    Returns the number in use.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
    return torch.get_num_threads()


def reading_threads(wanted: int, device: torch.device) -> int:
    """Threads that read ahead: `wanted`, or where that is -1 as many as suit the device.

    A CPU's cores compute, so there are two; beside a GPU it is every core but the one that launches
    its kernels, up to MOST_READING, since each thread holds a batch.
    """
    if wanted >= 0:
        return wanted
    return 2 if device.type == "cpu" else min(MOST_READING, max(1, usable_cores() - 1))


def usable_cores() -> int:
    """Cores in this process' affinity, each counted once, at most its cgroups' CPU quotas."""
    if not hasattr(os, "sched_getaffinity"):
        return torch.get_num_threads()
    cores = {siblings(cpu) for cpu in os.sched_getaffinity(0)}
    return max(1, min([len(cores), *(math.ceil(quota) for quota in quotas())]))


def siblings(cpu: int) -> str:
    """The hardware threads that share a core with `cpu`, as Linux lists them."""
    try:
        return Path(TOPOLOGY.format(cpu)).read_text()
    except OSError:
        return str(cpu)


def quotas(root: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> Iterator[float]:
    """CPU quotas, in cores, of the process' cgroups and of all above them (version 2 or 1)."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "cpu" if controllers else root
        place = mount / path.lstrip("/")
        # Inside a container the path is the host's, and what is mounted is the group itself.
        for folder in (place, *place.parents):
            yield from quota(folder)
            if folder == mount:
                break


def quota(folder: Path) -> Iterator[float]:
    """What one cgroup allows, in cores; nothing where it sets no limit."""
    try:
        if (folder / "cpu.max").exists():
            most, period = (folder / "cpu.max").read_text().split()
        else:
            most = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text()
    except (OSError, ValueError):
        return
    if most not in ("max", "-1"):
        yield int(most) / int(period)
