"""A run's folder: where its files lie, made where no other run is, held against another process."""

import errno
import fcntl
import json
import os
import shutil
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from torch import Tensor, nn

from ..config import Config, SettingError, from_dict, parse, to_json
from ..data import Source
from .checkpoint import MANIFEST, list_checkpoints, replace_durably
from .taken import taken, verb_of

LOCK = "run.lock"
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class RunError(RuntimeError):
    """A folder that cannot be used as asked, as one sentence."""


@dataclass(frozen=True)
class Launch:
    """What a run was started with beside its settings; one budget is above zero, the others are 0.

    A tokenizer's may all be 0: its settings say how long it trains.
    """

    data: str
    device: Literal["cpu", "cuda"] = "cpu"
    impl: Literal["auto", "reference"] = "auto"
    steps: int = 0
    epochs: float = 0.0
    minutes: float = 0.0
    command: str = ""
    verb: str = "train"  # of `ldae`, which made the folder


@dataclass(frozen=True)
class RunFolder:
    """The files of a run under `path`."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"

    @property
    def profile(self) -> Path:
        return self.path / "profile"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def compile_cache(self) -> Path:
        return self.path / "compile_cache.bin"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint to go on from, whole or not."""
        return bool(list_checkpoints(self.checkpoints))

    def check_fresh(self) -> None:
        """RunError where a run without checkpoints was trained, so that it has much to lose."""
        if self.result.exists() or any(self.checkpoints.glob("damaged-*")):
            raise RunError(
                f"{self.path} was trained, but no whole checkpoint is left in it; train anew into "
                "another folder"
            )

    @contextmanager
    def claim(self, for_new: bool = False) -> Iterator[None]:
        """Holds the folder, made where there is none, against any other process.

        RunError where one works in it, or where it is for a new run and is not empty. What was made
        goes again where nothing was put into it.
        """
        new = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        busy = f"another process trains in {self.path}; wait for it to end, or stop it"
        with locked(self.path / LOCK, busy):
            try:
                if for_new:
                    new_folder(self.path)
                yield
            finally:
                if [p.name for p in self.path.iterdir()] == [LOCK]:
                    (self.path / LOCK).unlink()
                    if new:
                        self.path.rmdir()

    def write_config(self, config: Config, launch: Launch) -> None:
        settings = json.loads(to_json(config)) | {"launch": vars(launch)}
        settings["command"] = launch.command
        replace_durably(self.path / "config.json", json.dumps(settings, indent=2).encode() + b"\n")

    def discard(self) -> None:
        """Takes away what a run that has no checkpoint wrote."""
        tokenizer, config = self.path / "tokenizer.safetensors", self.path / "config.json"
        for path in (self.metrics, self.compile_cache, tokenizer, config):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.profile, ignore_errors=True)
        if self.checkpoints.is_dir() and not any(self.checkpoints.iterdir()):
            self.checkpoints.rmdir()

    def read_config(self) -> tuple[Config, Launch]:
        """Settings and launch of a pre-training run; RunError for any other folder."""
        settings = read_run(self.path)
        launch = read_launch(self.path, settings, "train")
        return read_saved(self.path, settings), launch

    def check_fits(self, model: nn.Module, tensors: dict[str, Tensor], checkpoint: Path) -> None:
        """RunError where a checkpoint's tensors are of another network than config.json's."""
        own = {name: tensor.shape for name, tensor in model.state_dict().items()}
        if own != {name: tensor.shape for name, tensor in tensors.items()}:
            raise RunError(
                f"{self.path / 'config.json'} describes another network than {checkpoint} holds; "
                "put its settings back as they were"
            )

    def check_data(self, data: str, source: Source, state: dict) -> None:
        """RunError where --data has changed since a checkpoint, whose state.json is `state`, so
        that an index may stand for another image. One of an older version does not say."""
        saved, found = state.get("data"), data_facts(source)
        if saved and saved != found:
            then, now = (f"{d['images']:,} (digest {d['digest']})" for d in (saved, found))
            raise RunError(
                f"--data {data} has changed since {self.path} was trained on it: expected training "
                f"images: {then}, found: {now}; put back what was added, removed or renamed, or "
                "train anew into another folder"
            )

    def resuming(self, step: int) -> str:
        """What to say of a run that is taken up at a step."""
        if self.result.exists():
            return f"{self.path} is finished, at step {step:,}: evaluating it again"
        return f"resuming {self.path} at step {step:,}"

    def write_result(self, result: dict) -> None:
        replace_durably(self.result, json.dumps(result, indent=2).encode() + b"\n")


def data_facts(source: Source) -> dict:
    """What a checkpoint says of the training images."""
    return {"images": len(source), "digest": source.digest}


def read_settings(path: Path) -> dict:
    """A config.json as a dict; RunError with the reason when it cannot be read."""
    try:
        settings = json.loads(path.read_text())
    except OSError as error:
        raise RunError(
            f"{path} cannot be read ({error.strerror}); name a run's folder, made by `ldae train`"
        ) from error
    except ValueError as error:
        raise RunError(f"{path} is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise RunError(f"{path} must hold a JSON object; got {type(settings).__name__}")
    return settings


def read_run(path: Path) -> dict:
    """The config.json of a run's folder; RunError where `path` is something else."""
    if (path / MANIFEST).exists():
        run = path.absolute().parents[1]
        raise RunError(f"{path} is a checkpoint; name its run's folder, {run}")
    return read_settings(path / "config.json")


def read_saved(path: Path, settings: dict) -> Config:
    """The settings of a run's config.json; RunError names it where they are wrong."""
    try:
        return from_dict(settings_alone(settings))
    except SettingError as error:
        raise RunError(f"{path / 'config.json'}: {error}") from error


def made_by(path: Path) -> str:
    """The verb of `ldae` that made a run's folder."""
    return verb_of(read_run(path))


def read_launch(path: Path, settings: dict, verb: str) -> Launch:
    """How the folder's run was launched; RunError where that was not by `ldae verb`."""
    kinds = typing.get_type_hints(Launch)
    try:
        saved = settings["launch"] | {"verb": verb_of(settings)}
        launch = Launch(**{n: parse(f"launch.{n}", kinds[n], value) for n, value in saved.items()})
    except (KeyError, TypeError, SettingError) as error:
        raise RunError(f"{path / 'config.json'} is not a run's config: {error}") from error
    if launch.verb != verb:
        raise RunError(
            f"{path} was made by `ldae {launch.verb}`; name a folder made by `ldae {verb}`"
        )
    budgets = launch.steps, launch.epochs, launch.minutes
    if verb != "tokenizer" and (max(budgets) <= 0 or sum(map(bool, budgets)) > 1):
        raise RunError(
            f"{path / 'config.json'}: one of launch.steps, launch.epochs and launch.minutes must "
            f"be above zero, the others 0; got {', '.join(f'{b:g}' for b in budgets)}"
        )
    return launch


@contextmanager
def locked(file: Path, busy: str) -> Iterator[IO]:
    """Yields `file`, locked until the context or the process ends; RunError(busy) where it is.

    A file system that knows no locks is trusted.
    """
    with open(file, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(busy) from None
        except OSError as problem:
            if problem.errno not in NO_LOCKS:
                raise
        if not file.exists() or not os.path.samestat(os.fstat(lock.fileno()), os.stat(file)):
            raise RunError(busy)  # whoever held it took it away after it was opened here
        yield lock


def settings_alone(settings: dict) -> dict:
    """A saved config without what only its own launch was about."""
    return {k: v for k, v in settings.items() if k not in ("launch", "command")}


def new_folder(path: Path) -> RunFolder:
    """The folder for a new run; RunError if anything is in its way."""
    if path.exists() and not path.is_dir():
        raise RunError(f"--out {path} is a file; name a folder that does not exist yet")
    if (path / "config.json").exists():
        raise RunError(f"--out {path} {taken(path)}")
    if path.is_dir() and any(p.name != LOCK for p in path.iterdir()):
        raise RunError(f"--out {path} already holds other files; name a new or empty folder")
    return RunFolder(path)
