"""Linear probes of features that were probed before, found again by content.

Raw pixels are wide, and the same for every run on a data set: their probe would take most of a
small run's evaluation, each time with the same outcome.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from ..config import EvaluateConfig
from ..data import cache_folder
from ..report.atomic import replace_bytes
from .features import FeatureSet
from .linear import MULTIPLES, LinearResult, linear_probe

FORMAT = 1  # of a probe's outcome: a change to the probe makes old files stale


def cached_linear_probe(
    train: FeatureSet,
    test: FeatureSet,
    classes: int,
    config: EvaluateConfig,
    seed: int,
    tick: Callable[[float], None],
    device: torch.device,
) -> LinearResult:
    """`linear_probe`, or what it gave for the very same features, labels and settings."""
    path = kept_at(train, test, classes, config, seed, device)
    found = read_result(path)
    if found is None:
        found = linear_probe(train, test, classes, config, seed, tick, device)
        with contextlib.suppress(OSError):  # then a later run takes its time again
            replace_bytes(path, json.dumps(asdict(found)).encode())
    return found


def kept_at(
    train: FeatureSet,
    test: FeatureSet,
    classes: int,
    config: EvaluateConfig,
    seed: int,
    device: torch.device,
) -> Path:
    settings = [FORMAT, device.type, classes, config.epochs, config.batch, config.base_lr, seed]
    settings += MULTIPLES
    digest = hashlib.sha256(json.dumps(settings).encode())
    for features in (train, test):
        for tensor in (features.values, features.labels, features.images):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy())
    return cache_folder(None) / "probes" / f"{digest.hexdigest()[:32]}.json"


def read_result(path: Path) -> LinearResult | None:
    """None where there is no whole file."""
    try:
        kept = json.loads(path.read_bytes())
        held_out = {float(lr): float(score) for lr, score in kept["held_out"].items()}
        return LinearResult(float(kept["top1"]), float(kept["lr"]), held_out)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
