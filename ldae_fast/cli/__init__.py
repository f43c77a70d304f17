"""`ldae VERB`: the command line."""

import argparse
import errno
import os
import select
import signal
import sys

from ..config import SettingError
from ..kernels import environment
from ..train.signals import Terminated, handled, terminate
from ..train.taken import taken
from . import (
    export,
    finetune,
    info,
    pack,
    plan,
    probe,
    resume,
    sample,
    tokenizer,
    train,
    trajectory,
)

VERBS = (train, tokenizer, resume, probe, sample, export, finetune, pack, trajectory, plan, info)
EXAMPLES = """examples:
  ldae train demo --data photos --minutes 4 --out runs/photos
  ldae train ldae --data folder:/data/imagenet --image-size 256 --epochs 400 --out runs/l-dae
  ldae train row7 --data cifar10 --steps 2000 --out runs/row7 --tokenizer.d 32 --model.patch 8
  ldae train ldae --data photos --steps 30 --out runs/profiled --profile
  ldae resume runs/photos
  ldae probe runs/photos --data photos --method knn
  ldae sample runs/row7 --sampler ddim --steps 50
  ldae export runs/l-dae --out encoder.safetensors --weights ema
  ldae finetune encoder.safetensors --data folder:/data/imagenet --out runs/finetuned
  ldae pack folder:/data/imagenet --out /data/packed --max-side 288
  ldae trajectory --data cifar10 --rows 7-13,pixel --seeds 3 --minutes 5 --out runs/path
  ldae plan ldae --image-size 256 --gpu H100
  ldae info --json
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "ldae",
        description="Self-supervised pre-training by latent denoising (l-DAE).",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in VERBS:
        verb.add(verbs)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs one verb. Returns the exit status; each problem a user can mend is one sentence."""
    argv = sys.argv[1:] if argv is None else argv
    own, dotted = settings_apart(argv)
    args, rest = build_parser().parse_known_args(own)
    out = getattr(args, "out", None)
    args.taken = out is not None and os.path.exists(out / "config.json")  # by a run of before
    try:
        with handled({signal.SIGTERM: terminate}):
            status = run_verb(args, rest + dotted, argv)
        if sys.stdout:
            sys.stdout.flush()
        return status
    except OSError as problem:  # of what was printed
        nobody = isinstance(problem, BrokenPipeError)  # as after `ldae info | head`
        if not nobody:
            print(f"ldae: standard output: {problem.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left goes nowhere
        return 141 if nobody else 1
    except KeyboardInterrupt as stopped:  # outside of what saves first, as training steps do
        print(f"ldae: {going_on('stopped', args)}", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(stopped, Terminated) else signal.SIGINT)


def no_output(problem: OSError) -> bool:
    """Whether it is standard output that cannot be written: its reader is gone, its disk full."""
    try:
        output = select.poll()
        output.register(sys.stdout.fileno(), 0)
        broken = any(event & select.POLLERR for _, event in output.poll(0))
        print(end="", flush=True)
    except (AttributeError, ValueError):  # there is none, or none of the system's
        return False
    except OSError:
        return True
    return broken and isinstance(problem, BrokenPipeError)


def settings_apart(argv: list[str]) -> tuple[list[str], list[str]]:
    """The words of a verb's own, and its settings, --GROUP.NAME VALUE or --GROUP.NAME=VALUE.

    argparse, which does not know the settings, would take a value for the verb's argument.
    """
    own, dotted, words = [], [], list(argv)
    while words:
        word = words.pop(0)
        name, equals, _ = word.partition("=")
        if not name.startswith("--") or "." not in name:
            own.append(word)
            continue
        dotted.append(word)
        if not equals and words and not words[0].startswith("--"):
            dotted.append(words.pop(0))
    return own, dotted


def run_verb(args: argparse.Namespace, rest: list[str], argv: list[str]) -> int:
    try:
        environment.check()  # before anything is imported that reads it
    except environment.VariableError as problem:
        print(f"ldae: {problem}", file=sys.stderr)
        return 2
    from ..data import DataError
    from ..report.metrics import MetricsError
    from ..train.checkpoint import CheckpointError
    from ..train.engine import NotFinite
    from ..train.folder import RunError
    from ..train.out_of_memory import is_out_of_memory
    from ..train.signals import Interrupted

    try:
        return args.run(args, rest, argv) or 0
    except Interrupted as stopped:
        print(f"ldae: {stopped}", file=sys.stderr)
        return 128 + stopped.number
    except (SettingError, DataError, RunError, CheckpointError, MetricsError, NotFinite,
            environment.VariableError) as problem:  # fmt: skip
        print(f"ldae: {problem}", file=sys.stderr)
        return 2
    except OSError as problem:
        if no_output(problem):
            raise
        print(f"ldae: {problem_with_files(problem, args)}", file=sys.stderr)
        return 1
    except Exception as problem:
        if not is_out_of_memory(problem):
            raise
        said = (str(problem) or type(problem).__name__).splitlines()[0]
        said = f"out of memory outside of a training step ({said})"
        print(f"ldae: {going_on(said, args, 'free some and ')}", file=sys.stderr)
        return 1


def going_on(said: str, args: argparse.Namespace, first: str = "") -> str:
    """What ended a verb, and how its work goes on: not every verb keeps what it has done."""
    if args.verb == "trajectory":
        return f"{said}; {first}run the same command again, which goes on"
    folder = args.dir if args.verb == "resume" else getattr(args, "out", None)
    if args.taken:
        return f"{said} and nothing was kept: --out {folder} {taken(folder)}"
    if args.verb == "tokenizer" and os.path.exists(folder / "tokenizer.safetensors"):
        return f"{said}; the tokenizer itself is whole, in {folder}"
    resumed = args.verb in ("resume", "train", "finetune")
    if resumed and os.path.exists(folder / "config.json"):
        return f"{said}; {first}go on with `ldae resume {folder}`"
    return f"{said} and nothing was kept; {first}run the same command again"


def problem_with_files(problem: OSError, args: argparse.Namespace) -> str:
    where = problem.filename or getattr(args, "out", None) or "the output folder"
    if problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return going_on(f"no space left for {where}", args, "free some and ")
    return f"{where}: {problem.strerror or problem}; check the path and its permissions"
