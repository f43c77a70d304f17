"""A run from its first image to its report: fit the tokenizer, train, evaluate, draw."""

import json
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, nullcontext, suppress
from pathlib import Path

import torch

from ..config import NO_RESULT, Config, SettingError, check, decides_results, set_values
from ..data import Batch, Loader, Source, open_source
from ..data.source import broken_images, unread_classes
from ..evaluate.gallery import draw
from ..evaluate.monitor import Monitor
from ..evaluate.protocol import Subject, evaluate
from ..noise import stream
from ..rates import peak
from ..report import pictures
from ..report.metrics import MetricsLog, read_metrics
from ..report.page import write_page
from ..report.progress import Progress
from ..threads import reading_threads
from ..tokenizers import ConvTokenizer, Tokenizer, load_tokenizer
from . import compile_cache
from .checkpoint import load_newest, replace_durably, save_checkpoint
from .classes import with_classes
from .clock import Clock, total_steps
from .device import make_ready
from .engine import Engine, StepResult, build_model, flop_an_image, pick_precision
from .folder import Launch, RunError, RunFolder, data_facts
from .out_of_memory import OutOfMemory, advice, is_out_of_memory, largest_that_fits, release
from .profile import Profile
from .signals import Interrupted, stop_signals
from .tokenizer import find_tokenizer
from .upload import upload

SETTLED = 10  # steps after which nothing should be compiled any more
WAITING = 0.03  # share of the time, waiting for data, that is worth a word
LATE = 8  # steps that the host may be ahead of the device


class Run:
    """One pre-training run, new or resumed, in its folder."""

    def __init__(self, config: Config, launch: Launch, folder: RunFolder):
        self.config, self.launch, self.folder = config, launch, folder
        device = make_ready(launch.device)
        pick_precision(config.optimizer.precision, device)  # or refuses
        size = config.data.image_size
        self.train: Source = open_source(launch.data, "train", size)
        self.test: Source = open_source(launch.data, "test", size)
        if len(self.train) == 0:
            raise RunError(f"--data {launch.data} has no training images")
        self.config = config = with_classes(config, self.train)
        self.loader = Loader(
            self.train,
            batch_size=config.optimizer.batch,
            image_size=size,
            seed=stream(config.seed, "data"),
            augment=config.data.augment,
            flip=config.data.flip,
            workers=reading_threads(config.speed.workers, device),
            bad_images=config.data.bad_images,
            cache_mb=config.speed.cache_mb,
            min_crop=config.data.min_crop,
        )
        self.clock = Clock(launch, total_steps(launch, len(self.train), config.optimizer.batch))
        self.pending: deque[StepResult] = deque()  # steps whose numbers nobody has read yet
        self.last: StepResult | None = None  # the newest that was read
        self.graphs = self.recompiles = 0
        self.first_step_s = 0.0  # from the first batch asked for to the first step's end
        self.shown: tuple[float, float] | None = None  # rates, as last logged
        self.looked: tuple[int, float, float] | None = None  # where note_waiting was last
        self.waited = False  # whether steps waited for data when note_waiting last looked
        self.waits = False  # whether it was said that steps wait for data
        self.profiled = False  # whether a few steps are to be profiled

    # --- Start ------------------------------------------------------------------------------------

    def start(self) -> None:
        """A new run: find the tokenizer, build the engine, write what describes the run."""
        tokenizer = find_tokenizer(self.config, self.train, self.launch.device, self.say)
        self.attach(tokenizer)
        self.folder.write_config(self.config, self.launch)
        replace_durably(self.folder.path / "tokenizer.safetensors", tokenizer.to_bytes())

    def resume(self) -> None:
        """Takes up the newest whole checkpoint; begins where there was none yet."""
        if not self.folder.begun:
            self.folder.check_fresh()
            self.say(f"{self.folder.path} has no checkpoint yet: beginning at step 0")
            return self.start()
        path, tensors, files = load_newest(self.folder.checkpoints, self.say, set_aside=True)
        state = json.loads(files["state.json"])
        self.folder.check_data(self.launch.data, self.train, state)
        self.attach(load_tokenizer(path / "tokenizer.safetensors"))
        if self.engine.compiles and (problem := compile_cache.load(self.folder.compile_cache)):
            self.say(problem)
        self.folder.check_fits(self.engine.model, tensors["model"], path)
        self.engine.load_state(tensors)
        self.clock.step = self.clock.first = state["step"]
        self.clock.before_s = state["elapsed_s"]
        self.say(self.folder.resuming(self.clock.step))

    def attach(self, tokenizer: Tokenizer) -> None:
        self.engine = Engine(self.config, tokenizer, self.launch.device, self.launch.impl)
        self.subject = Subject(
            self.config,
            self.engine.objective,
            {"trained": self.engine.model},
            self.engine.autocast,
            self.engine.device,
        )

    def say(self, text: str) -> None:
        with suppress(OSError):  # nobody reads on, as after `| head`: no reason to end a run
            print(text, flush=True)

    # --- Train ------------------------------------------------------------------------------------

    def fit_model(self) -> None:
        """Steps until the budget is spent; saves at intervals, at the end, when asked to stop."""
        clock = self.clock
        self.monitor = Monitor(self.subject, self.train, self.config.report.knn_images)
        batches = upload(self.loader.iterate(clock.step), self.engine.device)
        clock.start = time.perf_counter()
        self.begin_stretch()
        with (
            MetricsLog(self.folder.metrics, keep_until_step=clock.step) as log,
            Progress("train") as line,
            stop_signals() as stopped,
            closing(batches),
            self.profile(line) as profile,
        ):
            while clock.progress < 1 and not stopped:
                self.advance(batches, profile)
                self.report(log, line)
            if stopped:
                self.save()
                raise Interrupted(
                    f"stopped at step {clock.step:,}; go on with `ldae resume {self.folder.path}`",
                    stopped[0],
                )
        self.save()

    def profile(self, line: Progress):
        """A context that gives a Profile, or None where no step is to be profiled."""
        if not self.profiled:
            return nullcontext()
        steps, folder = self.clock.steps, self.folder.profile
        return closing(Profile(self.engine, self.loader, folder, steps, line.note))

    def advance(self, batches: Iterator[Batch], profile: Profile | None) -> None:
        """One step. What profiling takes beside it is no time of the run."""
        if profile:
            self.clock.start += profile.step(lambda: self.step(batches))
        else:
            self.step(batches)

    def step(self, batches: Iterator[Batch]) -> None:
        clock, batch, fits = self.clock, None, True
        try:
            batch = next(batches)
            clock.marked = clock.progress
            self.pending.append(self.engine.step(batch, clock.step, clock.marked))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            fits = False  # once the error is gone, so are the tensors that its traceback holds
        if not fits:
            batch = batch or self.loader.batch(clock.step)  # which did not reach the device
            size = largest_that_fits(self.engine, batch, clock.step)
            problem = advice(self.config, clock.step, size)
            problem.whole = not self.engine.updating
            release(self.engine)
            raise problem
        clock.step += 1

    def report(self, log: MetricsLog, line: Progress) -> None:
        """Watches, reads, shows, logs, probes and saves what is due after a step."""
        clock, report = self.clock, self.config.report
        self.watch(line)
        self.read(len(self.pending) - LATE)
        self.show(line)
        if clock.passed(report.log_every, 200):
            self.read()
            self.log(log)
            self.note_waiting(line)
        if clock.passed(report.knn_every, 10) and self.monitor.allowed(clock.elapsed_s):
            self.read()
            log.append({"step": clock.step, **self.monitor.probe()})
            self.begin_stretch()
        if clock.passed(self.config.checkpoint.every, 10) and clock.progress < 1:
            self.save()
            self.begin_stretch()

    def watch(self, line: Progress) -> None:
        """Keeps what torch.compile has made, and says so when it makes more in mid-run."""
        steps, graphs = self.clock.step - self.clock.first, self.engine.graphs
        if steps == 1:
            self.read()
            self.first_step_s = time.perf_counter() - self.clock.start
        if steps == SETTLED and graphs and (said := compile_cache.save(self.folder.compile_cache)):
            line.note(said)
        if steps > SETTLED and graphs > self.graphs:
            self.recompiles += 1
            line.note(
                f"step {self.clock.step:,}: torch.compile made another graph, which took time"
            )
        self.graphs = graphs

    def read(self, least: int | None = None) -> None:
        """Reads the numbers of steps that are there, and of `least` (all) that must be waited for.

        Raises NotFinite where a step was called off; the weights are those of the step before it.
        """
        least = len(self.pending) if least is None else least
        while self.pending and (least > 0 or self.pending[0].ready):
            self.last = self.pending.popleft()
            self.last.read()
            least -= 1

    def begin_stretch(self) -> None:
        """From here on count the steps of the next rates: what was done beside them does not."""
        self.stretch = self.mark()

    def mark(self) -> tuple[int, float, float]:
        """(steps made, the time, seconds waited for data) by now."""
        return self.clock.step, time.perf_counter(), self.loader.wait_s

    def rates(self, since: tuple[int, float, float]) -> tuple[float, float]:
        """Images a second and the share of the time spent waiting for data, since a mark."""
        step, began, waited = since
        seconds = max(1e-9, time.perf_counter() - began)
        images = (self.clock.step - step) * self.config.optimizer.batch
        return images / seconds, (self.loader.wait_s - waited) / seconds

    def show(self, line: Progress) -> None:
        if self.last is None:
            return
        speed, wait = self.shown or self.rates(self.stretch)
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
        speed, wait = self.shown = self.rates(self.stretch)
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
                **self.utilisation(speed),
            }
        )
        self.begin_stretch()

    def note_waiting(self, line: Progress) -> None:
        """Says, once, that steps wait for data, by those since it was last looked at.

        The first are left out, in which the reading threads have only begun. Twice in a row it
        must be so: once may be a blip.
        """
        before, step = self.looked, self.clock.step
        if self.waits or step < (before[0] if before else self.clock.first) + SETTLED:
            return
        share = self.rates(before)[1] if before else 0.0
        self.looked = self.mark()
        self.waits = self.waited and share > WAITING
        self.waited = share > WAITING
        if self.waits:
            line.note(
                f"step {step:,}: training waits for data {100 * share:.0f} % of the time; what "
                f"may help: more reading threads (--speed.workers, now {self.loader.workers}), "
                "images that are decoded once (`ldae pack`)"
            )

    def utilisation(self, images_per_s: float) -> dict[str, float]:
        """The share of the device's peak that goes into the model's products, where it is known."""
        if self.engine.device.type != "cuda":
            return {}
        most = peak(torch.cuda.get_device_name(self.engine.device))
        return {"mfu": images_per_s * flop_an_image(self.config) / most} if most else {}

    def save(self) -> None:
        self.read()  # a step that was called off must not pass for one that was made
        config = (self.folder.path / "config.json").read_bytes()
        state = {
            "step": self.clock.step,
            "elapsed_s": self.clock.elapsed_s,
            "data": data_facts(self.train),
        }
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
            "first_step_s": self.first_step_s,
            "recompiles": self.recompiles,
            "final_loss": self.last.loss if self.last else None,
            "explained_variance": tokenizer.explained,
            **named_perceptual(tokenizer),
            "bad_images": broken_images(self.train, self.test),
            "command": self.launch.command,
            **scores,
        }
        self.folder.write_result(result)
        if broken := result["bad_images"]:
            of = len(self.train) + len(self.test)
            self.say(
                f"{len(broken):,} of {of:,} images are broken and were replaced, the first: "
                f"{broken[0]}"
            )
        if lost := unread_classes(self.train):
            self.say(f"no training image of these classes can be read: {', '.join(lost)}")
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
        if result["linear_top1"] is not None:
            pictures.bars(folder / "bars.png", result)
        write_page(self.folder.path)


def named_perceptual(tokenizer: Tokenizer) -> dict[str, str]:
    """What network the tokenizer's perceptual term compared by, where it had one."""
    named = tokenizer.about["perceptual"] if isinstance(tokenizer, ConvTokenizer) else ""
    return {"perceptual": named} if named else {}


def pretrain(config: Config, launch: Launch, folder: RunFolder, profiled: bool = False) -> dict:
    """A new run from start to report. Returns what result.json holds.

    profiled: whether a few steps run under the profiler.
    """
    run = Run(config, launch, folder)
    run.profiled = profiled
    with folder.claim(for_new=True):
        run.start()
        return complete(run)


def resume(path: Path, overrides: dict[str, str] | None = None) -> dict:
    """Goes on with the run in `path` from its newest whole checkpoint, to its report.

    overrides: settings by dotted name, of those that do not change the results.
    """
    folder = RunFolder(path)
    config, launch = folder.read_config()
    for name in overrides or {}:
        if decides_results(name):
            raise SettingError(
                f"--{name} decides a run's results, so `ldae resume` cannot change it; it takes "
                f"{', '.join(f'--{group}.*' for group in NO_RESULT)} and --optimizer.accumulate"
            )
    run = Run(check(set_values(config, overrides or {})), launch, folder)
    with folder.claim():
        run.resume()
        return complete(run)


def complete(run: Run) -> dict:
    """Trains to the end and reports. Where a step does not fit in memory, those before it are
    saved; a run that never fitted and has no checkpoint leaves nothing behind."""
    try:
        run.fit_model()
    except OutOfMemory as problem:
        path, step = run.folder.path, run.clock.step
        trained = step > run.clock.first
        if trained and problem.whole:
            run.save()
        if not trained and not run.folder.begun:
            run.folder.discard()
            raise OutOfMemory(f"{problem}; nothing is left in {path}, start again") from problem
        if problem.by_a_setting:
            raise OutOfMemory(f"{problem}; go on with `ldae resume {path}` and that") from problem
        if trained and problem.whole:
            raise OutOfMemory(
                f"{problem}; step {step:,} is saved, and `ldae resume {path}` goes on where more "
                "memory is free"
            ) from problem
        raise
    return run.finish()
