"""Keeps freed memory in the process during training on a CPU."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = 2**31 - 1


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
