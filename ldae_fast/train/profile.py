"""Profiles a few steps of a run: a trace, and where their time went against the roofline."""

import os
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, record_function

from ..data import Loader
from ..masked_objective import MaskedObjective
from ..rates import copy_rate, gemm_rate
from ..report.atomic import replace_bytes
from ..report.profile import Part, StepProfile, profile_picture, profile_table
from .attribution import LOSS_RANGE, MASK_RANGE, NETWORK_RANGE, NOISE_RANGE, STEP, Attribution
from .engine import Engine
from .memory import prepare_memory, return_spare_memory
from .parts import CAPTURED, REST, Work, added, least_work, products, stacks

SKIPPED, STEPS = 10, 5  # steps before, and under, the profiler
WAITING, HOST, IDLE = "waiting for data", "host, in no operator", "device idle"
RANGES = {"guess": NOISE_RANGE, "predict": NETWORK_RANGE, "backward": LOSS_RANGE}


def window(steps: int) -> tuple[int, int]:
    """(first, count) of the profiled steps of a run of `steps`; 0 where nobody knows how many.

    >>> window(0), window(30), window(8), window(1)
    ((10, 5), (10, 5), (4, 4), (0, 1))
    """
    first = min(SKIPPED, max(steps - STEPS, steps // 2)) if steps else SKIPPED
    return first, min(STEPS, steps - first) if steps else STEPS


class Profile:
    """Runs each step of a run, some of them under torch.profiler, and then writes what it saw."""

    def __init__(
        self, engine: Engine, loader: Loader, folder: Path, steps: int, say: Callable[[str], None]
    ):
        """steps: of this run, or 0 where unknown. say: takes the table, line by line."""
        self.engine, self.loader, self.folder, self.say = engine, loader, folder, say
        self.first, self.count = window(steps)
        self.device = engine.device.type
        self.done = 0  # steps
        self.plain: list[tuple[float, float]] = []  # begin and end of each step before the profiler
        self.profiler: torch.profiler.profile | None = None
        self.closed = False
        self.step_s = self.wait_s = 0.0  # of the profiled steps together

    def step(self, take: Callable[[], None]) -> float:
        """Runs `take`, which waits for a batch and trains on it.

        Returns the seconds that went into profiling instead.
        """
        entered = time.perf_counter()
        if self.closed:
            take()
            return 0.0
        if self.done == 0:
            self.rates = copy_rate(self.device), gemm_rate(self.device, self.engine.dtype)
            if self.device == "cuda":
                torch.cuda.empty_cache()
        if self.done == max(0, self.first - 1):
            self.open()
        began = time.perf_counter()
        take() if self.profiler is None else self.watched(take)
        ended = time.perf_counter()
        if self.profiler is None:
            self.plain.append((began, ended))
        self.done += 1
        if self.done == self.first + self.count:
            self.close()
        return began - entered + time.perf_counter() - ended

    def open(self) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would write into the progress line
        activities = [ProfilerActivity.CPU]
        if self.device == "cuda":
            activities.append(ProfilerActivity.CUDA)
        else:
            prepare_memory(self.count + 1)  # its records stay between activations
        self.profiler = torch.profiler.profile(activities=activities, record_shapes=True)
        self.profiler.start()

    def watched(self, take: Callable[[], None]) -> None:
        """One step under the profiler; the first, where there is one to spare, only warms it up."""
        counted = self.done >= self.first
        self.synchronize()
        waited, began = self.loader.wait_s, time.perf_counter()
        with ranges(self.engine.objective), record_function(STEP if counted else "warm-up"):
            take()
            self.synchronize()
        if counted:
            self.step_s += time.perf_counter() - began
            self.wait_s += self.loader.wait_s - waited

    def synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def close(self) -> None:
        """Ends profiling and writes what was seen; further calls do nothing."""
        if self.closed:
            return
        self.closed, count = True, self.done - self.first
        if self.profiler is not None:
            self.profiler.stop()
        if count <= 0:
            self.say(f"nothing was profiled: the run ended before its step {self.first + 1}")
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.profiler.export_chrome_trace(str(self.folder / "trace.json.gz"))
        found = self.found(count)
        self.profiler = None
        if self.device == "cpu":
            return_spare_memory()
        table = profile_table(found)
        replace_bytes(self.folder / "table.txt", table.encode())
        profile_picture(self.folder / "step.png", found)
        for line in ["", *table.splitlines(), f"profile: {self.folder}", ""]:
            self.say(line)

    def found(self, count: int) -> StepProfile:
        """The mean of the `count` profiled steps."""
        attribution = Attribution(products(self.engine.config, self.engine.tokenizer), self.device)
        attribution.add(self.profiler.events(), count)
        step_s, wait_s = self.step_s / count, self.wait_s / count
        parts = self.parts(attribution, count)
        rest = step_s - wait_s - sum(part.seconds for part in parts)
        host = HOST if self.device == "cpu" else IDLE
        parts += [Part(WAITING, wait_s), Part(host, rest)]
        steps = f"steps {self.first + 1} to {self.first + count}"
        return StepProfile(self.title(), steps, parts, step_s, self.plain_s(), *self.rates)

    def title(self) -> str:
        """What was run, and on what."""
        config = self.engine.config
        blocks = " and ".join(
            f"{s.blocks} block{'s' * (s.blocks != 1)} of width {s.width}" for s in stacks(config)
        )
        threads = torch.get_num_threads()
        where = f"cpu, {threads} thread{'s' * (threads != 1)}"
        if self.device == "cuda":
            where = torch.cuda.get_device_name()
        return (
            f"{config.recipe}, {config.data.image_size} px, {blocks}, batch "
            f"{config.optimizer.batch}; {where}, {str(self.engine.dtype)[6:]}, "
            f"torch {torch.__version__}"
        )

    def parts(self, attribution: Attribution, count: int) -> list[Part]:
        """From the longest down, what is left over at the end; of one step."""
        work = self.work(attribution)
        rows = sorted(attribution.parts.items(), key=lambda row: (row[0] == REST, -row[1].seconds))
        return [
            Part(name, spent.seconds / count, spent.calls / count, *work.get(name, (None, None)))
            for name, spent in rows
        ]

    def work(self, attribution: Attribution) -> dict[str, Work]:
        """What each part needs at least, by the labels that it was seen under."""
        engine, seen, work = self.engine, attribution.parts, {}
        shapes = [p.shape for p in engine.model.parameters()]
        least = least_work(engine.config, engine.tokenizer, engine.dtype, shapes)
        for part, one in least.items():
            label = attribution.labels.get(part, part)
            if part in attribution.labels and label not in seen:
                label = CAPTURED
            work[label] = added(work.get(label, (0, 0)), one)
        return work

    def plain_s(self) -> float | None:
        """Seconds of a step before the profiler, the first two apart; None where there is none."""
        steps = self.plain[2:]
        seconds = [end - begin for begin, end in steps]
        if self.device == "cuda":  # the host runs ahead: only from step to step does it keep pace
            seconds = [later[0] - earlier[0] for earlier, later in pairwise(steps)]
        return statistics.median(seconds) if seconds else None


@contextmanager
def ranges(objective):
    """Marks the objective's stages for the profiler while it lasts, and only then."""
    masks = isinstance(objective, MaskedObjective)
    for method, name in (RANGES | {"guess": MASK_RANGE} if masks else RANGES).items():
        setattr(objective, method, ranged(getattr(objective, method), name))
    try:
        yield
    finally:
        for method in RANGES:
            delattr(objective, method)


def ranged(call: Callable, name: str) -> Callable:
    def inside(*arguments, **options):
        with record_function(name):
            return call(*arguments, **options)

    return inside
