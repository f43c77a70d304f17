"""The libraries that torch.compile has a C++ compiler build for a CPU.

torch's portable artifacts leave them out: without them a start from artifacts takes three quarters
of a cold one (bench/records/LOG.md), with them a third.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from torch._inductor.runtime.runtime_utils import cache_dir

from .checkpoint import replace_durably

# In the library by which torch tries, in another process, what instructions the processor has.
PROBE = b"__avx_chk_kernel"


def machine() -> str:
    """What such a library runs on: a digest of the processor's instructions and the system."""
    known = hashlib.sha256(os.uname().machine.encode())
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("flags", "Features")):
            known.update(line.encode())
            break
    known.update(Path("/etc/os-release").read_bytes())
    return known.hexdigest()


def gather() -> dict[str, bytes]:
    """By their places in torch's cache: those that this process has loaded, and the probe's."""
    root, maps = Path(cache_dir()).resolve(), Path("/proc/self/maps").read_text().splitlines()
    loaded = {line.split(maxsplit=5)[-1] for line in maps}
    found = {}
    for path in root.glob("*/*.so"):
        kernel = path.suffixes[0] == ".main"
        if str(path) in loaded or (not kernel and PROBE in path.read_bytes()):
            found[str(path.relative_to(root))] = path.read_bytes()
    return found


def put_back(libraries: Mapping[str, bytes]) -> None:
    """Writes into torch's cache what `gather` found and this one lacks."""
    for place, library in libraries.items():
        path = Path(cache_dir()) / place
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_durably(path, library)
