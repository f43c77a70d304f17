"""A run from its first image to its report: fit the tokenizer, train, evaluate, draw."""

import json
import signal
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..config import Config
from ..data import Loader, Source, open_source
from ..evaluate.gallery import draw
from ..evaluate.monitor import Monitor
from ..evaluate.protocol import Subject, evaluate
from ..noise import stream
from ..report import pictures
from ..report.metrics import MetricsLog, read_metrics
from ..report.page import write_page
from ..report.progress import Progress
from ..tokenizers import LinearTokenizer, fit_tokenizer, load_tokenizer
from .checkpoint import load_newest, replace_durably, save_checkpoint
from .engine import Engine, StepResult, build_model
from .folder import Launch, RunError, RunFolder
from .memory import keep_freed_memory

LATE = 8  # steps that the host may be ahead of the device
TOKENS_AN_IMAGE = 16  # of each image that the tokenizer is fitted on, so that many images count


class Interrupted(RuntimeError):
    """The run was asked to stop; its state is saved."""


@dataclass
class Clock:
    """How far a run is: in steps where those are its budget, else in minutes of training."""

    launch: Launch
    steps: int  # 0 where minutes decide
    step: int = 0
    first: int = 0  # step that this process started at
    before_s: float = 0.0  # trained before this process
    start: float = field(default_factory=time.perf_counter)
    marked: float = 0.0  # progress when the last step began

    @property
    def elapsed_s(self) -> float:
        return self.before_s + time.perf_counter() - self.start

    @property
    def progress(self) -> float:
        if self.steps:
            return self.step / self.steps
        return self.elapsed_s / (60 * self.launch.minutes)

    def passed(self, every: int, times: int) -> bool:
        """Whether the last step ended on a multiple of `every`, or, where that is 0, crossed one of
        `times` even marks of the run."""
        if every:
            return self.step % every == 0
        return int(times * self.progress) > int(times * self.marked)


def total_steps(launch: Launch, images: int, batch: int) -> int:
    """Steps of the run; 0 when minutes decide."""
    return launch.steps or max(1, round(launch.epochs * images / batch)) * (launch.epochs > 0)


@contextmanager
def stop_signals():
    """Yields a list that fills when SIGINT or SIGTERM comes, so that a step is never cut."""
    caught: list[int] = []
    old = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def note(number, frame):
        caught.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C ends at once

    for number in old:
        signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


class Run:
    """One pre-training run, new or resumed, in its folder."""

    def __init__(self, config: Config, launch: Launch, folder: RunFolder):
        self.config, self.launch, self.folder = config, launch, folder
        if launch.device == "cuda" and not torch.cuda.is_available():
            raise RunError("--device cuda: torch sees no CUDA device here; use --device cpu")
        if launch.device == "cpu":
            keep_freed_memory()
        size = config.data.image_size
        self.train: Source = open_source(launch.data, "train", size)
        self.test: Source = open_source(launch.data, "test", size)
        if len(self.train) == 0:
            raise RunError(f"--data {launch.data} has no training images")
        self.loader = Loader(
            self.train,
            batch_size=config.optimizer.batch,
            image_size=size,
            seed=stream(config.seed, "data"),
            augment=config.data.augment,
            flip=config.data.flip,
            workers=config.speed.workers,
            bad_images=config.data.bad_images,
            cache_mb=config.speed.cache_mb,
            min_crop=config.data.min_crop,
        )
        self.clock = Clock(launch, total_steps(launch, len(self.train), config.optimizer.batch))
        self.pending: deque[StepResult] = deque()  # steps whose numbers nobody has read yet
        self.last: StepResult | None = None  # the newest that was read

    # --- Start ------------------------------------------------------------------------------------

    def start(self) -> None:
        """A new run: fit the tokenizer, build the engine, write what describes the run."""
        tokenizer = self.fit()
        self.attach(tokenizer)
        self.folder.write_config(self.config, self.launch)
        replace_durably(self.folder.path / "tokenizer.safetensors", tokenizer.to_bytes())

    def resume(self) -> None:
        """Takes up the newest whole checkpoint."""
        path, tensors, files = load_newest(self.folder.checkpoints, warn=self.say)
        self.attach(load_tokenizer(path / "tokenizer.safetensors"))
        self.engine.load_state(tensors)
        state = json.loads(files["state.json"])
        self.clock.step = self.clock.first = state["step"]
        self.clock.before_s = state["elapsed_s"]
        self.say(f"resuming {self.folder.path} at step {self.clock.step:,}")

    def fit(self) -> LinearTokenizer:
        config, size = self.config.tokenizer, self.config.data.image_size
        images = min(len(self.train), -(-config.patches // TOKENS_AN_IMAGE))
        with Progress("fit tokenizer") as line:
            line.update(None, {"images": images, "patches": config.patches})
            sample = Loader(
                self.train, batch_size=images, image_size=size, flip=False, workers=0,
                seed=stream(self.config.seed, "tokenizer"), cache_mb=0,
                bad_images=self.config.data.bad_images,
            ).batch(0)  # fmt: skip
            tokenizer = fit_tokenizer(
                config.kind, sample.images, patch=self.config.model.patch, d=config.d,
                scale=config.scale, count=config.patches, seed=self.config.seed,
            )  # fmt: skip
        self.say(
            f"{config.kind} tokenizer: d={tokenizer.d} of {tokenizer.values} values a patch keep "
            f"{100 * tokenizer.explained:.1f} % of the variance"
        )
        return tokenizer

    def attach(self, tokenizer: LinearTokenizer) -> None:
        self.engine = Engine(self.config, tokenizer, self.launch.device, self.launch.impl)
        self.subject = Subject(
            self.config,
            self.engine.objective,
            {"trained": self.engine.model},
            self.engine.autocast,
            self.engine.device,
        )

    def say(self, text: str) -> None:
        print(text, flush=True)

    # --- Train ------------------------------------------------------------------------------------

    def fit_model(self) -> None:
        """Steps until the budget is spent; saves at intervals, at the end, when asked to stop."""
        clock = self.clock
        self.monitor = Monitor(self.subject, self.train, self.config.report.knn_images)
        batches = self.loader.iterate(clock.step)
        clock.start = time.perf_counter()
        with (
            MetricsLog(self.folder.metrics, keep_until_step=clock.step) as log,
            Progress("train") as line,
            stop_signals() as stopped,
        ):
            try:
                while clock.progress < 1 and not stopped:
                    self.step(next(batches), log, line)
            finally:
                batches.close()
            if stopped:
                self.save()
                raise Interrupted(
                    f"stopped at step {clock.step:,}; go on with `ldae resume {self.folder.path}`"
                )
        self.save()

    def step(self, batch, log: MetricsLog, line: Progress) -> None:
        clock, report = self.clock, self.config.report
        clock.marked = clock.progress
        self.pending.append(self.engine.step(batch, clock.step, clock.marked))
        clock.step += 1
        self.read(len(self.pending) - LATE)
        self.show(line)
        if clock.passed(report.log_every, 200):
            self.read()
            self.log(log)
        if clock.passed(report.knn_every, 10) and self.monitor.allowed(clock.elapsed_s):
            log.append({"step": clock.step, **self.monitor.probe()})
        if clock.passed(self.config.checkpoint.every, 10) and clock.progress < 1:
            self.save()

    def read(self, least: int | None = None) -> None:
        """Reads the numbers of steps that are there, and of `least` (all) that must be waited for.

        Raises NotFinite where a step was called off; the weights are those of the step before it.
        """
        least = len(self.pending) if least is None else least
        while self.pending and (least > 0 or self.pending[0].ready):
            self.last = self.pending.popleft()
            self.last.read()
            least -= 1

    def rates(self) -> tuple[float, float]:
        """Images a second and the share of time spent waiting for data, of this process."""
        seconds = max(1e-9, time.perf_counter() - self.clock.start)
        images = (self.clock.step - self.clock.first) * self.config.optimizer.batch
        return images / seconds, self.loader.wait_s / seconds

    def show(self, line: Progress) -> None:
        if self.last is None:
            return
        speed, wait = self.rates()
        done = f"{self.clock.step:,}"
        line.update(
            min(1.0, self.clock.progress),
            {
                "step": f"{done}/{self.clock.steps:,}" if self.clock.steps else done,
                "loss": self.last.loss,
                "images/s": speed,
                "data_wait": f"{100 * wait:.1f} %",
            },
        )

    def log(self, log: MetricsLog) -> None:
        speed, wait = self.rates()
        loss, norm = self.last.read()
        log.append(
            {
                "step": self.clock.step,
                "loss": loss,
                "lr": self.last.lr,
                "grad_norm": norm,
                "images_per_s": speed,
                "data_wait": wait,
                "seconds": self.clock.elapsed_s,
            }
        )

    def save(self) -> None:
        self.read()  # a step that was called off must not pass for one that was made
        config = (self.folder.path / "config.json").read_bytes()
        state = {"step": self.clock.step, "elapsed_s": self.clock.elapsed_s}
        files = {
            "config.json": config,
            "state.json": json.dumps(state).encode(),
            "tokenizer.safetensors": self.engine.tokenizer.to_bytes(),
        }
        save_checkpoint(
            self.folder.checkpoints, self.clock.step, self.engine.state(), files,
            self.config.checkpoint.keep,
        )  # fmt: skip

    # --- Finish -----------------------------------------------------------------------------------

    def finish(self) -> dict:
        """Evaluates, draws, writes result.json and report.html; returns the result."""
        seconds = self.clock.elapsed_s
        tokenizer = self.engine.tokenizer
        self.subject.models["ema"] = self.average()
        self.subject.models["untrained"] = build_model(self.config, tokenizer).to(
            self.engine.device
        )
        with Progress("evaluate") as line:

            def show(share: float, fields: dict) -> None:
                # The parts of the evaluation take unlike times, so no time left is shown.
                line.update(None, fields | {"done": f"{100 * share:.0f} %"})

            scores = evaluate(self.subject, self.train, self.test, show)
        result = {
            "recipe": self.config.recipe,
            "data": self.launch.data,
            "note": self.train.note,
            "steps": self.clock.step,
            "images": self.clock.step * self.config.optimizer.batch,
            "seconds": seconds,
            "final_loss": self.last.loss if self.last else None,
            "explained_variance": tokenizer.explained,
            "bad_images": sorted(set(self.loader.bad.values())),
            "command": self.launch.command,
            **scores,
        }
        self.folder.write_result(result)
        if broken := result["bad_images"]:
            self.say(f"{len(broken)} broken images were replaced, the first: {broken[0]}")
        self.draw(result)
        return result

    def average(self) -> torch.nn.Module:
        model = build_model(self.config, self.engine.tokenizer).to(self.engine.device)
        model.load_state_dict(self.engine.state()["ema"], strict=True)
        return model

    def draw(self, result: dict) -> None:
        folder = self.folder.pictures
        sample = Loader(
            self.test, batch_size=6, image_size=self.config.data.image_size, flip=False, workers=0,
            seed=stream(self.config.seed, "gallery"), cache_mb=0,
        ).batch(0)  # fmt: skip
        draw(self.subject, sample, folder)
        pictures.curves(folder / "curves.png", read_metrics(self.folder.metrics))
        pictures.bars(folder / "bars.png", result)
        write_page(self.folder.path)


def pretrain(config: Config, launch: Launch, folder: RunFolder) -> dict:
    """A new run from start to report. Returns what result.json holds."""
    run = Run(config, launch, folder)
    run.start()
    run.fit_model()
    return run.finish()


def resume(path: Path) -> dict:
    """Goes on with the run in `path` from its newest whole checkpoint, to its report."""
    folder = RunFolder(path)
    run = Run(*folder.read_config(), folder)
    run.resume()
    run.fit_model()
    return run.finish()
