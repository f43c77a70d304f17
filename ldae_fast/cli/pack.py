"""`ldae pack`: store a data set decoded, for fast reading."""

import argparse
import sys

from ..config import SettingError
from .arguments import DATA, DEFAULT_IMAGE_SIZE, add_out, add_verb, positive, read_overrides

EPILOG = """example:
  ldae pack folder:/data/imagenet --out /data/packed --max-side 288
"""


def add(verbs) -> None:
    verb = add_verb(verbs, "pack", "store a data set decoded, for fast reading", EPILOG)
    verb.add_argument("data", metavar="SPEC", help=DATA)
    add_out(verb)
    verb.add_argument("--max-side", type=positive(int), metavar="PIXELS",
                      help="most of an image's shorter side; what has more is scaled down to it "
                      "(default: keep)")  # fmt: skip
    verb.set_defaults(run=run)


def run(args: argparse.Namespace, rest: list[str], argv: list[str]) -> None:
    from ..data import open_source
    from ..data.packed import SPLITS, pack
    from ..report.format import number
    from ..report.progress import Progress

    for name in read_overrides(rest):
        raise SettingError(f"--{name} decides nothing in packing, which takes no settings")
    with Progress("pack") as line:
        broken = pack(args.data, args.out, max_side=args.max_side, show=line.update)
    for place, reason in broken.items():
        print(f"left out {place}: {reason}", file=sys.stderr)
    spec = f"packed:{args.out}"
    images = sum(len(open_source(spec, split, DEFAULT_IMAGE_SIZE)) for split in SPLITS)
    size = sum(file.stat().st_size for file in args.out.rglob("*.*"))
    print(f"packed {args.data} into {args.out}: {images:,} images, {number(size / 1e6)} MB; use it "
          f"as --data {spec}")  # fmt: skip
