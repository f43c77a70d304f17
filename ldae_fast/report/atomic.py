"""Writes a file so that a reader sees the old one or the new one, never half of it."""

import os
from pathlib import Path


def replace_bytes(path: str | Path, content: bytes) -> Path:
    """Puts `content` at `path`, by way of a temporary file in the same folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_synced(temporary, content)
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_synced(path: Path, content: bytes) -> None:
    """A new file, on the disk when this returns. Any OSError names it, a full disk's too."""
    try:
        with open(path, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
