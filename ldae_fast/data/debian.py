"""Files of Debian packages: of an installed one, else fetched into the cache without root."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .errors import DataError

NETWORK = ["-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=30"]
TIMEOUT_S = 600


def package_files(package: str, cache: Path) -> list[Path]:
    """The files of a Debian package, sorted: installed, or unpacked under cache/debian/.

    Raises DataError where the package is neither installed nor to be had.
    """
    kept = cache / "debian" / package
    files = installed_files(package) or unpacked_files(kept)
    if not files:
        fetch(package, kept)
        files = unpacked_files(kept)
    return files


def installed_files(package: str) -> list[Path]:
    if not shutil.which("dpkg-query"):
        return []
    listed = subprocess.run(["dpkg-query", "-L", package], capture_output=True, text=True)
    if listed.returncode:
        return []
    return sorted(path for line in listed.stdout.splitlines() if (path := Path(line)).is_file())


def unpacked_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def fetch(package: str, kept: Path) -> None:
    """Downloads and unpacks into a folder beside `kept`, then renames: `kept` is always whole."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{package}.", dir=kept.parent) as temporary:
            archive, whole = download(package, Path(temporary)), Path(temporary) / "whole"
            run(["dpkg-deb", "-x", str(archive), str(whole)], Path(temporary))
            if not kept.exists():  # another process may have been faster
                os.rename(whole, kept)
    except (OSError, subprocess.SubprocessError) as problem:
        if not unpacked_files(kept):
            raise DataError(unavailable(package, problem)) from problem


def download(package: str, folder: Path) -> Path:
    print(f"fetching Debian package {package} into {folder.parent}", file=sys.stderr)
    try:
        run(["apt-get", *NETWORK, "download", package], folder)
    except subprocess.CalledProcessError:  # often no package lists here: get them, privately
        lists, cache = folder / "lists", folder / "archives"
        (lists / "partial").mkdir(parents=True)
        (cache / "partial").mkdir(parents=True)
        private = ["-o", f"Dir::State::lists={lists}", "-o", f"Dir::Cache={cache}"]
        run(["apt-get", *NETWORK, *private, "update"], folder)
        run(["apt-get", *NETWORK, *private, "download", package], folder)
    return next(folder.glob("*.deb"))


def run(command: list[str], folder: Path) -> None:
    subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True, timeout=TIMEOUT_S
    )


def unavailable(package: str, problem: Exception) -> str:
    said = (getattr(problem, "stderr", "") or "").strip().splitlines()
    reason = said[-1] if said else str(problem)
    return (
        f"Debian package {package} is not installed and could not be fetched ({reason}): run "
        f"'apt install {package}', or try again with a network, or use other data, such as "
        "--data folder:PATH, parquet:PATH, wds:PATTERN or packed:PATH"
    )
