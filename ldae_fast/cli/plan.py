"""`ldae plan`: what a recipe would take, without training it."""

import argparse
import json

from .arguments import RECIPES, add_size, add_verb, positive, read_overrides

EPILOG = """takes settings, each as --NAME VALUE

examples:
  ldae plan ldae --gpu H100
  ldae plan row7 --image-size 32 --device-rate 2 --images 50000 --tokenizer.d 32
"""


def add(verbs) -> None:
    what = "parameters, FLOP, memory and time of a recipe, without training it"
    verb = add_verb(verbs, "plan", what, EPILOG)
    verb.add_argument("recipe", metavar="RECIPE", help=RECIPES)
    verb.add_argument("--image-size", type=positive(int), default=256, metavar="PIXELS")
    add_size(verb)
    device = verb.add_mutually_exclusive_group()
    device.add_argument("--gpu", default="", metavar="NAME", help="default: each one known")
    device.add_argument("--device-rate", type=positive(float), default=0, metavar="TFLOPS")
    verb.add_argument("--mfu", type=positive(float), default=0.45, metavar="SHARE",
                      help="of the device's peak that training reaches (default 0.45)")  # fmt: skip
    verb.add_argument("--epochs", type=positive(float), default=400.0, metavar="N")
    verb.add_argument("--images", type=positive(int), default=1_281_167, metavar="N",
                      help="in the data set (default: ImageNet's)")  # fmt: skip
    verb.add_argument("--json", action="store_true", help="print it as JSON")
    verb.set_defaults(run=run)


def run(args: argparse.Namespace, rest: list[str], argv: list[str]) -> None:
    from ..plan import make_plan, pick_rates, plan_text
    from ..recipes import build_config

    config = build_config(args.recipe, args.image_size, args.size, read_overrides(rest))
    rates = pick_rates(args.gpu, args.device_rate)
    plan = make_plan(config, rates, args.mfu, args.epochs, args.images)
    print(json.dumps(plan, indent=2) if args.json else plan_text(plan))
