"""What a recipe would take, known without training it: parameters, FLOP, memory, time.

The real engine makes one real step, forward, loss and backward, of tensors without content
(FakeTensorMode), so that any size can be counted on any machine. Memory is counted as storages come
and go in that step: eager, in bfloat16 unless a setting says otherwise, attention without its
T x T weights, which is how a GPU runs it. What an allocator, a workspace or torch.compile adds or
saves is not in it, nor is the memory that a convolutional tokenizer takes beside the network: a
linear one of its shapes stands in for it. Its work is counted.
"""

import contextlib
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from .config import Config, SettingError, check, set_values
from .data import Batch
from .ops import ImageView
from .rates import MEMORY, PEAKS
from .report.format import span
from .report.tables import aligned
from .tokenizers import ConvTokenizer, LinearTokenizer
from .tokenizers.perceptual import Vgg16
from .train.conv_tokenizer import ConvTraining
from .train.engine import Engine, flop_an_image

FLASH = "attention=sdpa-flash"  # what LDAE_IMPL says where it says nothing of its own
GIVEN = "this device"  # whose rate was given
GIB, DAY = 2**30, 24 * 60 * 60
CLASSES = 1000  # ImageNet's, where a network is told them and no data says how many
NOTE = (
    "Counted in one eager step of tensors without content, attention without its T x T weights. "
    "Nothing\nwas measured: --mfu is your guess, and what an allocator wastes is not in it."
)


class Held(TorchDispatchMode):
    """Bytes of the storages that were made under it: those alive now, and the most at once."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.seen: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for storage in storages((args, kwargs)):
            self.seen.add(storage)  # made before, or counted when it was
        made = func(*args, **(kwargs or {}))
        for storage in storages(made):
            if storage not in self.seen:
                self.seen.add(storage)
                self.add(storage)
        return made

    def add(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self.drop, size)

    def drop(self, size: int) -> None:
        self.now -= size


def storages(tree: object) -> list[torch.UntypedStorage]:
    return [x.untyped_storage() for x in tree_leaves(tree) if isinstance(x, Tensor)]


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Attention by flash, as `LDAE_IMPL` names implementations, unless the user names some."""
    old = os.environ.get("LDAE_IMPL")
    os.environ["LDAE_IMPL"] = old or FLASH
    try:
        yield
    finally:
        if old is None:
            del os.environ["LDAE_IMPL"]


def blank_view(config: Config) -> ImageView:
    return ImageView(config.model.patch, (0.5,) * 3, (0.25,) * 3)


def blank_tokenizer(config: Config) -> LinearTokenizer:
    """A linear tokenizer of the config's shapes, nothing fitted."""
    values = 3 * config.model.patch**2
    d = values if config.tokenizer.kind == "pixel" else config.tokenizer.d
    view = blank_view(config)
    return LinearTokenizer(
        torch.empty(values, values), torch.empty(values), torch.empty(d), torch.empty(values), view
    )


def blank_batch(images: int, side: int) -> Batch:
    pixels = torch.empty(images, side, side, 3, dtype=torch.uint8)
    flip = torch.zeros(images, dtype=torch.bool)
    return Batch(pixels, torch.zeros(images, dtype=torch.int64), torch.arange(images), flip)


def dry_run(config: Config) -> dict[str, int]:
    """Bytes of a run's tensors, and of one pass of its step with nothing computed.

    activations: alive when the prediction is made, so kept for the backward pass; at_most: the most
    that was alive at once, everything counted.
    """
    with FakeTensorMode(), as_on_a_gpu():
        engine = Engine(config, blank_tokenizer(config))
        states = engine.optimizer.state
        fixed = {
            "weights": size(states),
            "moments": size(own[k] for own in states.values() for k in ("exp_avg", "exp_avg_sq")),
            "ema": size(own["ema"] for own in states.values()),
            "copy": size(own["copy"] for own in states.values() if "copy" in own),
        }
        batch = blank_batch(images_a_pass(config), config.data.image_size)
        told = batch.labels if config.model.conditional else None
        with Held() as held:
            with engine.autocast():
                guess = engine.objective.guess(
                    engine.network, batch.images, batch.ids, batch.flip, 0, told
                )
            activations = held.now
            engine.objective.backward(guess, batch.images, batch.flip, 1.0)
        gradients = size(engine.optimizer.gradients())
    at_most = sum(fixed.values()) + held.most
    return fixed | {"gradients": gradients, "activations": activations, "at_most": at_most}


def tokenizer_work(config: Config) -> dict[str, int]:
    """What a convolutional tokenizer costs, {} for the others, which cost next to nothing.

    flop_to_encode: of an image, in each step of pre-training; training_flop: of its own training,
    whose perceptual term is counted with VGG16.
    """
    t, side = config.tokenizer, config.data.image_size
    if t.kind != ConvTokenizer.kind:
        return {}
    with FakeTensorMode():
        network = Vgg16().requires_grad_(False) if t.perceptual else None
        training = ConvTraining(config, blank_view(config), network, "cpu")
        with FlopCounterMode(display=False) as encoding, torch.no_grad():
            training.net.posterior(torch.empty(1, 3, side, side))
        at = {}
        for done in (0.0, 1.0):  # before the adversary, and with it
            with FlopCounterMode(display=False) as step:
                training.step(blank_batch(1, side), 0, done)
            at[done] = step.get_total_flops()
    alone = t.adversarial_start if t.adversarial else 1.0
    return {
        "parameters": sum(p.numel() for p in training.net.parameters()),
        "flop_to_encode": encoding.get_total_flops(),
        "steps": t.steps,
        "batch": t.batch,
        "training_flop": round(t.steps * t.batch * (alone * at[0.0] + (1 - alone) * at[1.0])),
    }


def size(tensors: Iterable[Tensor]) -> int:
    return sum(t.nbytes for t in tensors)


def images_a_pass(config: Config) -> int:
    return config.optimizer.batch // config.optimizer.accumulate


def planned(config: Config) -> Config:
    """The config as it is counted: eager, in bfloat16 where its precision is open or float8, which
    differs in some products alone; with ImageNet's classes where it is told some."""
    values = {"speed.compile": "off"}
    if config.model.conditional and not config.model.classes:
        values["model.classes"] = CLASSES
    if config.optimizer.precision == "auto" or config.optimizer.float8:
        values["optimizer.precision"] = "bfloat16"
    return check(set_values(config, values))


def pick_rates(gpu: str, tflops: float) -> dict[str, float]:
    """FLOP a second by name: the rate that was given, the named GPU's, or those of all known."""
    if tflops:
        return {GIVEN: tflops * 1e12}
    if not gpu:
        return PEAKS
    if gpu not in PEAKS:
        raise SettingError(
            f"--gpu must be one of {', '.join(PEAKS)}; got {gpu!r}: give --device-rate TFLOPS"
        )
    return {gpu: PEAKS[gpu]}


def make_plan(
    config: Config, rates: Mapping[str, float], mfu: float, epochs: float, images: int
) -> dict:
    """Everything that `ldae plan` prints; sizes in bytes, times in seconds."""
    if mfu > 1:
        raise SettingError(f"--mfu is a share of the device's peak, at most 1; got {mfu:g}")
    config = planned(config)
    model, side = config.model, config.data.image_size // config.model.patch
    flop = flop_an_image(config)
    held = dry_run(config)
    tokenizer = tokenizer_work(config)
    work = (flop + tokenizer.get("flop_to_encode", 0)) * epochs * images
    work += tokenizer.get("training_flop", 0)
    return {
        "recipe": config.recipe,
        "image_size": config.data.image_size,
        "tokens": side**2,
        "width": model.width,
        "encoder_blocks": model.depth,
        "decoder_blocks": model.decoder_depth,
        "batch": config.optimizer.batch,
        "images_a_pass": images_a_pass(config),
        "parameters": held["weights"] // 4,
        "flop_an_image": flop,
        "tokenizer": tokenizer,
        "bytes": held,
        "epochs": epochs,
        "images": images,
        "mfu": mfu,
        "fits": {n: held["at_most"] <= MEMORY[n] for n in rates if n in MEMORY},
        "seconds": {name: work / (rate * mfu) for name, rate in rates.items()},
        "peak_flop_a_second": dict(rates),
    }


def plan_text(plan: dict) -> str:
    """The plan as aligned text."""
    held, batch = plan["bytes"], plan["images_a_pass"]
    blocks = f"{plan['encoder_blocks']} + {plan['decoder_blocks']} blocks of {plan['width']:,}"
    head = [
        ("recipe", f"{plan['recipe']}, {plan['image_size']} pixels, {plan['tokens']:,} tokens"),
        ("network", f"{blocks}, {plan['parameters'] / 1e6:,.1f} M parameters"),
        ("training", f"{plan['flop_an_image'] / 1e9:,.1f} GFLOP an image, in matrix products"),
        *tokenizer_lines(plan["tokenizer"]),
    ]
    bytes_of = [
        ("memory", "GiB"),
        ("weights, float32", gib(held["weights"])),
        ("gradients", gib(held["gradients"])),
        ("both moments of AdamW", gib(held["moments"])),
        ("moving average", gib(held["ema"])),
        ("copy in low precision", gib(held["copy"])),
        (f"activations, {batch:,} images a pass", gib(held["activations"])),
        ("  of that an image", gib(held["activations"] / batch, 3)),
        ("most at once", gib(held["at_most"])),
    ]
    mfu = f"{100 * plan['mfu']:g} % of it"
    times = [
        (f"{plan['epochs']:g} epochs of {plan['images']:,} images", "peak", f"time at {mfu}", ""),
        *(
            (
                name if name == GIVEN else f"one {name}",
                f"{plan['peak_flop_a_second'][name] / 1e12:,.0f} TFLOP/s",
                days(s),
                fit_words(plan, name),
            )
            for name, s in plan["seconds"].items()
        ),
    ]
    parts = (aligned(head, "<<"), aligned(bytes_of, "<>"), aligned(times, "<>><"), [NOTE])
    return "\n\n".join("\n".join(lines) for lines in parts)


def fit_words(plan: Mapping, name: str) -> str:
    """Whether a pass fits into a GPU's memory, and what would make it."""
    if plan["fits"].get(name, True):
        return ""
    words = f"a pass does not fit its {MEMORY[name] / 1e9:.0f} GB"
    parts = smallest_split(plan, MEMORY[name])
    return f"{words}; --optimizer.accumulate {parts} does" if parts else words


def smallest_split(plan: Mapping, memory: float) -> int | None:
    """The fewest passes of a batch that each fit, where what a pass takes grows with its images."""
    held, batch = plan["bytes"], plan["batch"]
    fixed = sum(held[k] for k in ("weights", "gradients", "moments", "ema", "copy"))
    an_image = (held["at_most"] - fixed) / plan["images_a_pass"]
    splits = (n for n in range(1, batch + 1) if batch % n == 0)
    return next((n for n in splits if fixed + an_image * batch / n <= memory), None)


def tokenizer_lines(work: Mapping[str, int]) -> list[tuple[str, str]]:
    if not work:
        return []
    millions, encode = work["parameters"] / 1e6, work["flop_to_encode"] / 1e9
    own = (
        f"{work['steps']:,} steps of {work['batch']:,} images, {work['training_flop'] / 1e18:,.2f}"
    )
    return [
        ("tokenizer", f"{millions:,.1f} M parameters, {encode:,.1f} GFLOP to encode an image"),
        ("  trained once", f"{own} EFLOP"),
    ]


def gib(size: float, decimals: int = 2) -> str:
    return f"{size / GIB:,.{decimals}f}"


def days(seconds: float) -> str:
    return span(seconds) if seconds < 2 * DAY else f"{seconds / DAY:,.1f} days"
