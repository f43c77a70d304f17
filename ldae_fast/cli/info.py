"""`ldae info`: what this machine has, and what each op takes on it."""

import argparse
import json

from ..config import SettingError
from .arguments import add_verb, read_overrides

EPILOG = """example:
  LDAE_ISA=avx2 ldae info
"""


def add(verbs) -> None:
    what = "versions, devices, and which implementation each op takes here and why"
    verb = add_verb(verbs, "info", what, EPILOG)
    verb.add_argument("--json", action="store_true", help="print it as JSON")
    verb.set_defaults(run=run)


def run(args: argparse.Namespace, rest: list[str], argv: list[str]) -> None:
    from ..kernels import info

    if read_overrides(rest):
        raise SettingError("info takes no settings")
    facts = info.report()
    print(json.dumps(facts, indent=2) if args.json else info.text(facts))
