"""A run's folder: where each file lies, made only where no other run is, opened again to resume."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from ..config import Config, from_dict, to_json
from .checkpoint import replace_durably


class RunError(RuntimeError):
    """A folder that cannot be used as asked, as one sentence."""


@dataclass(frozen=True)
class Launch:
    """What a run was started with beside its settings; exactly one budget is above zero."""

    data: str
    device: str = "cpu"
    impl: str = "auto"
    steps: int = 0
    epochs: float = 0.0
    minutes: float = 0.0
    command: str = ""


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

    def write_config(self, config: Config, launch: Launch) -> None:
        settings = json.loads(to_json(config)) | {"launch": vars(launch)}
        settings["command"] = launch.command
        self.path.mkdir(parents=True, exist_ok=True)
        replace_durably(self.path / "config.json", json.dumps(settings, indent=2).encode() + b"\n")

    def discard(self) -> None:
        """Takes away what a run that has no checkpoint wrote, and the folder if that was all."""
        tokenizer, config = self.path / "tokenizer.safetensors", self.path / "config.json"
        for path in (self.metrics, self.compile_cache, tokenizer, config):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.profile, ignore_errors=True)
        for path in (self.checkpoints, self.path):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()

    def read_config(self) -> tuple[Config, Launch]:
        settings = read_settings(self.path / "config.json")
        try:
            return from_dict(settings_alone(settings)), Launch(**settings["launch"])
        except (KeyError, TypeError) as error:
            raise RunError(f"{self.path / 'config.json'} is not a run's config: {error}") from error

    def write_result(self, result: dict) -> None:
        replace_durably(self.result, json.dumps(result, indent=2).encode() + b"\n")


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


def settings_alone(settings: dict) -> dict:
    """A saved config without what only its own launch was about."""
    return {k: v for k, v in settings.items() if k not in ("launch", "command")}


def new_folder(path: Path) -> RunFolder:
    """The folder for a new run; RunError if anything is in its way."""
    if path.exists() and not path.is_dir():
        raise RunError(f"--out {path} is a file; name a folder that does not exist yet")
    if (path / "config.json").exists():
        raise RunError(
            f"--out {path} already holds another run; name a new folder, or go on with "
            f"`ldae resume {path}`"
        )
    if path.is_dir() and any(path.iterdir()):
        raise RunError(f"--out {path} already holds other files; name a new or empty folder")
    return RunFolder(path)
