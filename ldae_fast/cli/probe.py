"""`ldae probe`: measure a trained encoder on a data set."""

import argparse
import json
from pathlib import Path

from .arguments import add_data, add_run, add_verb, add_weights, check_output, read_overrides

EPILOG = """takes --evaluate.*, --data.* and --speed.*

examples:
  ldae probe runs/photos --data photos --method knn
  ldae probe runs/photos --data cifar10 --evaluate.t 50 --json probe.json
"""


WRITES = {"run", "data", "weights", "effective_rank", "bad_images"}  # whatever the method


def add(verbs) -> None:
    verb = add_verb(verbs, "probe", "measure a trained encoder on a data set", EPILOG)
    add_run(verb)
    add_data(verb)
    verb.add_argument("--method", choices=["linear", "knn"], default="linear")
    add_weights(verb)
    verb.add_argument("--json", type=Path, metavar="F", help="write the result there too")
    verb.set_defaults(run=run)


def run(args: argparse.Namespace, rest: list[str], argv: list[str]) -> None:
    from ..train.checkpoint import replace_durably
    from ..train.probe import probe

    if args.json:
        check_output("--json", args.json, earlier="result of `ldae probe`", is_earlier=is_result)
    result = probe(args.dir, args.data, args.method, args.weights, read_overrides(rest))
    text = json.dumps(result, indent=2)
    print(text)
    if args.json:
        replace_durably(args.json.absolute(), text.encode() + b"\n")


def is_result(path: Path) -> bool:
    """Whether the verb wrote the file."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.keys() >= WRITES
