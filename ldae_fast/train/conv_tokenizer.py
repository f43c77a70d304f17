"""Trains the convolutional tokenizer: a reproducible loop of its own, before the run's."""

import json
import math
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from ..classifier import fit_classifier
from ..config import Config, SettingError
from ..data import Batch, Loader, Source
from ..noise import stream
from ..ops import ImageView, normal, patchify
from ..report.progress import Progress
from ..threads import reading_threads
from ..tokenizers import ConvTokenizer, channel_statistics
from ..tokenizers.conv_loss import ConvLoss
from ..tokenizers.conv_net import ConvAutoencoder
from ..tokenizers.conv_vae import join, measure
from ..tokenizers.perceptual import Stages, load_vgg16
from .checkpoint import CheckpointError, load_newest, save_checkpoint
from .device import on_device
from .folder import RunError
from .signals import Interrupted, stop_signals

BETAS = (0.5, 0.9)  # of Adam, as in the family
LOGGED = 100  # times in a training
SAVED = 20  # times in a training that can be taken up again
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
            device=device, flip=config.data.flip,
            workers=reading_threads(config.speed.workers, torch.device(device)),
            bad_images=config.data.bad_images, show=line.update,
        )  # fmt: skip
    named = f"classifier trained with the labels of {source.name}, {t.classifier_steps:,} steps"
    return network.requires_grad_(False), named


class ConvTraining:
    """The network, its loss, the adversary and their optimizers, and the step that moves them."""

    def __init__(self, config: Config, view: ImageView, network: Stages | None, device):
        t, self.config, self.device = config.tokenizer, config, torch.device(device)
        self.view, self.noise_seed = view, stream(config.seed, "posterior")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(config.seed, "conv tokenizer"))
            self.net = on_device(ConvAutoencoder(t.channels, t.d, view.patch), self.device)
            loss = ConvLoss(t, config.data.image_size, network, view.mean, view.std)
            self.loss = on_device(loss, self.device)
        learnt = [*self.net.parameters(), self.loss.log_variance]
        self.optimizer = torch.optim.Adam(learnt, t.lr, BETAS)
        critic = self.loss.critic
        self.critic = critic and torch.optim.Adam(critic.parameters(), t.lr, BETAS)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Everything that a training taken up again needs, as named tensors."""
        state = {
            "net": self.net.state_dict(),
            "loss": {"log_variance": self.loss.log_variance},
            "optimizer": named_moments(self.optimizer),
        }
        if self.critic is not None:
            state["critic"] = self.loss.critic.state_dict()
            state["critic_optimizer"] = named_moments(self.critic)
        return state

    def load_state(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Takes back what `state` gave; a missing or ill-shaped tensor raises."""
        self.net.load_state_dict(state["net"])
        self.loss.log_variance.data.copy_(state["loss"]["log_variance"])
        load_moments(self.optimizer, state["optimizer"])
        if self.critic is not None:
            self.loss.critic.load_state_dict(state["critic"])
            load_moments(self.critic, state["critic_optimizer"])

    def step(self, batch: Batch, step: int, done: float) -> dict[str, Tensor]:
        """One update of each network, `done` of the training behind it; the loss and its terms."""
        t, view = self.config.tokenizer, self.view
        images, ids, flip = (x.to(self.device) for x in (batch.images, batch.ids, batch.flip))
        x = join(patchify(images, view, flip=flip), ImageView(view.patch))  # (B, 3, S, S)
        side = 2 * x.shape[-1] // view.patch
        noise = normal(self.noise_seed, step, ids, t.d // 4 * side**2).view(
            -1, t.d // 4, side, side
        )
        adversarial = self.critic is not None and done >= t.adversarial_start
        rate = t.lr * 0.5 * (1 + math.cos(math.pi * done))
        loss, terms, back = self.loss(self.net, x, noise, adversarial)
        update(self.optimizer, loss, rate)
        if adversarial:
            terms["critic"] = self.loss.criticise(x, back)
            update(self.critic, terms["critic"], rate)
        return {"loss": loss, **terms}


def update(optimizer: torch.optim.Optimizer, loss: Tensor, rate: float) -> None:
    optimizer.param_groups[0]["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def named_moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What torch's Adam keeps of parameter i as 'i.exp_avg' and so on."""
    kept = optimizer.state_dict()["state"].items()
    return {f"{i}.{name}": tensor for i, own in kept for name, tensor in own.items()}


def load_moments(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for place, tensor in tensors.items():
        i, name = place.split(".")
        state.setdefault(int(i), {})[name] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


class Unfinished:
    """Where a training that stops is kept until it is finished; a folder, or nowhere."""

    def __init__(self, folder: Path | None):
        self.folder = folder

    def load(self, training: ConvTraining) -> int:
        """Takes up what is kept, and returns the steps behind it; 0 where there is none."""
        if self.folder is None or not self.folder.exists():
            return 0
        try:
            _, tensors, files = load_newest(self.folder, set_aside=True)
        except (CheckpointError, OSError):  # none of it is whole, or none can be read
            return 0
        training.load_state(tensors)
        return json.loads(files["state.json"])["step"]

    def save(self, training: ConvTraining, step: int) -> bool:
        """Whether it could be kept."""
        if self.folder is None:
            return False
        state = {"state.json": json.dumps({"step": step}).encode()}
        try:
            save_checkpoint(self.folder, step, training.state(), state, keep=1)
        except OSError:
            return False
        return True

    def discard(self) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def fit_conv_tokenizer(
    config: Config,
    source: Source,
    sample: Tensor,
    device: str = "cpu",
    minutes: float = 0.0,
    log: Log = lambda record: None,
    folder: Path | None = None,
) -> ConvTokenizer:
    """Trains on `source` for config.tokenizer.steps, or for some minutes where they are given.

    sample: uint8 images (N, H, W, C), for statistics. All that is drawn depends on the seed.
    folder: where a training of so many steps is kept when it stops, and taken up again, to the same
    bits. Raises RunError where the loss is not finite, Interrupted where a signal asks to stop.
    """
    t = config.tokenizer
    network, named = perceptual_network(config, source, device)
    view = ImageView(config.model.patch, *channel_statistics(sample))
    training = ConvTraining(config, view, network, device)
    loader = Loader(
        source, batch_size=t.batch, image_size=config.data.image_size,
        seed=stream(config.seed, "tokenizer images"), flip=config.data.flip,
        workers=reading_threads(config.speed.workers, training.device),
        bad_images=config.data.bad_images, cache_mb=config.speed.cache_mb,
    )  # fmt: skip
    unfinished = Unfinished(None if minutes else folder)
    start, step = time.perf_counter(), unfinished.load(training)
    done = 0.0 if minutes else step / t.steps
    marked, saved = int(LOGGED * done), int(SAVED * done)
    with (
        closing(loader.iterate(step)) as batches,
        Progress("fit tokenizer") as line,
        stop_signals() as stopped,
    ):
        while done < 1:
            terms = training.step(next(batches), step, done)
            step += 1
            spent = time.perf_counter() - start
            done = spent / (60 * minutes) if minutes else step / t.steps
            if stopped:
                kept = unfinished.save(training, step)
                how = "the same command goes on from there" if kept else "nothing of it was kept"
                raise Interrupted(f"stopped at step {step:,} of the tokenizer; {how}", stopped[0])
            if int(LOGGED * done) > marked or done >= 1:
                marked = int(LOGGED * done)
                found = {name: value.item() for name, value in terms.items()}
                if not math.isfinite(found["loss"]):
                    raise RunError(
                        f"the tokenizer's loss is {found['loss']} at step {step:,}; lower "
                        f"--tokenizer.lr ({t.lr:g})"
                    )
                log({"step": step, **found, "seconds": spent})
                line.update(min(done, 1.0), {"step": f"{step:,}", "l1": found["l1"]})
            if int(SAVED * done) > saved and done < 1:
                saved = int(SAVED * done)
                unfinished.save(training, step)
    settings = {name: value for name, value in vars(t).items() if name != "file"}
    about = {"data": source.name, "steps": step, "perceptual": named, "seed": config.seed}
    about |= {"settings": settings}
    made = measure(training.net, sample[:MEASURED], view, t.scale, about)
    unfinished.discard()
    return made
