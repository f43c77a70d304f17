"""Seconds of training to the same probe accuracy: `ldae train` as it is beside the definitions.

python bench/time_to_accuracy.py --data parquet:../shared/data/cifar10 --accuracy 0.3

Two engines train in one process, from the same weights on the same batches, in turns of --turn
steps, so that a slow moment of the machine meets both. After each turn both are probed, which is no
time of theirs: kNN top-1 on training images kept out of the bank; no test image is read. It ends
when both have reached --accuracy in two probes in a row, and prints the second at which each did.
"""

import argparse
import platform
import time
from dataclasses import dataclass, field

import torch
from ladder import Rung, ladder

from ldae_fast.data import Batch, Loader, Source, open_source
from ldae_fast.evaluate.monitor import Monitor
from ldae_fast.evaluate.protocol import Subject
from ldae_fast.noise import stream
from ldae_fast.recipes import build_config
from ldae_fast.report.canvas import Sheet
from ldae_fast.report.progress import Progress
from ldae_fast.report.style import ACCENT, INK, MUTED, QUIET
from ldae_fast.tokenizers import LinearTokenizer, fit_tokenizer
from ldae_fast.train.engine import Engine

FAST = Rung("as it is", {}, keep=True)
ROW = 2  # probes in a row that must reach the accuracy, so that chance does not


@dataclass
class Path:
    """One engine, and what its training has come to."""

    rung: Rung
    engine: Engine
    monitor: Monitor
    seconds: float = 0.0
    loss: float = float("nan")
    curve: list[tuple[float, float]] = field(default_factory=list)  # seconds, accuracy

    def turn(self, batches: list[Batch], first: int, progress: float) -> None:
        with self.rung.surroundings():
            began = time.perf_counter()
            for number, batch in enumerate(batches, first):
                self.loss = self.engine.step(batch, number, progress).loss
            self.seconds += time.perf_counter() - began
            self.curve.append((self.seconds, self.monitor.probe()["knn_top1"]))

    def reached(self, accuracy: float) -> float | None:
        """The second of the first of ROW probes in a row at the accuracy, or None."""
        for i in range(len(self.curve) - ROW + 1):
            if all(top1 >= accuracy for _, top1 in self.curve[i : i + ROW]):
                return self.curve[i][0]
        return None


def path(rung: Rung, args: argparse.Namespace, source: Source, tokenizer: LinearTokenizer) -> Path:
    settings = {name: str(value).lower() for name, value in rung.settings.items()}
    config = build_config("ldae", args.image_size, args.size, settings)
    with rung.surroundings():
        engine = Engine(config, tokenizer, args.device)
    subject = Subject(config, engine.objective, {"trained": engine.model}, engine.autocast,
                      engine.device)  # fmt: skip
    return Path(rung, engine, Monitor(subject, source, args.probe_images))


def race(paths: list[Path], loader: Loader, args: argparse.Namespace) -> int:
    """Turns of all paths until each is there; returns the steps that each has made."""
    began, step, batches = time.perf_counter(), 0, loader.iterate(0)
    with Progress("race") as line:
        while not all(p.reached(args.accuracy) for p in paths):
            if time.perf_counter() - began > 60 * args.minutes:
                break
            taken = [next(batches) for _ in range(args.turn)]
            for p in paths if step // args.turn % 2 else paths[::-1]:
                p.turn(taken, step, step / args.steps)
            step += args.turn
            line.update(None, {"step": step} | {
                p.rung.name: f"{100 * p.curve[-1][1]:.1f} % at {p.seconds:.0f} s" for p in paths
            })  # fmt: skip
    batches.close()
    return step


def draw(file: str, paths: list[Path], accuracy: float) -> None:
    sheet = Sheet(1500, 760)
    sheet.write(70, 64, "kNN accuracy over seconds of training, %", 10, align="left", bold=True)
    axes = sheet.axes(110, 120, 1300, 540)
    for p, color in zip(paths, (MUTED, ACCENT)):
        seconds, top1 = zip(*p.curve)
        top1 = [100 * value for value in top1]
        axes.plot(seconds, top1, color=color, linewidth=1.6, label=p.rung.name)
    axes.legend(loc="lower right", frameon=False, fontsize=8.5, labelcolor=INK)
    axes.axhline(100 * accuracy, color=QUIET, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds", fontsize=8, color=QUIET)
    sheet.save(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="any source that `ldae train --data` takes")
    parser.add_argument("--accuracy", type=float, required=True, help="a fraction, to be reached")
    parser.add_argument("--image-size", type=int, default=32, help="pixels (default 32)")
    parser.add_argument("--size", default="", help="default: as the image size has it")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--steps", type=int, default=1000, help="of the learning rate's schedule")
    parser.add_argument("--turn", type=int, default=20, help="steps between two probes")
    parser.add_argument("--probe-images", type=int, default=8000)
    parser.add_argument("--minutes", type=float, default=15, help="give up after these")
    parser.add_argument("--png", help="draws both curves into this file")
    args = parser.parse_args()
    config = build_config("ldae", args.image_size, args.size)
    source = open_source(args.data, "train", args.image_size)
    loader = Loader(source, batch_size=config.optimizer.batch, image_size=args.image_size,
                    seed=stream(0, "data"))  # fmt: skip
    sample = Loader(source, batch_size=min(len(source), 10_000), image_size=args.image_size, seed=1,
                    flip=False, workers=0).batch(0)  # fmt: skip
    t = config.tokenizer
    tokenizer = fit_tokenizer(t.kind, sample.images, patch=config.model.patch, d=t.d, scale=t.scale,
                              count=t.patches, seed=0)  # fmt: skip
    paths = [path(rung, args, source, tokenizer) for rung in (ladder(args.device)[0], FAST)]
    steps = race(paths, loader, args)
    print(f"{args.data}, {args.image_size} px, {platform.machine()}, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads, {steps} steps each")  # fmt: skip
    print(f"{'path':<24}{'precision':>12}{'loss':>12}{'kNN %':>9}{'seconds':>10}"
          f"{f's to {100 * args.accuracy:.1f} %':>14}")  # fmt: skip
    for p in paths:
        there = p.reached(args.accuracy)
        print(f"{p.rung.name:<24}{str(p.engine.dtype).removeprefix('torch.'):>12}{p.loss:>12.6f}"
              f"{100 * p.curve[-1][1]:>9.1f}{p.seconds:>10.1f}"
              f"{f'{there:.1f}' if there else 'not reached':>14}")  # fmt: skip
    first, second = (p.reached(args.accuracy) for p in paths)
    if first and second:
        print(f"{first / second:.2f} times the definitions' speed to that accuracy")
    if args.png:
        draw(args.png, paths, args.accuracy)


if __name__ == "__main__":
    main()
