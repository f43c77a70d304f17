"""Checkpoints that are whole or not there: written aside, synced, renamed, verified on reading.

checkpoints/step-0001234/ holds safetensors files, JSON files and MANIFEST.json with the size and
SHA-256 of each. A folder without a manifest that matches is stepped over, and set aside under
another name by whoever goes on training from there.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..report.atomic import replace_bytes, write_synced

MANIFEST = "MANIFEST.json"
MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class CheckpointError(RuntimeError):
    """A checkpoint that is not there or not whole, as one sentence."""


def sync_folder(path: Path) -> None:
    """Makes the folder's own entries durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_durably(path: Path, content: bytes) -> None:
    """Writes the whole file or leaves the old one; on return the new one outlasts a power cut."""
    replace_bytes(path, content)
    sync_folder(path.parent)


def digest(content: bytes) -> dict:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: dict[str, dict[str, Tensor]],
    files: dict[str, bytes],
    keep: int,
) -> Path:
    """Writes step-N under `folder`, then removes all but the `keep` newest whole ones.

    tensors: file stem -> named tensors. files: name -> content. An OSError (no space left, read
    only) leaves every earlier checkpoint as it was and nothing half-written under a final name. A
    whole checkpoint of that step is left as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:07d}"
    if is_whole(final):
        return final
    aside = folder / f"{final.name}.tmp-{os.getpid()}"
    contents = dict(files)
    for stem, named in tensors.items():
        named = {n: t.detach().cpu().contiguous() for n, t in named.items()}
        contents[f"{stem}.safetensors"] = save(named)
    for left in folder.glob("step-*.tmp-*"):  # of a run that was killed while it saved
        shutil.rmtree(left, ignore_errors=True)
    try:
        aside.mkdir()
        for name, content in contents.items():
            write_synced(aside / name, content)
        manifest = {name: digest(content) for name, content in sorted(contents.items())}
        write_synced(aside / MANIFEST, json.dumps(manifest, indent=1).encode())
        sync_folder(aside)
        if final.exists():
            shutil.rmtree(final)
        os.rename(aside, final)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync_folder(folder)
    for old in list_checkpoints(folder)[keep:]:
        os.rename(old, aside)  # at once, so that nobody who reads takes half of it for damage
        shutil.rmtree(aside)
    return final


def is_whole(path: Path) -> bool:
    try:
        read_checkpoint(path)
    except CheckpointError:
        return False
    return True


def list_checkpoints(folder: Path) -> list[Path]:
    """step-N folders, newest first, not yet verified."""
    if not folder.exists():
        return []
    names = (p for p in folder.iterdir() if p.name.startswith("step-") and p.name[5:].isdigit())
    found = [p for p in names if p.is_dir()]
    return sorted(found, key=lambda p: int(p.name[5:]), reverse=True)


def read_part(file: Path) -> bytes:
    """A file of a checkpoint. CheckpointError where it is not there; any other OSError names it and
    is no word on whether the checkpoint is whole."""
    try:
        return file.read_bytes()
    except MISSING as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror})") from error
    except OSError as error:
        error.filename = error.filename or str(file)
        raise


def read_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, bytes]]:
    """Tensors by file stem and the other files, each checked against the manifest first."""
    try:
        manifest = json.loads(read_part(path / MANIFEST))
        entries = [(str(n), e["bytes"], e["sha256"]) for n, e in manifest.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / MANIFEST} cannot be read ({error})") from error
    tensors, files = {}, {}
    for name, size, sha256 in entries:
        if os.path.basename(name) != name:
            raise CheckpointError(
                f"{path / MANIFEST} names {name!r}, which is not a plain file name"
            )
        content = read_part(path / name)
        if digest(content) != {"bytes": size, "sha256": sha256}:
            raise CheckpointError(
                f"{path / name} is damaged: its size or digest is not the manifest's"
            )
        if name.endswith(".safetensors"):
            try:
                tensors[name.removesuffix(".safetensors")] = load(content)
            except SafetensorError as error:
                raise CheckpointError(f"{path / name} is no safetensors file ({error})") from error
        else:
            files[name] = content
    return tensors, files


def load_newest(folder: Path, warn=print, set_aside: bool = False):
    """(path, tensors, files) of the newest whole checkpoint; damaged ones are stepped over.

    set_aside: give those another name too, as only whoever holds the folder may. Raises
    CheckpointError when none is whole.
    """
    damaged: set[Path] = set()
    while True:
        # Again where there is none: a new one may come and the old one go while they are listed.
        found = list_checkpoints(folder) or list_checkpoints(folder)
        path = next((p for p in found if p not in damaged), None)
        if path is None:
            raise CheckpointError(
                f"no whole checkpoint under {folder}; train anew into another folder"
            )
        try:
            return path, *read_checkpoint(path)
        except CheckpointError as error:
            if not path.exists():  # a trainer took it away meanwhile, and has newer ones
                continue
            damaged.add(path)
            aside = path.with_name(f"damaged-{path.name}-{os.getpid()}")
            said = f"set aside as {aside.name}, " if set_aside else ""
            warn(f"{error}; {said}going back to the checkpoint before it")
            if set_aside:
                os.rename(path, aside)
