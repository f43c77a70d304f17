"""`ldae export`: write a run's encoder alone into a file."""

import argparse
from pathlib import Path

from .arguments import add_run, add_verb, add_weights, check_output, read_overrides

EPILOG = """takes --evaluate.t and --evaluate.cut: the level that is folded in, and the last block

example:
  ldae export runs/photos --out encoder.safetensors
"""


def add(verbs) -> None:
    what = "write a run's encoder alone into a file, as a plain ViT"
    verb = add_verb(verbs, "export", what, EPILOG)
    add_run(verb)
    verb.add_argument("--out", required=True, type=Path, metavar="FILE.safetensors")
    add_weights(verb)
    verb.set_defaults(run=run)


def run(args: argparse.Namespace, rest: list[str], argv: list[str]) -> None:
    from ..train.export import export, is_export

    check_output("--out", args.out, ".safetensors", "encoder of `ldae export`", is_export)
    c = export(args.dir, args.out, args.weights, read_overrides(rest)).config
    print(f"wrote {args.out}: a ViT of {c.depth} blocks, width {c.width}, patch {c.patch}, "
          f"for images of {c.image_size} x {c.image_size}")  # fmt: skip
