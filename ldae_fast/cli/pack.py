"""`ldae pack`: store a data set decoded, for fast reading."""

import argparse
import sys

from ..config import SettingError
from .arguments import DATA, add_out, add_verb, positive, read_overrides

EPILOG = """example:
  ldae pack folder:/data/imagenet --out /data/packed --max-side 288
"""


def add(verbs) -> None:
    verb = add_verb(verbs, "pack", "store a data set decoded, for fast reading", EPILOG)
    verb.add_argument("data", metavar="SPEC", help=DATA)
    add_out(verb)
    verb.add_argument("--max-side", type=positive(int), metavar="PIXELS",
                      help="scale down to this short side (default: keep)")  # fmt: skip
    verb.set_defaults(run=run)


def run(args: argparse.Namespace, rest: list[str], argv: list[str]) -> None:
    from ..data.packed import pack

    for name in read_overrides(rest):
        raise SettingError(f"--{name} decides nothing in packing, which takes no settings")
    broken = pack(args.data, args.out, max_side=args.max_side)
    for place, reason in broken.items():
        print(f"left out {place}: {reason}", file=sys.stderr)
    print(f"packed {args.data} into {args.out}; use it as --data packed:{args.out}")
