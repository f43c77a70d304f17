"""`ldae trajectory`: the rows of the paper's path, or a sweep, over seeds."""

import argparse
import sys

from ..config import Config, SettingError, set_values
from .arguments import (
    add_budget,
    add_data,
    add_network,
    add_out,
    add_verb,
    budget_epochs,
    command,
    device_of,
    image_side,
    positive,
    read_overrides,
)

EPILOG = """takes settings of `ldae train`, each as --NAME VALUE, for all runs alike; the same
command again goes on where it stopped

examples:
  ldae trajectory --data cifar10 --rows 7-13,even,pixel --seeds 3 --minutes 5 --out runs/path
  ldae trajectory --data cifar10 --table probe-t --steps 2000 --out runs/probe-t
"""


def add(verbs) -> None:
    what = "train rows of the paper's path, or a sweep, over seeds, and hold them against it"
    verb = add_verb(verbs, "trajectory", what, EPILOG, allow_abbrev=False)  # --seed is not --seeds
    add_data(verb)
    add_out(verb, None)
    arms = verb.add_mutually_exclusive_group()
    arms.add_argument("--rows", metavar="ROWS", help="such as 7,10-13,even,pixel (default: all)")
    arms.add_argument("--table", metavar="NAME", help="a sweep instead: table2, fig5, "
                      "probe-t, cut, augment, epochs, size or scale")  # fmt: skip
    verb.add_argument("--seeds", default="1", metavar="N", help="or ROW:N,ROW:N (default 1)")
    add_budget(verb, "of each run", epochs=400)
    verb.add_argument(
        "--jobs",
        type=positive(int),
        default=1,
        metavar="N",
        help="runs side by side, each with its share of cores, on CUDA with a GPU",
    )
    add_network(verb)
    verb.set_defaults(run=run)


def run(args: argparse.Namespace, rest: list[str], argv: list[str]) -> int:
    from ..data import open_source
    from ..recipes import recipe_config
    from ..trajectory.arms import (
        default_rows,
        parse_rows,
        parse_seeds,
        path_study,
        rows_of,
        sweep,
        varies_size,
    )
    from ..trajectory.jobs import Ask
    from ..trajectory.study import finished_seeds, run_study

    settings = read_overrides(rest)
    if "seed" in settings:
        raise SettingError("a study runs several seeds; say how many by --seeds N")
    set_values(Config(), settings)
    side = image_side(args, settings)
    base = set_values(recipe_config("ldae", side, args.size), settings)
    rows = parse_rows(args.rows) if args.rows is not None else default_rows()
    study = sweep(args.table, base) if args.table else path_study(rows)
    if args.size and args.table and varies_size(study):
        raise SettingError(f"--size is what --table {args.table} varies; leave it out")
    seeds = parse_seeds(args.seeds, study.arms)
    if not args.table:  # rows of an earlier call stay in the reports
        study = path_study([*rows, *rows_of(finished_seeds(args.out))])
    open_source(args.data, "train", side)  # or raises, before any run is begun
    epochs = budget_epochs(args)
    ask = Ask(args.data, side, args.size, device_of(args), args.impl, args.steps, epochs,
              args.minutes, settings)  # fmt: skip
    failed = run_study(study, ask, seeds, args.out, args.jobs, command(argv))
    print(f"{(args.out / 'trajectory.md').read_text()}\nreport: {args.out / 'trajectory.html'}")
    if failed:
        print(f"ldae: {len(failed)} runs failed: {', '.join(failed)}; {args.out / 'logs'} has what "
              "they said, and the same command tries them again", file=sys.stderr)  # fmt: skip
    return 1 if failed else 0
