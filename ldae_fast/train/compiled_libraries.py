"""The libraries that torch.compile has a C++ compiler build for a CPU.

torch's portable artifacts leave them out: without them a start from artifacts takes two thirds of a
cold one, with them a quarter (bench/records/LOG.md). They are taken where they can be had, and are
missing without a word where not: torch then builds its own.
"""

import ctypes
import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch._inductor.runtime.runtime_utils import cache_dir

from ..report.atomic import replace_bytes

# In the library by which torch tries, in another process, what instructions the processor has.
PROBE = b"__avx_chk_kernel"


def machine() -> str:
    """What such a library is for: a digest of the processor's instructions, system and torch."""
    known = hashlib.sha256(f"{os.uname().machine} {torch.__version__}".encode())
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_bytes().splitlines():
            if line.startswith((b"flags", b"Features")):
                known.update(line)
                break
    with suppress(OSError):
        known.update(Path("/etc/os-release").read_bytes())
    return known.hexdigest()


def gather() -> dict[str, bytes]:
    """By their places in torch's cache: those that this process has loaded, and the probe's."""
    found = {}
    with suppress(OSError):
        root, maps = Path(cache_dir()).resolve(), os.fsdecode(Path("/proc/self/maps").read_bytes())
        loaded = {line.split(maxsplit=5)[-1] for line in maps.splitlines()}
        for path in root.glob("*/*.so"):
            kernel = path.name.endswith(".main.so")
            if str(path) in loaded or (not kernel and PROBE in path.read_bytes()):
                found[str(path.relative_to(root))] = path.read_bytes()
    return found


def put_back(libraries: Mapping[str, bytes]) -> None:
    """Writes into torch's cache what `gather` found and this one lacks, if it loads."""
    for place, library in libraries.items():
        with suppress(OSError):
            path = Path(cache_dir()) / place
            if path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_bytes(path, library)
            try:
                ctypes.CDLL(str(path))
            except OSError:  # torch would end there, in every run to come
                path.unlink()
