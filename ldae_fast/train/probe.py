"""Measures a run's encoder on any data set: `ldae probe`."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..config import SettingError, check, set_values
from ..data import DataError, open_source
from ..data.source import broken_images
from ..evaluate.knn import knn_top1
from ..evaluate.linear import linear_probe
from ..evaluate.protocol import Subject, first_view, read
from ..evaluate.spectrum import effective_rank
from ..report.progress import Progress
from ..tokenizers import Tokenizer, TokenizerError, load_tokenizer
from .checkpoint import load_newest
from .device import make_ready
from .engine import Engine
from .folder import RunError, RunFolder


def load_subject(path: Path, weights: str, overrides: dict) -> Subject:
    """The run's encoder with its own settings; only evaluate.* and speed.* may be overridden."""
    folder = RunFolder(path)
    config, launch = folder.read_config()
    for name in overrides:
        if name.partition(".")[0] not in ("evaluate", "speed", "data"):
            raise SettingError(f"--{name} belongs to training; a probe takes --evaluate.NAME VALUE")
    if config.optimizer.float8:  # the train step's alone, and of one kind of device
        overrides = overrides | {"optimizer.precision": "bfloat16"}
    config = check(set_values(config, overrides))
    if not folder.begun:
        raise RunError(f"{path} has no checkpoint yet; `ldae resume {path}` trains it")
    newest, tensors, tokenizer = newest_state(folder)
    device = make_ready(launch.device if torch.cuda.is_available() else "cpu")
    engine = Engine(config, tokenizer, device.type, launch.impl)
    folder.check_fits(engine.model, tensors["model"], newest)
    engine.model.load_state_dict(tensors["model" if weights == "trained" else "ema"])
    models = {"trained": engine.model}
    return Subject(config, engine.objective, models, engine.autocast, engine.device,
                   int(newest.name[5:]))  # fmt: skip


def newest_state(folder: RunFolder) -> tuple[Path, dict[str, dict[str, Tensor]], Tokenizer]:
    """Tensors and tokenizer of the newest whole checkpoint, which a trainer at work may take
    away while it is read."""
    while True:
        path, tensors, _ = load_newest(
            folder.checkpoints, lambda said: print(said, file=sys.stderr)
        )
        try:
            return path, tensors, load_tokenizer(path / "tokenizer.safetensors")
        except TokenizerError:
            if path.exists():
                raise


def probe(path: Path, spec: str, method: str, weights: str, overrides: dict) -> dict:
    """Top-1 (a fraction) of the run's encoder on `spec` by a linear probe or weighted kNN."""
    subject = load_subject(path, weights, overrides)
    config, size = subject.config, subject.config.data.image_size
    if method == "knn":
        config = replace(config, evaluate=replace(config.evaluate, views=1))
        subject = replace(subject, config=config)
    train, test = (open_source(spec, split, size) for split in ("train", "test"))
    encoders, classes = {"trained": subject.encoder("trained")}, len(train.classes)
    if classes == 1:
        raise DataError(
            f"--data {spec} has one class: nothing to tell apart, a probe says nothing; name "
            "another set"
        )
    with Progress("probe") as line:
        fit = read(train, subject, encoders, config.evaluate.views, line.update)["trained"]
        ask = read(test, subject, encoders, 1, line.update)["trained"]
        result = {"run": str(path), "data": spec, "note": train.note, "weights": weights,
                  "step": subject.step}  # fmt: skip
        if method == "knn":
            e = config.evaluate
            result["knn_top1"] = knn_top1(
                first_view(fit), ask, classes, e.knn_k, e.knn_temperature, subject.device
            )
        else:
            found = linear_probe(
                fit, ask, classes, config.evaluate, config.seed,
                lambda share: line.update(share, {"probe": "linear"}), subject.device,
            )  # fmt: skip
            result["linear_top1"], result["linear_lr"] = found.top1, found.lr
    result["bad_images"] = broken_images(train, test)
    result["effective_rank"] = effective_rank(ask.values.to(subject.device))
    return result
