"""The whole evaluation of one encoder: linear probe, kNN and rank, with its baselines beside it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import Config
from ..data import Source, in_order
from ..objective import Objective
from ..threads import reading_threads
from ..tokenizers import Tokenizer, fit_tokenizer
from ..tokenizers.sample import sample, sample_size
from .features import Encode, FeatureSet, baseline_encoders, extract, select, trained_encoder
from .knn import knn_top1
from .linear import linear_probe
from .probe_cache import cached_linear_probe
from .spectrum import effective_rank, verdict

Show = Callable[[float, dict], None]  # share of the work, fields to show


@dataclass(frozen=True)
class Subject:
    """What evaluation needs of a run; models: name -> network (trained, ema, untrained).

    step: that its checkpoint was saved at; 0 for a run at work.
    """

    config: Config
    objective: Objective
    models: dict[str, torch.nn.Module]
    autocast: Callable
    device: torch.device
    step: int = 0

    @property
    def workers(self) -> int:
        """Threads that read ahead."""
        return reading_threads(self.config.speed.workers, self.device)

    def encoder(self, name: str) -> Encode:
        return trained_encoder(
            self.models[name], self.objective, self.config.evaluate, self.autocast
        )


def read(source: Source, subject: Subject, encoders: dict, views: int, show: Show) -> dict:
    """Features of the whole source under every encoder: `views` views of each image."""
    config, total, done = subject.config, views * len(source), 0
    size = 125 if subject.device.type == "cpu" else 500  # what a CPU's caches hold

    def batches():
        nonlocal done
        for view in range(views):
            for batch in in_order(
                source, config.data.image_size, batch_size=size, workers=subject.workers, view=view,
                seed=config.seed, bad_images=config.data.bad_images, min_crop=config.data.min_crop,
            ):  # fmt: skip
                yield batch
                done += len(batch.ids)
                show(done / total, {"features": done})

    return extract(encoders, batches(), subject.device)


def evaluate(
    subject: Subject, train: Source, test: Source, show: Show, baselines: bool = True
) -> dict:
    """Every figure of result.json that says how good the features are; accuracies are fractions,
    None of one class, where no answer is wrong.

    Learning rates are chosen on a tenth of the training images; the test set is read once.
    """
    config, classes = subject.config, len(train.classes)
    encoders = {name: subject.encoder(name) for name in subject.models}
    if classes == 1:
        return without_probe(read(test, subject, encoders, 1, show)["trained"].values, subject)
    plain_ones = {}
    if baselines:
        pca = pca_beside(subject, train, show)
        plain_ones = baseline_encoders(subject.objective.tokenizer, pca)
    encoders |= plain_ones
    fit = read(train, subject, encoders, config.evaluate.views, show)
    ask = read(test, subject, encoders, 1, show)
    linear = {}
    for name in encoders:
        probe = cached_linear_probe if name in plain_ones else linear_probe
        linear[name] = probe(
            fit[name], ask[name], classes, config.evaluate, config.seed,
            lambda share, name=name: show(share, {"probe": name}), subject.device,
        )  # fmt: skip
    plain = {name: first_view(features) for name, features in fit.items()}
    knn = {
        name: knn_top1(plain[name], ask[name], classes, config.evaluate.knn_k,
                       config.evaluate.knn_temperature, subject.device)
        for name in subject.models
    }  # fmt: skip
    return summary(subject, linear, knn, ask, 1 / classes)


def pca_beside(subject: Subject, train: Source, show: Show) -> Tokenizer:
    """Patch-wise PCA as a baseline: the run's own, or what its settings would fit of that kind."""
    config, own = subject.config, subject.objective.tokenizer
    if own.kind == "pca":
        return own
    t = config.tokenizer
    show(0.0, {"fit": "pca", "images": sample_size(config, train)})
    return fit_tokenizer(
        "pca", sample(config, train), patch=own.view.patch, d=min(t.d, own.values), scale=t.scale,
        count=t.patches, seed=config.seed,
    ).to(subject.device)  # fmt: skip


def without_probe(values: Tensor, subject: Subject) -> dict:
    rank = effective_rank(values.to(subject.device))
    words = verdict(rank, values.shape[1], 1.0, 1.0, 1.0, len(values))
    return {"linear_top1": None, "knn_top1": None, "effective_rank": rank, "verdict": words}


def first_view(features: FeatureSet) -> FeatureSet:
    return select(features, torch.arange(int(features.images.max()) + 1))


def summary(subject: Subject, linear: dict, knn: dict, ask: dict, chance: float) -> dict:
    """The evaluation as JSON: the trained weights first, their average and baselines beside."""
    values = ask["trained"].values
    rank = effective_rank(values.to(subject.device))
    top1 = linear["trained"].top1
    base = {n: r.top1 for n, r in linear.items() if n not in ("trained", "ema")}
    result = {
        "linear_top1": top1,
        "knn_top1": knn["trained"],
        "linear_lr": linear["trained"].lr,
        "linear_held_out": linear["trained"].held_out,
        "effective_rank": rank,
        "chance": chance,
        "baselines": base,
    }
    if "ema" in linear:
        result |= {"ema_linear_top1": linear["ema"].top1, "ema_knn_top1": knn["ema"]}
    if "untrained" in base:
        untrained = base["untrained"]
        result["verdict"] = verdict(rank, values.shape[1], top1, untrained, chance, len(values))
    return result
