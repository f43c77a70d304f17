"""`ldae VERB`: the command line."""

import argparse
import errno
import os
import select
import sys

from ..config import SettingError
from ..kernels import environment
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
    try:
        status = run_verb(sys.argv[1:] if argv is None else argv)
        if sys.stdout:
            sys.stdout.flush()
        return status
    except OSError as problem:  # of what was printed
        nobody = isinstance(problem, BrokenPipeError)  # as after `ldae info | head`
        if not nobody:
            print(f"ldae: standard output: {problem.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left goes nowhere
        return 141 if nobody else 1
    except KeyboardInterrupt:  # outside of what saves first, as training steps do
        print("ldae: stopped; a run that has a checkpoint goes on with `ldae resume DIR`, a study "
              "by the same command", file=sys.stderr)  # fmt: skip
        return 130


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


def run_verb(argv: list[str]) -> int:
    own, dotted = settings_apart(argv)
    args, rest = build_parser().parse_known_args(own)
    rest += dotted
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
    from ..train.loop import Interrupted
    from ..train.out_of_memory import is_out_of_memory

    try:
        return args.run(args, rest, argv) or 0
    except Interrupted as stopped:
        print(f"ldae: {stopped}", file=sys.stderr)
        return 130
    except (SettingError, DataError, RunError, CheckpointError, MetricsError, NotFinite,
            environment.VariableError) as problem:  # fmt: skip
        print(f"ldae: {problem}", file=sys.stderr)
        return 2
    except OSError as problem:
        if no_output(problem):
            raise
        print(f"ldae: {problem_with_files(problem)}", file=sys.stderr)
        return 1
    except Exception as problem:
        if not is_out_of_memory(problem):
            raise
        said = (str(problem) or type(problem).__name__).splitlines()[0]
        print(f"ldae: out of memory outside of a training step ({said}); "
              "free some, and go on with `ldae resume DIR` where a run was trained",
              file=sys.stderr)  # fmt: skip
        return 1


def problem_with_files(problem: OSError) -> str:
    where = problem.filename or "the output folder"
    if problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left for {where}; free some and go on with `ldae resume DIR`"
    return f"{where}: {problem.strerror or problem}; check the path and its permissions"
