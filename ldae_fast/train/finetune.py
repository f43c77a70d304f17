"""A fine-tuning run from a pre-trained encoder to its test accuracy: `ldae finetune`."""

import itertools
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from ..config import (
    FINETUNE_NO_RESULT,
    FINETUNE_TAKES,
    Config,
    SettingError,
    check,
    set_values,
)
from ..data import Batch, DataError, Loader, Source, in_order, open_source
from ..data.augment import uniforms
from ..data.prefetch import prefetch
from ..data.randaugment import DRAWS, randaugment
from ..data.source import broken_images, held_out
from ..data.subset import Subset
from ..evaluate.finetune import Finetuner, top1
from ..noise import stream
from ..report import pictures
from ..report.metrics import MetricsLog, read_metrics
from ..report.progress import Progress
from ..threads import reading_threads
from ..vit import ViT, ViTConfig
from .checkpoint import load_newest, replace_durably, save_checkpoint
from .clock import Clock, total_steps
from .device import make_ready
from .engine import NotFinite, pick_precision
from .export import load_vit, plain_vit
from .folder import Launch, RunError, RunFolder, data_facts, read_launch, read_run, read_saved
from .loop import complete
from .out_of_memory import OutOfMemory, is_out_of_memory, release
from .probe import load_subject
from .schedule import learning_rate
from .signals import Interrupted, stop_signals
from .upload import upload

CHECKS = 10  # times that a run measures itself on the images held out, where it can afford to
SHARE = 0.1  # of the run's time that this may take
LARGE = 1024  # width from which an encoder counts as L
RESUMES = ("finetune.accumulate", *FINETUNE_NO_RESULT)  # settings that `ldae resume` can change


class FinetuneRun:
    """One fine-tuning run, new or resumed, in its folder.

    With finetune.hold_out every tenth training image is held out to measure on meanwhile; the test
    images are read once, at the end.
    """

    def __init__(self, config: Config, launch: Launch, folder: RunFolder, encoder: ViT):
        if not config.finetune.layer_decay:
            by_size = 0.65 if encoder.config.width >= LARGE else 0.85
            config = set_values(config, {"finetune.layer_decay": by_size})
        self.config, self.launch, self.folder = config, launch, folder
        device = make_ready(launch.device)
        size = encoder.config.image_size
        self.vit_config, f = encoder.config, config.finetune
        whole = open_source(launch.data, "train", size)
        held = held_out(len(whole)) & f.hold_out
        if len(whole.classes) < 2 or len(whole) < 1 + f.hold_out:
            raise DataError(
                f"--data {launch.data}: fine-tuning needs two classes or more, and two training "
                "images, one of them to measure on meanwhile; it has classes: "
                f"{len(whole.classes)}, training images: {len(whole)}"
            )
        self.train = Subset(whole, np.flatnonzero(~held))
        self.held = Subset(whole, np.flatnonzero(held))
        self.test = open_source(launch.data, "test", size)
        self.workers = reading_threads(config.speed.workers, device)
        self.augment_seed = stream(config.seed, "randaugment")
        self.loader = Loader(
            self.train, batch_size=f.batch, image_size=size, seed=stream(config.seed, "data"),
            augment="random-resized-crop", flip=f.flip, workers=0,
            bad_images=config.data.bad_images, cache_mb=0, min_crop=f.min_crop,
        )  # fmt: skip
        dtype = pick_precision("auto", device)
        self.autocast = lambda: torch.autocast(
            device.type, torch.bfloat16, enabled=dtype != torch.float32
        )
        classes = len(self.train.classes)
        self.tuner = Finetuner(encoder, classes, f, config.seed, self.autocast, device)
        self.clock = Clock(launch, total_steps(launch, len(self.train), f.batch))
        self.loss, self.lr = torch.zeros(()), 0.0
        self.checking_s = 0.0  # what measuring on the images held out took so far

    def batch(self, step: int) -> Batch:
        """Batch number `step`, augmented: a function of (seed, epoch, index) for each image."""
        made, size = self.loader.batch(step), self.config.finetune.batch
        magnitude = self.config.finetune.randaugment
        if not magnitude:
            return made
        pieces = self.loader.order.slices(step * size, (step + 1) * size)
        draws = np.concatenate([uniforms(self.augment_seed, *piece, DRAWS) for piece in pieces])
        images = [randaugment(x, u, magnitude) for x, u in zip(made.images.numpy(), draws)]
        return replace(made, images=torch.from_numpy(np.stack(images)))

    # --- Train ------------------------------------------------------------------------------------

    def write_config(self) -> None:
        """config.json: the settings that count here, how it was launched, the encoder's shape."""
        config = self.config
        settings = {
            "seed": config.seed,
            "data": {"bad_images": config.data.bad_images},
            "finetune": asdict(config.finetune),
            "speed": {"workers": config.speed.workers},
            "checkpoint": asdict(config.checkpoint),
            "report": {"log_every": config.report.log_every},
            "launch": vars(self.launch),
            "encoder": asdict(self.vit_config),
            "command": self.launch.command,
        }
        content = json.dumps(settings, indent=2).encode() + b"\n"
        replace_durably(self.folder.path / "config.json", content)

    def fit_model(self) -> None:
        """Steps until the budget is spent; saves at intervals, at the end, when asked to stop."""
        clock = self.clock
        clock.start = time.perf_counter()
        batches = prefetch(self.batch, itertools.count(clock.step), self.workers)
        batches = upload(batches, self.tuner.device)
        with (
            MetricsLog(self.folder.metrics, keep_until_step=clock.step) as log,
            Progress("fine-tune") as line,
            stop_signals() as stopped,
            closing(batches),
        ):
            while clock.progress < 1 and not stopped:
                self.step(batches)
                self.report(log, line)
            self.save()
            if stopped:
                raise Interrupted(
                    f"stopped at step {clock.step:,}; go on with `ldae resume {self.folder.path}`",
                    stopped[0],
                )

    def step(self, batches: Iterator[Batch]) -> None:
        clock, fits = self.clock, True
        try:
            batch = next(batches)
            clock.marked = clock.progress
            self.lr = learning_rate(self.config.finetune, clock.marked)
            self.loss = self.tuner.step(batch, clock.step, self.lr)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            fits = False  # once the error is gone, so are the tensors that its traceback holds
        if not fits:
            release(self.tuner)
            problem = self.advice()
            problem.whole = not self.tuner.updating
            raise problem
        clock.step += 1

    def advice(self) -> OutOfMemory:
        f, where = self.config.finetune, f"out of memory at step {self.clock.step + 1:,}"
        if f.accumulate == f.batch:
            problem = OutOfMemory(f"{where} with one image at a time: fine-tune a smaller encoder")
            problem.by_a_setting = False
            return problem
        more = next((n for n in range(2 * f.accumulate, f.batch) if f.batch % n == 0), f.batch)
        return OutOfMemory(
            f"{where} with {f.batch // f.accumulate} images at a time: --finetune.accumulate "
            f"{more} makes the same steps of {f.batch // more}"
        )

    def report(self, log: MetricsLog, line: Progress) -> None:
        """Shows, logs, measures and saves what is due after a step."""
        clock = self.clock
        if clock.passed(self.config.report.log_every, 200):
            record = {"step": clock.step, "loss": self.read_loss(), "lr": self.lr,
                      "images_per_s": self.images_per_s(), "seconds": clock.elapsed_s}  # fmt: skip
            log.append(record)
            done = f"{clock.step:,}/{clock.steps:,}" if clock.steps else f"{clock.step:,}"
            shown = {"step": done, "loss": record["loss"], "images/s": record["images_per_s"]}
            line.update(min(1.0, clock.progress), shown)
        due = clock.passed(0, CHECKS) and self.checking_s <= SHARE * clock.elapsed_s
        if due and len(self.held):
            self.check(log, line)
        if clock.passed(self.config.checkpoint.every, 10) and clock.progress < 1:
            self.save()

    def check(self, log: MetricsLog, line: Progress) -> None:
        start = time.perf_counter()
        found = self.measure(self.held)
        log.append({"step": self.clock.step, "held_out_top1": found["trained"],
                    "ema_held_out_top1": found["ema"]})  # fmt: skip
        line.note(f"step {self.clock.step:,}: held-out top-1 {100 * found['trained']:.1f} %")
        self.checking_s += time.perf_counter() - start

    def images_per_s(self) -> float:
        images = (self.clock.step - self.clock.first) * self.config.finetune.batch
        return images / max(1e-9, time.perf_counter() - self.clock.start)

    def read_loss(self) -> float:
        """The last step's loss. Raises NotFinite where a step was called off."""
        if not self.tuner.sound:
            raise NotFinite(
                f"by step {self.clock.step} a loss or a gradient was not finite; no weight was "
                "changed from there on. Lower --finetune.base_lr"
            )
        return float(self.loss)

    def save(self) -> None:
        self.read_loss()  # a step that was called off must not pass for one that was made
        state = {
            "step": self.clock.step,
            "elapsed_s": self.clock.elapsed_s,
            "data": data_facts(self.train.source),
        }
        save_checkpoint(
            self.folder.checkpoints, self.clock.step, self.tuner.state(),
            {"state.json": json.dumps(state).encode()}, self.config.checkpoint.keep,
        )  # fmt: skip

    def load(self) -> None:
        """Takes up the newest whole checkpoint."""
        path, tensors, files = load_newest(self.folder.checkpoints, set_aside=True)
        state = json.loads(files["state.json"])
        self.folder.check_data(self.launch.data, self.train.source, state)
        self.folder.check_fits(self.tuner.model, tensors["model"], path)
        self.tuner.load_state(tensors)
        self.clock.step = self.clock.first = state["step"]
        self.clock.before_s = state["elapsed_s"]
        print(self.folder.resuming(self.clock.step), flush=True)

    # --- Finish -----------------------------------------------------------------------------------

    def measure(self, source: Source) -> dict[str, float]:
        """Top-1 of the trained weights and of their average on central crops of a source."""
        batches = in_order(
            source, self.vit_config.image_size, batch_size=500, workers=self.workers,
            bad_images=self.config.data.bad_images,
        )  # fmt: skip
        return top1(self.tuner.models(), batches, self.autocast, self.tuner.device)

    def finish(self) -> dict:
        """Reads the test images, writes result.json and the curves; returns the result."""
        seconds, test = self.clock.elapsed_s, self.measure(self.test)
        held = self.measure(self.held) if len(self.held) else {"trained": None, "ema": None}
        result = {
            "data": self.launch.data,
            "note": self.train.note,
            "steps": self.clock.step,
            "images": self.clock.step * self.config.finetune.batch,
            "seconds": seconds,
            "finetune_top1": test["trained"],
            "ema_finetune_top1": test["ema"],
            "held_out_top1": held["trained"],
            "ema_held_out_top1": held["ema"],
            "train_images": len(self.train),
            "held_out_images": len(self.held),
            "test_images": len(self.test),
            "chance": 1 / len(self.train.classes),
            "bad_images": broken_images(self.train, self.held, self.test),
            "settings": asdict(self.config.finetune) | {"seed": self.config.seed},
            "command": self.launch.command,
        }
        self.folder.write_result(result)
        curves = self.folder.pictures / "curves.png"
        names = ("held_out_top1", "ema_held_out_top1")
        last = {"step": self.clock.step} | {name: result[name] for name in names}
        pictures.curves(curves, [*read_metrics(self.folder.metrics), last])
        return result


def finetune(
    encoder: Path, weights: str, launch: Launch, folder: RunFolder, overrides: dict[str, str]
) -> dict:
    """A new run that starts from the encoder in a run's folder, or in a file of `ldae export`."""
    for name in overrides:
        if not name.startswith("finetune.") and name not in FINETUNE_TAKES:
            raise SettingError(
                f"--{name} decides nothing in fine-tuning; it takes --finetune.*, "
                f"{', '.join(f'--{one}' for one in FINETUNE_TAKES)}"
            )
    config = check(set_values(Config(), overrides))
    is_run = encoder.is_dir()
    vit = plain_vit(load_subject(encoder, weights, {})) if is_run else load_vit(encoder)
    run = FinetuneRun(config, replace(launch, verb="finetune"), folder, vit)
    with folder.claim(for_new=True):
        try:
            run.save()  # the encoder: what it came from may be gone when this run is resumed
            run.write_config()
        except BaseException:  # so that the same command can be given again
            shutil.rmtree(folder.checkpoints, ignore_errors=True)
            raise
        return complete(run)


def resume(path: Path, overrides: dict[str, str]) -> dict:
    """Goes on with the fine-tuning run in `path` from its newest whole checkpoint."""
    settings = read_run(path)
    for name in overrides:
        if name not in RESUMES:
            raise SettingError(
                f"--{name} decides a run's results, so `ldae resume` cannot change it; it takes "
                f"{', '.join(f'--{one}' for one in RESUMES)}"
            )
    launch, folder = read_launch(path, settings, "finetune"), RunFolder(path)
    try:
        vit = ViT(ViTConfig(**settings.pop("encoder")))
    except (KeyError, TypeError) as error:
        raise RunError(f"{path / 'config.json'} is no fine-tuning run's: {error}") from error
    config = check(set_values(read_saved(path, settings), overrides))
    run = FinetuneRun(config, launch, folder, vit)
    with folder.claim():
        run.load()
        return complete(run)
