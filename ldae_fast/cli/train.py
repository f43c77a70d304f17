"""`ldae train`: pre-train, probe, report."""

import argparse
from pathlib import Path

from ..config import Config, SettingError, check, idle, set_values
from .arguments import (
    DATA_LAYOUTS,
    DEFAULT_IMAGE_SIZE,
    RECIPES,
    add_budget,
    add_data,
    add_network,
    add_out,
    add_seed,
    add_verb,
    budget_epochs,
    command,
    device_of,
    image_side,
    note_idle,
    read_overrides,
    settings_help,
)
from .show import show_result

EPILOG = f"""examples:
  ldae train demo --data photos --minutes 4 --out runs/photos
  ldae train row7 --data cifar10 --steps 2000 --out runs/row7 --tokenizer.d 32
  ldae train --config runs/row7/config.json --seed 1 --data cifar10 --steps 2000 --out runs/again

{DATA_LAYOUTS}

settings, each as --NAME VALUE (its default at 32 pixels):
"""


def add(verbs) -> None:
    listed = settings_help(lambda name: not name.startswith("finetune."))
    verb = add_verb(verbs, "train", "pre-train, probe, report", EPILOG + listed)
    verb.add_argument("recipe", metavar="RECIPE", nargs="?", default="", help=RECIPES)
    add_data(verb)
    add_out(verb)
    add_budget(verb, epochs=400)
    add_seed(verb)
    add_network(verb)
    verb.add_argument("--bad-images", choices=["replace", "raise"], help="default replace")
    verb.add_argument(
        "--config",
        type=Path,
        metavar="DIR_OR_FILE",
        help="start from a saved run's settings (its config.json) instead of RECIPE",
    )
    verb.add_argument("--profile", action="store_true",
                      help="trace a few steps, show where their time went")  # fmt: skip
    verb.set_defaults(run=run)


def run(args: argparse.Namespace, rest: list[str], argv: list[str]) -> None:
    from ..recipes import ROWS, build_config, recipe_config, saved_config
    from ..train.folder import Launch, new_folder, read_settings, settings_alone
    from ..train.loop import pretrain

    overrides = read_overrides(rest)
    if args.seed is not None:
        overrides["seed"] = args.seed
    if args.bad_images:
        overrides["data.bad_images"] = args.bad_images
    if bool(args.recipe) == bool(args.config):
        raise SettingError(
            f"name a RECIPE ({RECIPES}), or start from a saved run by --config FILE: one of the two"
        )
    if args.recipe and (args.recipe not in ROWS or args.size):
        recipe_config(args.recipe, DEFAULT_IMAGE_SIZE, args.size)
    set_values(Config(), overrides)
    folder = new_folder(args.out)
    if args.config:
        if args.size or args.image_size:
            raise SettingError(
                "--config already holds the size; change it by --model.* and --data.*"
            )
        file = args.config / "config.json" if args.config.is_dir() else args.config
        saved = saved_config(settings_alone(read_settings(file)))
        config = check(set_values(saved, overrides))
    else:
        config = build_config(args.recipe, image_side(args, overrides), args.size, overrides)
    note_idle(idle(config, overrides))
    epochs = budget_epochs(args)
    launch = Launch(
        args.data, device_of(args), args.impl, args.steps, epochs, args.minutes, command(argv)
    )
    show_result(pretrain(config, launch, folder, args.profile), folder.path)
