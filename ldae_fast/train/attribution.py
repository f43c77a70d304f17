"""Which part of a train step each event of torch's profiler belongs to, and how long each took."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch.autograd import DeviceType

from .parts import (
    ADALN,
    ATTENTION,
    CAPTURED,
    COPIES,
    ENDS,
    FUSED,
    GELU,
    LOSS,
    MASKS,
    NOISE,
    OPTIMIZER,
    REST,
    Product,
)

STEP, NOISE_RANGE, MASK_RANGE = "train step", "noise", "masking"
NETWORK_RANGE, LOSS_RANGE = "network", "loss, backward"
NODE = "autograd::engine::evaluate_function: "
MULTIPLY = {"aten::mm", "aten::addmm", "aten::mv", "aten::addmv", "aten::_scaled_mm"}
NO_WORK = {  # operators that only describe memory, or only call another
    f"aten::{name}"
    for name in (
        "linear", "matmul", "t", "transpose", "numpy_T", "mT", "view", "reshape", "_unsafe_view",
        "permute", "select", "slice", "narrow", "split", "chunk", "unbind", "expand", "unsqueeze",
        "squeeze", "flatten", "unflatten", "as_strided", "detach", "empty", "empty_like",
        "new_empty", "empty_strided", "resolve_conj", "resolve_neg",
    )
}  # fmt: skip
OPERATORS = {  # by what their names begin with; `ldae_triton::` counts as `ldae::`
    "ldae::adaln": ADALN, "aten::native_layer_norm": ADALN, "aten::layer_norm": ADALN,
    "ldae::bias_gelu": GELU, "aten::gelu": GELU,
    "ldae::attention": ATTENTION, "ldae::softmax": ATTENTION, "aten::bmm": ATTENTION,
    "aten::baddbmm": ATTENTION, "aten::_softmax": ATTENTION, "aten::softmax": ATTENTION,
    "aten::scaled_dot_product": ATTENTION, "aten::_scaled_dot_product": ATTENTION,
    "aten::_flash_attention": ATTENTION, "aten::_efficient_attention": ATTENTION,
    "xformers": ATTENTION, "flash_attn": ATTENTION,
    "ldae::patch_pca_noise": NOISE, "ldae::normal": NOISE,
    "ldae::denoise_loss": LOSS,
    "ldae::adamw_ema": OPTIMIZER, "aten::_foreach_norm": OPTIMIZER,
    "aten::to": COPIES, "aten::_to_copy": COPIES, "aten::copy_": COPIES, "aten::clone": COPIES,
    "aten::contiguous": COPIES, "aten::cat": COPIES, "aten::stack": COPIES,
    "ldae::quantise": COPIES, "ldae::float8": COPIES,
}  # fmt: skip
COMPILED = "Torch-Compiled Region", "CompiledFunction", "CompiledFxGraph", "## Call CompiledFx"
KERNELS = [  # on a GPU, where no operator says whose a kernel is: in a captured graph
    (re.compile(r"^triton_"), FUSED),
    (re.compile(r"^attention_|sdpa|fmha|flash"), ATTENTION),
    (re.compile(r"^adaln_"), ADALN),
    (re.compile(r"^gelu_"), GELU),
    (re.compile(r"^denoise_"), LOSS),
    (re.compile(r"^(noise|normal|philox)_"), NOISE),
    (re.compile(r"^adamw_"), OPTIMIZER),
    (re.compile(r"^float8_"), COPIES),
    (re.compile(r"gemm|gemv|cutlass|nvjet|cublas|splitk", re.IGNORECASE), CAPTURED),
]


@dataclass
class Spent:
    """Of all steps together."""

    seconds: float = 0.0
    calls: int = 0


@dataclass(frozen=True)
class Place:
    """Where in a step an event lies."""

    part: str = REST
    sealed: bool = False  # `part` holds for all operators inside
    backward: bool = False
    counted: bool = False  # inside an operator that was counted


class Attribution:
    """Adds up self time by part: on a CPU of the operators, on a GPU of the kernels they launch.

    A product is known by its shapes, any other operator by its name, also in all that it calls.
    What has no name belongs to the range around it, and in the backward pass to the part of the
    operator that made the node, which autograd's sequence numbers tell.
    """

    def __init__(self, products: list[Product], device: str):
        self.on_device = device != "cpu"
        self.labels = labels(products)
        self.forward = {key: self.labels[p.part] for p in products for key in p.forward()}
        self.backward = {key: self.labels[p.part] for p in products for key in p.backward()}
        self.made: dict[int, str] = {}  # sequence number of a forward operator -> its part
        self.parts: dict[str, Spent] = defaultdict(Spent)

    def add(self, events: Iterable, count: int) -> None:
        """events: a profiler's, in order, of which the first `count` steps are taken."""
        events = [e for e in events if e.device_type == DeviceType.CPU and not e.is_async]
        for step in [e for e in events if e.name == STEP][:count]:
            for child in step.cpu_children:
                self.visit(child, Place())
            if self.on_device:  # there the backward pass has a thread of its own
                for other in roots_beside(step, events):
                    self.visit(other, Place())

    def visit(self, event, outer: Place) -> None:
        place = self.place(event, outer)
        operator = "::" in event.name and not event.name.startswith((NODE, "torch::autograd"))
        named = place.sealed and not outer.sealed
        counts = operator and (named or not outer.counted) and event.name not in NO_WORK
        if not place.backward and event.sequence_nr >= 0:
            self.made[event.sequence_nr] = place.part
        if counts:
            self.parts[place.part].calls += 1
        self.spend(event, place)
        for child in event.cpu_children:
            self.visit(child, replace(place, counted=place.counted or counts))

    def place(self, event, outer: Place) -> Place:
        name = event.name.replace("ldae_triton::", "ldae::", 1)
        if (range_place := range_of(name)) is not None:
            return range_place
        if name.startswith(NODE):
            return Place(self.made.get(event.sequence_nr, REST), backward=True)
        if outer.sealed:
            return outer
        if name in MULTIPLY:
            table = self.backward if outer.backward else self.forward
            return replace(outer, part=table.get(shape_of(event), outer.part), sealed=True)
        if name.startswith(COMPILED):
            return replace(outer, part=FUSED)
        part = next((p for start, p in OPERATORS.items() if name.startswith(start)), None)
        return outer if part is None else replace(outer, part=part, sealed=True)

    def spend(self, event, place: Place) -> None:
        if self.on_device:
            for kernel in event.kernels:
                part = place.part if place.sealed else part_of_kernel(kernel.name, place.part)
                self.parts[part].seconds += 1e-6 * kernel.duration
        elif range_of(event.name) is None:
            self.parts[place.part].seconds += 1e-6 * event.self_cpu_time_total


def range_of(name: str) -> Place | None:
    """What a range of `Profile` or of torch's optimizers says about the operators in it."""
    if name.startswith("Optimizer."):
        return Place(OPTIMIZER, sealed=True)
    return {
        STEP: Place(),
        NOISE_RANGE: Place(NOISE, sealed=True),
        MASK_RANGE: Place(MASKS, sealed=True),
        NETWORK_RANGE: Place(ENDS),
        LOSS_RANGE: Place(LOSS, sealed=True),
    }.get(name)


def shape_of(event) -> tuple[int, int, int] | None:
    """(m, k, n) of a product of two matrices, or of a matrix and a vector."""
    shapes = [tuple(s) for s in event.input_shapes if s]
    if event.name in ("aten::addmm", "aten::addmv"):
        shapes = shapes[1:]
    first, second, *_ = *shapes, (), ()
    if len(first) != 2 or not second:
        return None
    return (*first, second[1] if len(second) == 2 else 1)


def roots_beside(step, events: list) -> list:
    """Events of other threads that began while the step ran."""
    start, end = step.time_range.start, step.time_range.end
    return [
        e for e in events
        if e.cpu_parent is None and e.thread != step.thread and start <= e.time_range.start < end
    ]  # fmt: skip


def part_of_kernel(name: str, otherwise: str) -> str:
    return next((part for pattern, part in KERNELS if pattern.search(name)), otherwise)


def labels(products: list[Product]) -> dict[str, str]:
    """Part -> its label: parts whose products have one shape cannot be told apart, and share one.

    >>> from ldae_fast.train.parts import FC1, QKV
    >>> labels([Product(QKV, 8, 4, 12, 1), Product(FC1, 8, 4, 12, 1)])
    {'qkv products': 'qkv products, fc1 products', 'fc1 products': 'qkv products, fc1 products'}
    """
    groups = {p.part: [p.part] for p in products}
    for kind in (Product.forward, Product.backward):
        owners = defaultdict(list)
        for p in products:
            for key in kind(p):
                owners[key].append(p.part)
        for first, *others in owners.values():
            for other in others:
                if groups[other] is not groups[first]:
                    groups[first] += groups[other]
                    groups.update(dict.fromkeys(groups[other], groups[first]))
    return {part: ", ".join(group) for part, group in groups.items()}
