"""`ldae resume`: go on with an interrupted run."""

import argparse

from ..config import SettingError
from .arguments import add_run, add_verb, read_overrides
from .show import show_finetuned, show_result

EPILOG = """takes --speed.*, --checkpoint.*, --report.* and --optimizer.accumulate, which change no
result

example:
  ldae resume runs/photos --speed.recompute true
"""


def add(verbs) -> None:
    verb = add_verb(verbs, "resume", "go on with an interrupted run", EPILOG)
    add_run(verb)
    verb.set_defaults(run=run)


def run(args: argparse.Namespace, rest: list[str], argv: list[str]) -> None:
    from ..train import finetune
    from ..train.folder import RunError, made_by
    from ..train.loop import resume

    verb = made_by(args.dir)
    for name in (word.partition("=")[0] for word in rest):
        if name in ("--steps", "--epochs", "--minutes"):
            raise SettingError(
                f"{name}: a run's length is fixed by the `ldae {verb}` that began it; train anew "
                "for another"
            )
    overrides = read_overrides(rest)
    if verb == "tokenizer":
        raise RunError(
            f"{args.dir} was made by `ldae tokenizer`, which is not resumed: give its command "
            "again with a new --out; a training that was stopped goes on"
        )
    if verb == "finetune":
        show_finetuned(finetune.resume(args.dir, overrides), args.dir)
    else:
        show_result(resume(args.dir, overrides), args.dir)
