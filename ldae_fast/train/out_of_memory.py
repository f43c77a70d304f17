"""What to say when a step does not fit in memory: how much was seen to fit, and what would help."""

import gc

import torch

from ..config import Config, SettingError, check, set_values
from ..data import Batch
from ..evaluate.finetune import Finetuner
from .capture import Captured
from .engine import Engine
from .folder import RunError

SAYS = (  # what torch, CUDA's libraries and C++ say in errors without a type of their own for it
    "allocate memory", "not enough memory", "CUDA error: out of memory",
    "CUDA driver error: out of memory", "[CUDA]: out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED", "std::bad_alloc",
)  # fmt: skip


class OutOfMemory(RunError):
    """A step that does not fit, with what would make it fit.

    by_a_setting   whether resuming takes that
    whole          whether every weight is of the step before it, so that they may be saved
    """

    by_a_setting = True
    whole = True


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says so, by its type or in its words."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, (RuntimeError, OSError)) and any(said in str(error) for said in SAYS)


def in_passes(config: Config, count: int) -> dict[str, int | str]:
    """The settings by which a step takes its batch in `count` passes; {} where they are refused."""
    settings = {"optimizer.accumulate": count}
    if config.speed.compile == "graph":  # which keeps the gradients of one pass
        settings["speed.compile"] = "blocks"
    try:
        check(set_values(config, settings))
    except SettingError:
        return {}
    return settings


def largest_that_fits(engine: Engine, batch: Batch, step: int) -> int:
    """The most images, of those that a pass may have, whose gradients fit; 0 where none do.

    Computes them and changes nothing.
    """
    config, whole = engine.config, len(batch.ids)
    counts = range(config.optimizer.accumulate + 1, whole + 1)
    for size in (whole // count for count in counts if in_passes(config, count)):
        release(engine)
        try:
            some = (x[:size].to(engine.device) for x in (batch.images, batch.ids, batch.flip))
            # Uncompiled: every size would make graphs of its own, more than torch.compile keeps.
            with torch.compiler.set_stance("force_eager"):
                engine.part(engine.working, *some, step, 1.0)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        else:
            release(engine)
            return size
    return 0


def release(engine: Engine | Finetuner) -> None:
    """Gives back what gradients, captured graphs and freed activations hold."""
    engine.optimizer.zero_grad(set_to_none=True)
    if isinstance(engine, Engine) and isinstance(engine.network, Captured):
        engine.network.release()
    gc.collect()
    if engine.device.type == "cuda":
        torch.cuda.empty_cache()


def advice(config: Config, step: int, size: int) -> OutOfMemory:
    """What to say of a step, numbered from 0, that failed where `size` images at a time
    were seen to fit."""
    batch, parts = config.optimizer.batch, config.optimizer.accumulate
    seen, ways = "no smaller part of the batch fits", []
    if size:
        seen = f"{size} were seen to fit"
        settings = in_passes(config, batch // size).items()
        words = " ".join(f"--{name} {value}" for name, value in settings)
        ways.append(f"{words} makes the same steps of them")
    if not config.speed.recompute:
        ways.append("--speed.recompute true keeps less of each")
    where = f"out of memory at step {step + 1:,} with {batch // parts} images at a time"
    problem = OutOfMemory(f"{where}; {seen}: {' and '.join(ways) or 'choose a smaller --size'}")
    problem.by_a_setting = bool(ways)
    return problem
