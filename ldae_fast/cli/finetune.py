"""`ldae finetune`: train an encoder on with labels."""

import argparse
from pathlib import Path

from ..config import FINETUNE_TAKES
from .arguments import (
    DATA_LAYOUTS,
    add_budget,
    add_data,
    add_device,
    add_out,
    add_seed,
    add_verb,
    add_weights,
    budget_epochs,
    command,
    device_of,
    read_overrides,
    settings_help,
)
from .show import show_finetuned

EPILOG = f"""example:
  ldae finetune runs/l-dae --data folder:/data/imagenet --out runs/finetuned --device cuda

{DATA_LAYOUTS}

settings, each as --NAME VALUE:
"""


def add(verbs) -> None:
    what = "train an encoder on with labels, measure it on the test images"
    listed = settings_help(lambda name: name.startswith("finetune.") or name in FINETUNE_TAKES)
    verb = add_verb(verbs, "finetune", what, EPILOG + listed)
    verb.add_argument("encoder", type=Path, metavar="DIR_OR_FILE",
                      help="a run's folder, or what `ldae export` wrote")  # fmt: skip
    add_data(verb)
    add_out(verb)
    add_budget(verb, epochs=100)
    add_seed(verb)
    add_weights(verb, "of a run's folder")
    add_device(verb)
    verb.set_defaults(run=run)


def run(args: argparse.Namespace, rest: list[str], argv: list[str]) -> None:
    from ..train.finetune import finetune
    from ..train.folder import Launch, new_folder

    folder = new_folder(args.out)
    epochs = budget_epochs(args)
    launch = Launch(
        args.data, device_of(args), "auto", args.steps, epochs, args.minutes, command(argv)
    )
    overrides = read_overrides(rest)
    if args.seed is not None:
        overrides["seed"] = args.seed
    result = finetune(args.encoder, args.weights, launch, folder, overrides)
    show_finetuned(result, args.out)
