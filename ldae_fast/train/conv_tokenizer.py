"""Trains the convolutional tokenizer: a reproducible loop of its own, before the run's."""

import json
import math
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from ..classifier import fit_classifier
from ..config import Config, SettingError
from ..data import Loader, Source
from ..noise import stream
from ..ops import ImageView, normal, patchify
from ..report.progress import Progress
from ..tokenizers import ConvTokenizer, channel_statistics
from ..tokenizers.conv_loss import ConvLoss
from ..tokenizers.conv_net import ConvAutoencoder
from ..tokenizers.conv_vae import join, measure
from ..tokenizers.perceptual import Stages, load_vgg16
from .folder import RunError

BETAS = (0.5, 0.9)  # of Adam, as in the family
LOGGED = 100  # times in a training
MEASURED = 2000  # images that the latents' statistics are of

Log = Callable[[dict], None]


def perceptual_network(config: Config, source: Source, device) -> tuple[Stages | None, str]:
    """What the perceptual term compares by, and how to name it; nothing where its weight is 0."""
    t = config.tokenizer
    if not t.perceptual:
        return None, ""
    if t.vgg:
        return load_vgg16(Path(t.vgg)).to(device), f"VGG16 from {Path(t.vgg).name}"
    if len(source.classes) < 2:
        raise SettingError(
            f"tokenizer.perceptual needs labels, and {source.name} has less than two classes; give "
            "a VGG16 by --tokenizer.vgg FILE, use labelled data or --tokenizer.perceptual 0"
        )
    with Progress("fit classifier") as line:
        network = fit_classifier(
            source, config.data.image_size, steps=t.classifier_steps, seed=config.seed,
            device=device, flip=config.data.flip, workers=config.speed.workers, show=line.update,
        )  # fmt: skip
    named = f"classifier trained with the labels of {source.name}, {t.classifier_steps:,} steps"
    return network.requires_grad_(False), named


def fit_conv_tokenizer(
    config: Config,
    source: Source,
    sample: Tensor,
    device: str = "cpu",
    minutes: float = 0.0,
    log: Log = lambda record: None,
) -> ConvTokenizer:
    """Trains on `source` for config.tokenizer.steps, or for some minutes where they are given.

    sample: uint8 images (N, H, W, C), for statistics. All that is drawn depends on the seed. Raises
    RunError where the loss is not finite.
    """
    t, side, seed = config.tokenizer, config.data.image_size, config.seed
    network, named = perceptual_network(config, source, device)
    view = ImageView(config.model.patch, *channel_statistics(sample))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, "conv tokenizer"))
        net = ConvAutoencoder(t.channels, t.d, config.model.patch).to(device)
        loss_of = ConvLoss(t, side, network, view.mean, view.std).to(device)
    optimizer = torch.optim.Adam([*net.parameters(), loss_of.log_variance], t.lr, BETAS)
    critic = loss_of.critic and torch.optim.Adam(loss_of.critic.parameters(), t.lr, BETAS)
    loader = Loader(
        source, batch_size=t.batch, image_size=side, seed=stream(seed, "tokenizer images"),
        flip=config.data.flip, workers=config.speed.workers, bad_images=config.data.bad_images,
        cache_mb=config.speed.cache_mb,
    )  # fmt: skip
    noise_key, start, step, done, marked = stream(seed, "posterior"), time.perf_counter(), 0, 0.0, 0
    with closing(loader.iterate()) as batches, Progress("fit tokenizer") as line:
        while done < 1:
            batch = next(batches)
            images, ids, flip = (x.to(device) for x in (batch.images, batch.ids, batch.flip))
            x = join(patchify(images, view, flip=flip), ImageView(view.patch))
            grid = (t.d // 4, 2 * side // view.patch, 2 * side // view.patch)
            noise = normal(noise_key, step, ids, math.prod(grid)).view(-1, *grid)
            adversarial = critic is not None and done >= t.adversarial_start
            rate = t.lr * 0.5 * (1 + math.cos(math.pi * done))
            loss, terms, back = loss_of(net, x, noise, adversarial)
            update(optimizer, loss, rate)
            if adversarial:
                terms["critic"] = loss_of.criticise(x, back)
                update(critic, terms["critic"], rate)
            step += 1
            spent = time.perf_counter() - start
            done = spent / (60 * minutes) if minutes else step / t.steps
            if int(LOGGED * done) > marked or done >= 1:
                marked = int(LOGGED * done)
                found = {"loss": loss.item()} | {n: v.item() for n, v in terms.items()}
                if not math.isfinite(found["loss"]):
                    raise RunError(
                        f"the tokenizer's loss is {found['loss']} at step {step:,}; lower "
                        f"--tokenizer.lr ({t.lr:g})"
                    )
                log({"step": step, **found, "lr": rate, "seconds": spent})
                line.update(min(done, 1.0), {"step": f"{step:,}", "l1": found["l1"]})
    about = {
        "data": source.name, "steps": step, "seconds": round(spent, 1), "perceptual": named,
        "settings": {k: v for k, v in vars(t).items() if k != "file"}, "seed": seed,
    }  # fmt: skip
    return measure(net, sample[:MEASURED], view, t.scale, json.loads(json.dumps(about)))


def update(optimizer: torch.optim.Optimizer, loss: Tensor, rate: float) -> None:
    optimizer.param_groups[0]["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
