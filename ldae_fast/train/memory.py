"""What a process on a CPU asks of the system: to keep freed memory, to refuse what is not there."""

import contextlib
import ctypes
import functools
import resource
from pathlib import Path

SPARE = 0.03  # of the memory that is free, left to the rest of the system
GROUP = Path("/sys/fs/cgroup")  # of the container, where there is one
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = -1  # by mallopt's manual; the largest whole number would give back what is over 2 GiB


def keep_freed_memory() -> bool:
    """Tells glibc to reuse large blocks; False where the C library has no such switch.

    By default it hands every large block back to the system at once, so each step pays a page fault
    for every 4 KiB of its activations: a fifth of a small model's step (bench/records/LOG.md).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, NEVER))


def return_freed_memory() -> bool:
    """glibc's own ways again: what keep_freed_memory changed."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 65536) and mallopt(M_TRIM_THRESHOLD, 128 << 10))


class HeapFigures(ctypes.Structure):
    """glibc's struct mallinfo2, in bytes; fordblks is what was freed and kept."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd",
            "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def prepare_memory(times: int) -> bool:
    """Touches fresh memory, `times` what is free in the heap, of half the machine's at most.

    For a time in which small things that stay are made between large ones that go: they split the
    gaps that those leave, so that the heap grows on and on, and every page of it costs a fault.
    False where nobody tells what is free, or there is none to spare.
    """
    libc = ctypes.CDLL(None)
    try:
        libc.mallinfo2.restype = HeapFigures
        size = min(times * libc.mallinfo2().fordblks, free_memory() // 2)
    except (AttributeError, OSError, ValueError):
        return False
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    fresh = libc.malloc(ctypes.c_size_t(size))
    if fresh is None:
        return False
    ctypes.memset(fresh, 1, size)
    libc.free(fresh)
    return True


def return_spare_memory() -> None:
    """Hands all free memory back to the system, once."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@functools.cache
def first_limit() -> int:
    """The limit on its data that this process came with, in bytes."""
    return resource.getrlimit(resource.RLIMIT_DATA)[0]


def refuse_what_is_not_there() -> int | None:
    """Lets allocations fail where the machine's free memory ends now; returns the limit in bytes.

    Linux promises memory that it does not have, and kills the process that comes to use it: no
    sentence, no checkpoint. None where the system does not tell, or the process came with a lower
    limit. What other processes take later is not known here, so several side by side may still be
    killed.
    """
    try:
        limit = kilobytes(Path("/proc/self/status"), "VmData") + int((1 - SPARE) * free_memory())
        if first_limit() != resource.RLIM_INFINITY and first_limit() <= limit:
            return None
        set_limit(limit)
    except (OSError, ValueError):
        return None
    return limit


def promise_all_memory() -> None:
    """The limit that the process came with: what refuse_what_is_not_there changed."""
    set_limit(first_limit())


def set_limit(soft: int) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (soft, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def free_memory() -> int:
    """Bytes that this process may still use, by the machine and by the container it is in."""
    machine = Path("/proc/meminfo")
    free = kilobytes(machine, "MemAvailable") + kilobytes(machine, "SwapFree")
    try:
        most, used = (int((GROUP / f"memory.{n}").read_text()) for n in ("max", "current"))
        parts = dict(line.split() for line in (GROUP / "memory.stat").read_text().splitlines())
        # What it caches of files is given back on demand; what lies in /dev/shm is not.
        cached = int(parts["inactive_file"]) + int(parts["active_file"])
    except (OSError, ValueError, KeyError):  # no container, or one without a limit ("max")
        return free
    return min(free, most - used + cached)


def kilobytes(file: Path, name: str) -> int:
    """The bytes of a line such as 'MemAvailable:   123 kB'; ValueError where there is none."""
    for line in file.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise ValueError(f"{file} has no {name}")
