"""Arguments that several verbs take, settings written as --NAME VALUE among them.

What is heavy to import is imported where it is needed: `ldae --help` loads no torch.
"""

import argparse
import os
import shlex
import sys
import textwrap
import typing
from collections.abc import Callable
from pathlib import Path

from ..config import (
    Config,
    SettingError,
    parse,
    set_values,
    setting_names,
    setting_type,
    settings,
)

DATA = "photos, fashion-mnist, cifar10, folder:PATH, parquet:PATH, wds:PATTERN or packed:PATH"
RECIPES = "row0 .. row13, ldae, ldae-aug, mae, demo"
DATA_LAYOUTS = """data, one word for any source:
  photos, fashion-mnist, cifar10  fetched, or found where installed
  folder:PATH   JPEG and PNG files, a folder a class, in PATH/train and PATH/test or PATH/val;
                without those in PATH itself, where every tenth image of a class is for testing
  parquet:PATH  a file, or a folder of them, in Hugging Face's image layout
  wds:PATTERN   tar shards of 0001.jpg beside 0001.cls; PATTERN may have *, ? and {000..012}
  packed:PATH   what `ldae pack` wrote
Files and shards named train and test (or val) are that; else every tenth image is for testing."""
DEFAULT_IMAGE_SIZE = 32
HELP_WIDTH, HELP_COLUMN = 100, 40


def add_verb(verbs, name: str, what: str, epilog: str = "", **options) -> argparse.ArgumentParser:
    return verbs.add_parser(
        name, help=what, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter,
        **options,
    )  # fmt: skip


def positive(kind):
    """argparse type: a number above zero."""

    def read(text: str):
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be above 0; got {text}")
        return value

    read.__name__ = "whole number" if kind is int else "number"
    return read


def add_data(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--data", required=True, metavar="SPEC", help=DATA)


def add_out(verb: argparse.ArgumentParser, what: str | None = "a new folder") -> None:
    verb.add_argument("--out", required=True, type=Path, metavar="DIR", help=what)


def add_run(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("dir", type=Path, metavar="DIR", help="a run's folder")


def add_weights(verb: argparse.ArgumentParser, what: str | None = None) -> None:
    verb.add_argument("--weights", choices=["trained", "ema"], default="trained", help=what)


def add_seed(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--seed", metavar="N", help="of every random draw (default 0)")


def add_device(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--device", choices=["cpu", "cuda"], help="default cpu")


def device_of(args: argparse.Namespace) -> str:
    """The device asked for; the CPU where none was, with a note of a GPU that stays idle."""
    import torch

    if args.device is None and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        print(f"note: this runs on the CPU; --device cuda takes the {name}", file=sys.stderr)
    return args.device or "cpu"


def add_image_size(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--image-size", type=positive(int), metavar="PIXELS", help="default: the data's"
    )


def add_size(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--size", default="", help="tiny, small, S, B, half-L or L")


def add_network(verb: argparse.ArgumentParser) -> None:
    """What network a run has, and what it computes on."""
    add_image_size(verb)
    add_size(verb)
    add_device(verb)
    verb.add_argument("--impl", choices=["auto", "reference"], default="auto")


def add_budget(verb: argparse.ArgumentParser, of: str | None = None, epochs: float = 0) -> None:
    """--steps, --minutes or, where there is a default in epochs, --epochs."""
    budget = verb.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=positive(int), default=0, metavar="N", help=of)
    if epochs:
        said = f"default {epochs:g}, where no length is given"
        budget.add_argument("--epochs", type=positive(float), default=0, metavar="N", help=said)
        verb.set_defaults(default_epochs=epochs)
    budget.add_argument("--minutes", type=positive(float), default=0, metavar="M")


def budget_epochs(args: argparse.Namespace) -> float:
    """The epochs asked for, the default, with a note of it, where no budget at all was given."""
    if args.steps or args.minutes or args.epochs:
        return args.epochs
    print(f"note: no length is given by --steps, --epochs or --minutes: {args.default_epochs:g} "
          "epochs", file=sys.stderr)  # fmt: skip
    return args.default_epochs


def command(argv: list[str]) -> str:
    """What was typed, as a run's folder keeps it."""
    return "ldae " + shlex.join(argv)


def settings_help(wanted: Callable[[str], bool]) -> str:
    """Every dotted setting whose name is wanted: its default, what it is."""
    from ..recipes import recipe_config

    lines = []
    for name, value, about in settings(recipe_config("ldae", DEFAULT_IMAGE_SIZE)):
        if wanted(name):
            kind = setting_type(name)
            choices = " | ".join(typing.get_args(kind))
            said = f"{choices}: {about['says']}" if choices else about["says"]
            left = f"  --{name} {plain(value)}"
            lines += textwrap.wrap(
                said, HELP_WIDTH, initial_indent=f"{left:<{HELP_COLUMN - 2}}  ",
                subsequent_indent=" " * HELP_COLUMN, break_on_hyphens=False,
            )  # fmt: skip
    return "\n".join(lines)


def plain(value: bool | float | str) -> str:
    """A setting's value as it would be typed."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def read_overrides(rest: list[str]) -> dict[str, str]:
    """['--model.depth', '6', '--seed=1'] -> {'model.depth': '6', 'seed': '1'}."""
    values, words = {}, list(rest)
    while words:
        word = words.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not name:
            raise SettingError(f"unexpected argument {word!r}; settings are given as --NAME VALUE")
        if not equals:
            if name not in setting_names():
                set_values(Config(), {name: ""})  # raises with the nearest right name
            if not words or words[0].startswith("--"):
                raise SettingError(f"--{name} needs a value")
            value = words.pop(0)
        values[name] = value
    return values


def note_idle(reasons: dict[str, str]) -> None:
    """Says which of the settings given decide nothing, and why."""
    for name, why in reasons.items():
        print(f"note: --{name} decides nothing here, {why}", file=sys.stderr)


def default_image_size(spec: str) -> int:
    """The largest of 32, 64, 128 and 256 that the first readable image fills, at least 32."""
    from ..data import BadImage, DataError, open_source

    if spec in ("photos", "cifar10", "fashion-mnist"):
        return DEFAULT_IMAGE_SIZE
    source = open_source(spec, "train", DEFAULT_IMAGE_SIZE)
    for index in range(len(source)):
        try:
            side = min(source.read(index).shape[:2])
        except BadImage:
            continue
        return max((s for s in (32, 64, 128, 256) if s <= side), default=DEFAULT_IMAGE_SIZE)
    raise DataError(f"{spec}: none of the {len(source)} training images can be read")


def image_side(args: argparse.Namespace, overrides: dict[str, str]) -> int:
    """The side that the model sees: as a setting says, or --image-size, or the data itself."""
    said, by_setting = args.image_size, overrides.get("data.image_size")
    if said and by_setting and str(said) != by_setting:
        raise SettingError(
            f"--image-size {said} and --data.image_size {by_setting} are the same setting; give one"
        )
    side = by_setting or said or default_image_size(args.data)
    return parse("data.image_size", int, side)


def check_output(
    option: str,
    path: Path,
    suffix: str = "",
    earlier: str = "",
    is_earlier: Callable[[Path], bool] = lambda path: False,
) -> None:
    """SettingError where no file can be put at `path`: said before the work, not after it.

    Of what is there, only an earlier output of the same kind is replaced, if it can be told.
    """
    if path.is_dir():
        raise SettingError(f"{option} {path} is a folder; name a file")
    if suffix and path.suffix != suffix:
        raise SettingError(f"{option} must end in {suffix}; got {path}")
    if os.path.lexists(path) and (path.is_symlink() or not path.is_file() or not is_earlier(path)):
        other = f", and no {earlier}" if earlier else ""
        raise SettingError(f"{option} {path} is there already{other}; name another file")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise SettingError(f"{option} {path}: {folder} is no folder; name a file in one")
    if not writable(folder):
        raise SettingError(f"{option} {path}: {folder} may not be written to; name another file")


def writable(folder: Path) -> bool:
    """Whether files can be put into it, by who asks and by how it is mounted."""
    effective = os.access in os.supports_effective_ids
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=effective)
