"""`ldae tokenizer`: a tokenizer alone, its file, its log, a picture of what it keeps."""

import argparse
import json

from ..config import Config, SettingError, idle, set_values
from .arguments import (
    add_budget,
    add_data,
    add_device,
    add_image_size,
    add_out,
    add_seed,
    add_verb,
    command,
    device_of,
    image_side,
    note_idle,
    read_overrides,
)

TAKES = ("tokenizer.", "model.patch", "data.image_size", "data.flip", "data.bad_images",
         "speed.workers", "speed.cache_mb", "seed")  # fmt: skip

EPILOG = """a convolutional one that was trained for a number of steps is kept in the cache,
where `ldae train` with the same settings and data finds it

example:
  ldae tokenizer conv-vae --data cifar10 --out runs/vae --tokenizer.channels 32
"""


def add(verbs) -> None:
    what = "make a tokenizer alone: its file, its log, a picture of what it keeps"
    verb = add_verb(verbs, "tokenizer", what, EPILOG)
    verb.add_argument(
        "recipe", metavar="KIND|RECIPE",
        help="conv-vae, patch-vae, patch-ae, pca, pixel, or the recipe whose tokenizer is wanted",
    )  # fmt: skip
    add_data(verb)
    add_out(verb)
    add_budget(verb)
    add_seed(verb)
    add_image_size(verb)
    add_device(verb)
    verb.set_defaults(run=run)


def run(args: argparse.Namespace, rest: list[str], argv: list[str]) -> None:
    from ..recipes import KIND_ROWS, ROWS, build_config
    from ..train import tokenizer_run
    from ..train.folder import Launch, new_folder

    overrides = read_overrides(rest)
    if args.recipe not in KIND_ROWS | ROWS:
        raise SettingError(
            f"unknown tokenizer {args.recipe!r}: it must be one of {', '.join(KIND_ROWS)}, or a "
            f"recipe: {', '.join(ROWS)}"
        )
    if args.recipe in KIND_ROWS:
        overrides["tokenizer.kind"] = args.recipe
    if args.seed is not None:
        overrides["seed"] = args.seed
    if args.steps:
        overrides["tokenizer.steps"] = args.steps
    set_values(Config(), overrides)
    folder = new_folder(args.out)
    recipe = KIND_ROWS.get(args.recipe, args.recipe)
    config = build_config(recipe, image_side(args, overrides), "", overrides)
    if config.tokenizer.kind != "conv-vae" and (args.steps or args.minutes):
        raise SettingError(
            f"--steps and --minutes are for conv-vae; {config.tokenizer.kind} is fitted at once"
        )
    note_idle(idle(config, [name for name in overrides if name.startswith(TAKES)]))
    note_idle({name: "but in `ldae train`" for name in overrides if not name.startswith(TAKES)})
    launch = Launch(
        args.data, device_of(args), steps=args.steps, minutes=args.minutes, command=command(argv)
    )
    print(json.dumps(tokenizer_run.run_tokenizer(config, launch, folder), indent=2))
    print(f"use it as --tokenizer.file {folder.path / 'tokenizer.safetensors'}")
