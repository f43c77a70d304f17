"""The compiled step of a run, kept in its folder, so that it starts warm on another machine too.

Such a cache is code. It is loaded only where its seal shows that the same user wrote it: by a
secret key in the user's own data folder, which goes along to another machine by hand. A run goes
on without it where files or the key cannot be had.
"""

import hmac
import io
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from zipfile import BadZipFile, ZipFile

import torch

from . import compiled_libraries
from .checkpoint import replace_durably

SEAL = 32  # bytes in front of the artifacts: their HMAC-SHA256
TROUBLE = (OSError, RuntimeError, BadZipFile)  # of files, and of a user without a home


def key_file() -> Path:
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "ldae_fast" / "compile_cache.key"


def key() -> bytes:
    """The user's secret, made when it is first asked for, and anew where it is cut short.

    It is written aside: an empty one, which a killed process would leave, is known to everybody.
    """
    path = key_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        if len(found := path.read_bytes()) == SEAL:
            return found
        path.unlink()
    with NamedTemporaryFile(dir=path.parent) as aside:  # that its user alone can read
        aside.write(secrets.token_bytes(SEAL))
        aside.flush()
        with suppress(FileExistsError):  # where another process was first
            os.link(aside.name, path)
    return path.read_bytes()


def seal(artifacts: bytes) -> bytes:
    return hmac.digest(key(), artifacts, "sha256")


def pack(artifacts: bytes, libraries: Mapping[str, bytes]) -> bytes:
    """One archive of both, which says for what machine the libraries are."""
    packed, own = io.BytesIO(), compiled_libraries.machine()
    with ZipFile(packed, "w") as archive:
        archive.writestr("artifacts", artifacts)
        for place, library in libraries.items():
            archive.writestr(f"{own}/{place}", library)
    return packed.getvalue()


def unpack(packed: bytes) -> tuple[bytes, dict[str, bytes]]:
    """The artifacts, and the libraries that are for this machine."""
    own = compiled_libraries.machine() + "/"
    with ZipFile(io.BytesIO(packed)) as archive:
        places = [name for name in archive.namelist() if name.startswith(own)]
        return archive.read("artifacts"), {n.removeprefix(own): archive.read(n) for n in places}


def save(path: Path) -> str:
    """Writes what torch.compile has made in this process, if anything.

    Returns why it did not, '' where nothing is wrong.
    """
    try:
        made = torch.compiler.save_cache_artifacts()
        if made is not None:
            packed = pack(made[0], compiled_libraries.gather())
            replace_durably(path, seal(packed) + packed)
    except TROUBLE as problem:
        return f"{path} cannot be written ({problem}), so `ldae resume` will compile the step anew"
    return ""


def load(path: Path) -> str:
    """Gives torch.compile what `save` wrote. Returns why it did not, '' where nothing is wrong."""
    anew = "so the step is compiled anew"
    try:
        if not path.exists():
            return ""
        stored = path.read_bytes()
        if not hmac.compare_digest(stored[:SEAL], seal(stored[SEAL:])):
            return f"{path} is damaged or not of this user ({key_file()}), {anew}"
        artifacts, libraries = unpack(stored[SEAL:])
        compiled_libraries.put_back(libraries)
        loaded = torch.compiler.load_cache_artifacts(artifacts)
    except TROUBLE as problem:
        return f"{path} cannot be read ({problem}), {anew}"
    return "" if loaded else f"{path} is of another torch, {anew}"
