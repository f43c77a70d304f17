"""The train step as a ladder: one technique a rung, on top of all before it.

python bench/ladder.py [--size small] [--image-size 64] [--batch 16] [--seconds 120]
                       [--precision float32] [--json F]

Every rung has an engine of its own and trains on the same batches; each round runs one step of all
of them in turns, so that a slow moment of the machine meets all. --apart holds one engine at a time
instead, where all together do not fit (large models on a GPU). Below the ladder stand the same
model written plainly (bench/plain.py), eager and compiled, and transformers' masked autoencoder in
its shape (bench/masked.py) where that is installed. images/s are of the median step; the loss is
that after as many steps on every rung, and must stay together. % of GEMM: the model's products
(backward = 2 x forward, 1 multiply-add = 2 FLOP) at the rate of a large one in this run; it says
nothing of ViT-MAE. The rung of float8 products is for a GPU alone; its loss has float8's rounding.
"""

import argparse
import gc
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field

import device_kernels
import interleave
import masked
import plain
import torch
from torch import Tensor

from ldae_fast.data import Batch
from ldae_fast.rates import copy_rate, gemm_rate, peak
from ldae_fast.recipes import build_config
from ldae_fast.report.progress import Progress
from ldae_fast.tokenizers import fit_tokenizer
from ldae_fast.train.engine import Engine, flop_an_image, pick_precision
from ldae_fast.train.memory import keep_freed_memory, return_freed_memory

NATIVE = ["attention", "layernorm_modulate", "gate_residual_layernorm_modulate", "mlp_gelu",
          "normal", "patch_pca_noise", "denoise_loss", "adamw_ema"]  # fmt: skip


@dataclass
class Rung:
    """Settings of the engine, and what its step runs under."""

    name: str
    settings: dict = field(default_factory=dict)
    reference: list[str] = field(default_factory=list)  # ops held to their definitions
    keep: bool = False  # freed memory in the process

    @contextmanager
    def surroundings(self):
        os.environ["LDAE_IMPL"] = ",".join(f"{op}=reference" for op in self.reference)
        keep_freed_memory() if self.keep else return_freed_memory()
        try:
            yield
        finally:
            os.environ["LDAE_IMPL"] = ""


def ladder(device: str, precision: str = "bfloat16") -> list[Rung]:
    """Rungs in order, each with all that the one before it has.

    precision: of the products; float32 leaves out the rungs that are bfloat16's.
    """
    definition = {"optimizer.precision": "float32", "speed.fold": False,
                  "speed.weight_copy": False, "speed.compile": "off"}  # fmt: skip
    steps = [
        ("bfloat16 products", {"optimizer.precision": "bfloat16"}, []),
        ("inverse PCA folded into the embedding", {"speed.fold": True}, []),
        ("attention", {}, ["attention"]),
        ("adaLN ops", {}, ["layernorm_modulate", "gate_residual_layernorm_modulate"]),
        ("bias + GELU", {}, ["mlp_gelu"]),
        ("noise op", {}, ["normal", "patch_pca_noise"]),
        ("loss in one pass", {}, ["denoise_loss"]),
        ("AdamW + average in one pass", {}, ["adamw_ema"]),
        ("low-precision weights kept by the optimizer", {"speed.weight_copy": True}, []),
    ]
    rungs = [Rung("definition, float32", definition, NATIVE)]
    if precision == "float32":
        steps = steps[1:-1]
    for name, settings, fast in steps:
        last = rungs[-1]
        left = [op for op in last.reference if op not in fast]
        rungs.append(Rung(name, last.settings | settings, left))
    if device == "cpu":
        rungs.append(Rung("freed memory kept", rungs[-1].settings, [], keep=True))
    compiled = rungs[-1].settings | {"speed.compile": "blocks"}
    rungs.append(Rung("torch.compile, a graph for all blocks", compiled, [], True))
    return rungs


def own_precision(device: str) -> str:
    """The one that `ldae train` takes there: a CPU may emulate bfloat16, a hundred times slower."""
    return str(pick_precision("auto", torch.device(device))).removeprefix("torch.")


def beside(device: str, precision: str) -> list[Rung]:
    """Switches that are not for everyone, each on the ladder's last rung."""
    last = ladder(device, precision)[-1].settings
    switches = {"torch.compile, one graph": {"speed.compile": "on"},
                "cheap activations made again": {"speed.recompute": True}}  # fmt: skip
    if device == "cuda":
        switches |= {"step captured in a graph": {"speed.compile": "graph"},
                     "as where nothing is said": {"speed.compile": "auto"},
                     "float8 products": {"optimizer.precision": "float8"}}  # fmt: skip
    return [Rung(name, last | own, [], True) for name, own in switches.items()]


def compiled_definition(precision: str) -> Rung:
    """The definition as torch users would speed it up."""
    settings = ladder("cpu")[precision == "bfloat16"].settings | {"speed.compile": "on"}
    return Rung(f"definition, {precision}, torch.compile", settings, NATIVE)


def smooth_images(count: int, side: int) -> Tensor:
    """Images with the spectrum of photographs, roughly: noise at growing scales, uint8 NHWC."""
    g = torch.Generator().manual_seed(0)
    total, size = torch.zeros(count, 3, side, side), 2
    while size <= side:
        noise = torch.randn(count, 3, size, size, generator=g)
        total += torch.nn.functional.interpolate(noise, side, mode="bilinear") / size
        size *= 2
    low, high = total.amin((1, 2, 3), True), total.amax((1, 2, 3), True)
    return ((total - low) / (high - low) * 255).permute(0, 2, 3, 1).to(torch.uint8).contiguous()


@dataclass(eq=False)  # a row is itself, whatever it holds
class Contender:
    """One row of the table: `make` gives a step to call with its number, which returns the loss.

    On a GPU that loss may be read only when the device has finished.
    """

    name: str
    make: Callable[[], Callable[[int], Tensor]]
    step: Callable[[int], Tensor] | None = None
    first_s: float = 0.0
    peak_gib: float = 0.0
    samples: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # of every step
    kernels: str = ""  # of a GPU, which take most
    problem: str = ""  # why there are no samples


def contenders(args: argparse.Namespace) -> list[Contender]:
    base = {"optimizer.batch": args.batch, "optimizer.warmup": 0.0}
    config = build_config("ldae", args.image_size, args.size, base)
    images = smooth_images(max(64, 2 * args.batch), args.image_size)
    tokenizer = fit_tokenizer("pca", images, patch=config.model.patch, d=config.tokenizer.d,
                              scale=config.tokenizer.scale, count=20_000, seed=0)  # fmt: skip
    ids = torch.arange(len(images)).view(2, -1)[:, : args.batch]
    batches = [Batch(images[i], torch.zeros_like(i), i, i % 2 == 0) for i in ids]
    # On the device, as the loader's side stream leaves them there before a step asks.
    batches = [Batch(*(x.to(args.device) for x in vars(b).values())) for b in batches]

    def of(rung: Rung) -> Contender:
        def make():
            with rung.surroundings():
                settings = {name: str(value).lower() for name, value in rung.settings.items()}
                config = build_config("ldae", args.image_size, args.size, base | settings)
                engine = Engine(config, tokenizer, args.device)

            def step(number: int) -> Tensor:
                with rung.surroundings():
                    return engine.step(batches[number % 2], number, 0.5).numbers[0]

            return step

        return Contender(rung.name, make)

    dtype = getattr(torch, args.precision)

    def plainly(compiled: str) -> Callable:
        return lambda: plain.step(config, tokenizer, batches, args.device, dtype, compiled)

    def masking(share: float, compiled: bool) -> Callable:
        return lambda: masked.step(config, batches, args.device, dtype, compiled, share)

    rows = [*map(of, ladder(args.device, args.precision)), of(compiled_definition(args.precision))]
    endings = {"off": "", "blocks": ", torch.compile by blocks", "on": ", torch.compile"}
    if args.device == "cuda":
        endings["graph"] = ", torch.compile in CUDA graphs"
    for compiled, end in endings.items():
        rows.append(Contender(f"plain model, {args.precision}{end}", plainly(compiled)))
        if compiled in ("off", "on") and not masked.refusal():
            whole = compiled == "on"
            rows.append(Contender(f"ViT-MAE, one token masked{end}", masking(0.0, whole)))
            rows.append(Contender(f"ViT-MAE, 75 % masked{end}", masking(0.75, whole)))
    rows += map(of, beside(args.device, args.precision))
    if args.precision != "float32":
        rows.append(of(compiled_definition("float32")))
    return [row for row in rows if not args.only or any(o in row.name for o in args.only)]


class Moments:
    """Points in a device's work, and the seconds between each and the next.

    On a GPU the host does not wait at any of them, as it does not in a run.
    """

    def __init__(self, device: str):
        self.on_gpu, self.points = device == "cuda", []

    def mark(self) -> None:
        if self.on_gpu:
            self.points.append(torch.cuda.Event(enable_timing=True))
            self.points[-1].record()
        else:
            self.points.append(time.perf_counter())

    def seconds(self) -> list[float]:
        between = list(zip(self.points, self.points[1:]))
        if not self.on_gpu:
            return [end - start for start, end in between]
        torch.cuda.synchronize()
        return [start.elapsed_time(end) * 1e-3 for start, end in between]


def measure(
    rows: list[Contender], device: str, seconds: float, steps: int, kernels: int = 0
) -> int:
    """Steps of every row in turns until both are spent; returns how many each has made.

    kernels: so many of a step's on a GPU are listed, after two steps more.
    """
    with Progress("ladder") as line:
        for row in rows:
            row.step = row.make()
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            began = time.perf_counter()
            row.losses = [row.step(0)]
            if device == "cuda":
                torch.cuda.synchronize()
            row.first_s = time.perf_counter() - began
            line.update(None, {"first step of": row.name})
        began, number, order, moments = time.perf_counter(), 1, [], Moments(device)
        moments.mark()
        while number < steps or time.perf_counter() - began < seconds:
            turn = number % len(rows)
            for row in rows[turn:] + rows[:turn]:
                row.losses.append(row.step(number))
                moments.mark()
                order.append(row)
            number += 1
            line.update(None, {"round": number})
        for row, sample in zip(order, moments.seconds(), strict=True):
            row.samples.append(sample)
        for row in rows:
            if kernels:
                row.kernels = device_kernels.busiest(row.step, number, kernels)
            row.step, row.losses = None, [float(loss) for loss in row.losses]
            if device == "cuda":
                row.peak_gib = torch.cuda.max_memory_allocated() / 2**30
    return number


def measure_apart(
    rows: list[Contender], device: str, steps: int, stop_after: float, kernels: int = 0
) -> int:
    """As many steps of every row, one row after the other, each engine freed before the next.

    Rows that would begin after `stop_after` seconds, or that fail, are left without samples.
    """
    began = time.perf_counter()
    for row in rows:
        if time.perf_counter() - began > stop_after:
            break
        try:
            measure([row], device, 0, steps, kernels)
        except Exception as error:
            row.samples, row.step, row.losses = [], None, []
            first, *_ = str(error).strip().split("\n")
            row.problem = f"{type(error).__name__}: {first}"[:150]
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()
    return steps


def table(
    rows: list[Contender], batch: int, steps: int, work: int, rate: float, most: float | None = None
) -> str:
    """work: FLOP an image. rate: FLOP a second of a product measured here; most: by datasheet."""
    measured = [row for row in rows if row.samples]
    first = interleave.Times(measured[0].samples).p50 if measured else 0.0
    columns = ("images/s", 10), ("p20 ms", 9), ("p50 ms", 9), ("p80 ms", 9), ("% of GEMM", 11)
    columns += ("x first", 9), ("x above", 9), ("loss", 12), ("first step s", 14)
    on_gpu = any(row.peak_gib for row in rows)  # what a process on a CPU holds is not a row's
    columns += (("peak GiB", 10),) if on_gpu else ()
    columns += (("MFU %", 8),) if most else ()
    lines = [f"{'rung':<46}" + "".join(f"{name:>{width}}" for name, width in columns)]
    above = first
    for row in rows:
        if not row.samples:
            lines.append(f"{row.name:<46}{'not measured':>16}  {row.problem}")
            continue
        times = interleave.Times(row.samples)
        lines.append(
            f"{row.name:<46}{batch / times.p50:>10.1f}{1e3 * times.quantile(0.2):>9.0f}"
            f"{1e3 * times.p50:>9.0f}{1e3 * times.quantile(0.8):>9.0f}"
            f"{100 * batch * work / rate / times.p50:>11.0f}{first / times.p50:>9.2f}"
            f"{above / times.p50:>9.2f}{row.losses[-1]:>12.6f}{row.first_s:>14.1f}"
            + (f"{row.peak_gib:>10.1f}" if on_gpu else "")
            + (f"{100 * batch * work / most / times.p50:>8.1f}" if most else "")
        )
        above = times.p50
    lines.append(f"loss: of step {steps}, the same batches on every row")
    if most:
        lines.append(
            f"MFU: images/s x {work / 1e9:.1f} GFLOP / {most / 1e12:,.0f} TFLOP/s, dense bfloat16 "
            "by the datasheet; what is recomputed does not count"
        )
    return "\n".join(lines)


def curves(rows: list[Contender], points: int = 8) -> str:
    """The losses of every row, of some steps, the first and the last among them."""
    lines = []
    for row in rows:
        if row.samples:
            last = len(row.losses) - 1
            some = sorted({round(i * last / (points - 1)) for i in range(points)})
            shown = "  ".join(f"{i}: {row.losses[i]:.5f}" for i in some)
            lines.append(f"{row.name:<46}  {shown}")
    return "\n".join(["losses by step", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="small")
    parser.add_argument("--image-size", type=int, default=64, help="pixels (default 64)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["bfloat16", "float32"],
                        help="default: what `ldae train` takes on this machine")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=120, help="of rounds (default 120)")
    parser.add_argument("--steps", type=int, default=6, help="of a row, at least (default 6)")
    parser.add_argument("--apart", action="store_true", help="one engine at a time")
    parser.add_argument("--stop-after", type=float, default=float("inf"), metavar="S",
                        help="with --apart: begin no row later than this")  # fmt: skip
    parser.add_argument("--only", action="append", default=[], metavar="TEXT",
                        help="rows whose name contains this; may be given again")  # fmt: skip
    parser.add_argument("--first", action="append", default=[], metavar="TEXT",
                        help="with --apart: rows to begin with, likewise")  # fmt: skip
    parser.add_argument("--kernels", type=int, default=0, metavar="N",
                        help="on a GPU, list the N kernels of each row that take most")  # fmt: skip
    parser.add_argument("--json", help="writes every sample to this file")
    args = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # in a file too it is there, should time run out
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; --device cpu measures this machine's processor")
    if args.kernels and args.device == "cpu":
        parser.error("--kernels is for --device cuda")
    args.precision = args.precision or own_precision(args.device)
    work = flop_an_image(build_config("ldae", args.image_size, args.size))
    rates = copy_rate(args.device), gemm_rate(args.device, getattr(torch, args.precision))
    rows, steps = contenders(args), args.steps
    try:
        if args.apart:
            early = [row for text in args.first for row in rows if text in row.name]
            order = list(dict.fromkeys([*early, *rows]))
            steps = measure_apart(order, args.device, args.steps, args.stop_after, args.kernels)
        else:
            steps = measure(rows, args.device, args.seconds, args.steps, args.kernels)
    finally:  # what was measured is shown, though the rest was cut off
        show(args, rows, steps, work, rates)


def show(
    args: argparse.Namespace, rows: list[Contender], steps: int, work: int,
    rates: tuple[float, float],
) -> None:  # fmt: skip
    """rates: bytes a second of a copy, FLOP a second of a product, both measured in this run."""
    copy, product = rates
    on_gpu = args.device == "cuda"
    machine = torch.cuda.get_device_name() if on_gpu else platform.machine()
    print(f"{args.size}, {args.image_size} px, batch {args.batch}, {machine}, "
          f"torch {torch.__version__}, {torch.get_num_threads()} threads; {work / 1e9:.1f} GFLOP "
          f"an image, {args.precision} product {product / 1e12:.3g} TFLOP/s, copy "
          f"{copy / 1e9:,.0f} GB/s")  # fmt: skip
    print(table(rows, args.batch, steps, work, product, peak(machine) if on_gpu else None))
    print(f"\n{curves(rows)}")
    for row in rows:
        if row.kernels:
            print(f"\n{row.name}: kernels of a step\n{row.kernels}")
    if masked.refusal():
        print(f"ViT-MAE: not measured, {masked.refusal()}")
    if args.json:
        with open(args.json, "w") as file:
            json.dump([{"name": r.name, "first_s": r.first_s, "samples": r.samples,
                        "losses": r.losses} for r in rows if r.samples], file)  # fmt: skip


if __name__ == "__main__":
    main()
