"""`ldae VERB`: the command line."""

import argparse
import json
import shlex
import sys
from pathlib import Path

from .config import Config, SettingError, check, from_dict, set_values, setting_names

EXAMPLES = """examples:
  ldae train demo --data photos --minutes 4 --out runs/photos
  ldae train ldae --data folder:/data/imagenet --image-size 256 --epochs 400 --out runs/l-dae
  ldae train row7 --data cifar10 --steps 2000 --out runs/row7 --tokenizer.d 32 --model.patch 8
  ldae train ldae --data photos --steps 30 --out runs/profiled --profile
  ldae resume runs/photos
  ldae probe runs/photos --data photos --method knn
  ldae sample runs/row7 --sampler ddim --steps 50
  ldae export runs/l-dae --out encoder.safetensors --weights ema
  ldae finetune encoder.safetensors --data folder:/data/imagenet --out runs/finetuned
  ldae pack folder:/data/imagenet --out /data/packed --max-side 288
  ldae trajectory --data cifar10 --rows 7-13,pixel --seeds 3 --minutes 5 --out runs/path
  ldae plan ldae --image-size 256 --gpu H100
  ldae info --json
"""
SAMPLE_EXAMPLES = """examples:
  ldae sample runs/row7
  ldae sample runs/row7 --weights ema --sampler ddim --steps 50 --out samples.png
  ldae sample runs/row7 --count 5000 --frechet cifar10 --classifier cifar10.safetensors
  ldae sample runs/row7 --count 50000 --frechet cifar10 --inception pt_inception-2015-12-05.pth

A distance is called fid only where FILE holds FID's own weights. Beside it stands that of as many
test images: what it comes to for real images, the bias of so few included.
"""
DATA = "photos, fashion-mnist, cifar10, folder:PATH, parquet:PATH, wds:PATTERN or packed:PATH"
RECIPES = "row0 .. row13, ldae, ldae-aug, mae, demo"
DEFAULT_IMAGE_SIZE = 32


def positive(kind):
    """argparse type: a number above zero."""

    def read(text: str):
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be above 0; got {text}")
        return value

    read.__name__ = "whole number" if kind is int else "number"
    return read


def build_parser() -> argparse.ArgumentParser:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "ldae",
        description="Self-supervised pre-training by latent denoising (l-DAE).",
        epilog=EXAMPLES,
        formatter_class=style,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    settings = "settings, each as --NAME VALUE (its default at 32 pixels):\n" + settings_help()

    train = verbs.add_parser(
        "train", help="pre-train, probe, report", epilog=settings, formatter_class=style
    )
    train.add_argument("recipe", metavar="RECIPE", help=RECIPES)
    train.add_argument("--data", required=True, metavar="SPEC", help=DATA)
    train.add_argument("--out", required=True, type=Path, metavar="DIR", help="a new folder")
    add_budget(train)
    train.add_argument("--seed", metavar="N", help="of every random draw (default 0)")
    add_network(train)
    train.add_argument("--bad-images", choices=["replace", "raise"], help="default replace")
    train.add_argument("--config", type=Path, metavar="FILE", help="start from a saved config.json")
    train.add_argument("--profile", action="store_true",
                       help="trace a few steps, show where their time went")  # fmt: skip
    train.set_defaults(run=run_train)

    tokenizer = verbs.add_parser(
        "tokenizer",
        help="make a tokenizer alone: its file, its log, a picture of what it keeps",
        epilog="a convolutional one that was trained for a number of steps is kept in the cache,\n"
        "where `ldae train` with the same settings and data finds it\n\nexample:\n  "
        "ldae tokenizer conv-vae --data cifar10 --out runs/vae --tokenizer.channels 32",
        formatter_class=style,
    )
    tokenizer.add_argument(
        "recipe", metavar="KIND|RECIPE",
        help="conv-vae, patch-vae, patch-ae, pca, pixel, or the recipe whose tokenizer is wanted",
    )  # fmt: skip
    tokenizer.add_argument("--data", required=True, metavar="SPEC", help=DATA)
    tokenizer.add_argument("--out", required=True, type=Path, metavar="DIR", help="a new folder")
    budget = tokenizer.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=positive(int), default=0, metavar="N")
    budget.add_argument("--minutes", type=positive(float), default=0, metavar="M")
    tokenizer.add_argument("--seed", metavar="N", help="of every random draw (default 0)")
    tokenizer.add_argument(
        "--image-size", type=positive(int), metavar="PIXELS", help="default: the data's"
    )
    tokenizer.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    tokenizer.set_defaults(run=run_tokenizer)

    resume = verbs.add_parser(
        "resume",
        help="go on with an interrupted run",
        epilog="takes --speed.*, --checkpoint.*, --report.* and --optimizer.accumulate, which "
        "change no result\n\nexample:\n  ldae resume runs/photos --speed.recompute true",
        formatter_class=style,
    )
    resume.add_argument("dir", type=Path, metavar="DIR")
    resume.set_defaults(run=run_resume)

    probe = verbs.add_parser("probe", help="measure a trained encoder on a data set")
    probe.add_argument("dir", type=Path, metavar="DIR", help="a run's folder")
    probe.add_argument("--data", required=True, metavar="SPEC", help=DATA)
    probe.add_argument("--method", choices=["linear", "knn"], default="linear")
    probe.add_argument("--weights", choices=["trained", "ema"], default="trained")
    probe.add_argument("--json", type=Path, metavar="F", help="write the result there too")
    probe.set_defaults(run=run_probe)

    sample = verbs.add_parser(
        "sample",
        help="draw samples from a run, as a picture",
        epilog=SAMPLE_EXAMPLES,
        formatter_class=style,
    )
    sample.add_argument("dir", type=Path, metavar="DIR", help="a run's folder")
    sample.add_argument("--count", type=positive(int), default=64, metavar="N",
                        help="samples to draw (default 64); the picture shows 100")  # fmt: skip
    sample.add_argument("--sampler", choices=["ddpm", "ddim"], default="ddpm")
    sample.add_argument("--eta", type=float, metavar="E",
                        help="of ddim: from 0 (default), without noise, to 1, ddpm")  # fmt: skip
    sample.add_argument("--steps", type=positive(int), default=100, metavar="N",
                        help="evenly spaced levels on the way (default 100)")  # fmt: skip
    sample.add_argument("--label", type=int, metavar="K",
                        help="class, where a run is told classes (default: each)")  # fmt: skip
    sample.add_argument("--guidance", type=float, default=0.0, metavar="W",
                        help="(1 + W) conditional - W unconditional (default 0)")  # fmt: skip
    sample.add_argument("--weights", choices=["trained", "ema"], default="trained")
    sample.add_argument("--seed", type=int, default=0, metavar="N")
    sample.add_argument("--out", type=Path, metavar="FILE.png", help="DIR/pictures/samples.png")
    sample.add_argument("--frechet", metavar="DATA", help="print the Frechet distance to the "
                        "training images of DATA too, as JSON")  # fmt: skip
    sample.add_argument("--inception", type=Path, metavar="FILE", help="features: Inception-v3 "
                        "weights, .safetensors or .pth, as pytorch-fid or torchvision has them; "
                        "without, a small classifier is trained on DATA")  # fmt: skip
    sample.add_argument("--classifier", type=Path, metavar="FILE",
                        help="read that classifier from there, or keep it there")  # fmt: skip
    sample.set_defaults(run=run_sample)

    export = verbs.add_parser(
        "export",
        help="write a run's encoder alone into a file, as a plain ViT",
        epilog="takes --evaluate.t and --evaluate.cut: the level that is folded in, and the last "
        "block\n\nexample:\n  ldae export runs/photos --out encoder.safetensors",
        formatter_class=style,
    )
    export.add_argument("dir", type=Path, metavar="DIR", help="a run's folder")
    export.add_argument("--out", required=True, type=Path, metavar="FILE.safetensors")
    export.add_argument("--weights", choices=["trained", "ema"], default="trained")
    export.set_defaults(run=run_export)

    finetune = verbs.add_parser(
        "finetune",
        help="train an encoder on with labels, measure it on the test images",
        epilog="settings, each as --NAME VALUE:\n" + settings_help("finetune."),
        formatter_class=style,
    )
    finetune.add_argument("encoder", type=Path, metavar="DIR_OR_FILE",
                          help="a run's folder, or what `ldae export` wrote")  # fmt: skip
    finetune.add_argument("--data", required=True, metavar="SPEC", help=DATA)
    finetune.add_argument("--out", required=True, type=Path, metavar="DIR", help="a new folder")
    add_budget(finetune)
    finetune.add_argument("--weights", choices=["trained", "ema"], default="trained",
                          help="of a run's folder")  # fmt: skip
    finetune.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    finetune.set_defaults(run=run_finetune)

    pack = verbs.add_parser("pack", help="store a data set decoded, for fast reading")
    pack.add_argument("data", metavar="SPEC", help=DATA)
    pack.add_argument("--out", required=True, type=Path, metavar="DIR", help="a new folder")
    pack.add_argument("--max-side", type=positive(int), metavar="PIXELS",
                      help="scale down to this short side (default: keep)")  # fmt: skip
    pack.set_defaults(run=run_pack)

    path = verbs.add_parser(
        "trajectory",
        help="train rows of the paper's path, or a sweep, over seeds, and hold them against it",
        epilog="takes settings of `ldae train`, each as --NAME VALUE, for all runs alike; the same "
        "command again goes on where it stopped\n\nexamples:\n"
        "  ldae trajectory --data cifar10 --rows 7-13,pixel --seeds 3 --minutes 5 --out runs/path\n"
        "  ldae trajectory --data cifar10 --table probe-t --steps 2000 --out runs/probe-t",
        formatter_class=style,
        allow_abbrev=False,  # --seed is not --seeds
    )
    path.add_argument("--data", required=True, metavar="SPEC", help=DATA)
    path.add_argument("--out", required=True, type=Path, metavar="DIR")
    what = path.add_mutually_exclusive_group()
    what.add_argument("--rows", metavar="ROWS", help="such as 7,10-13,pixel (default: all)")
    what.add_argument("--table", metavar="NAME", help="a sweep instead: table2, fig5, "
                      "probe-t, cut, augment, epochs, size or scale")  # fmt: skip
    path.add_argument("--seeds", default="1", metavar="N", help="or ROW:N,ROW:N (default 1)")
    add_budget(path, "of each run")
    path.add_argument("--jobs", type=positive(int), default=1, metavar="N",
                      help="runs side by side: a GPU each, or a share of the cores")  # fmt: skip
    add_network(path)
    path.set_defaults(run=run_trajectory)

    plan = verbs.add_parser(
        "plan",
        help="parameters, FLOP, memory and time of a recipe, without training it",
        epilog="takes settings, each as --NAME VALUE\n\nexamples:\n  ldae plan ldae --gpu H100\n"
        "  ldae plan row7 --image-size 32 --device-rate 2 --images 50000 --tokenizer.d 32",
        formatter_class=style,
    )
    plan.add_argument("recipe", metavar="RECIPE", help=RECIPES)
    plan.add_argument("--image-size", type=positive(int), default=256, metavar="PIXELS")
    plan.add_argument("--size", default="", help="tiny, small, S, B, half-L or L")
    device = plan.add_mutually_exclusive_group()
    device.add_argument("--gpu", default="", metavar="NAME", help="default: each one known")
    device.add_argument("--device-rate", type=positive(float), default=0, metavar="TFLOPS")
    plan.add_argument("--mfu", type=positive(float), default=0.45, metavar="SHARE",
                      help="of the device's peak that training reaches (default 0.45)")  # fmt: skip
    plan.add_argument("--epochs", type=positive(float), default=400.0, metavar="N")
    plan.add_argument("--images", type=positive(int), default=1_281_167, metavar="N",
                      help="in the data set (default: ImageNet's)")  # fmt: skip
    plan.add_argument("--json", action="store_true", help="print it as JSON")
    plan.set_defaults(run=run_plan)

    info = verbs.add_parser(
        "info",
        help="versions, devices, and which implementation each op takes here and why",
        epilog="example:\n  LDAE_ISA=avx2 ldae info",
        formatter_class=style,
    )
    info.add_argument("--json", action="store_true", help="print it as JSON")
    info.set_defaults(run=run_info)
    return parser


def add_budget(verb: argparse.ArgumentParser, of: str | None = None) -> None:
    """--steps, --epochs or --minutes."""
    budget = verb.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=positive(int), default=0, metavar="N", help=of)
    budget.add_argument("--epochs", type=positive(float), default=0, metavar="N")
    budget.add_argument("--minutes", type=positive(float), default=0, metavar="M")


def add_network(verb: argparse.ArgumentParser) -> None:
    """What network a run has, and what it computes on."""
    verb.add_argument(
        "--image-size", type=positive(int), metavar="PIXELS", help="default: the data's"
    )
    verb.add_argument("--size", default="", help="tiny, small, S, B, half-L or L")
    verb.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    verb.add_argument("--impl", choices=["auto", "reference"], default="auto")


def budget_epochs(args: argparse.Namespace, default: float) -> float:
    """The epochs asked for, `default` where no budget at all was given."""
    return args.epochs if (args.steps or args.minutes or args.epochs) else default


def settings_help(group: str = "") -> str:
    """Every dotted setting that starts with `group`, with its default."""
    from .recipes import recipe_config

    config = recipe_config("ldae", DEFAULT_IMAGE_SIZE)
    lines = []
    for name in setting_names():
        if not name.startswith(group):
            continue
        owner, _, key = name.rpartition(".")
        value = getattr(getattr(config, owner) if owner else config, key)
        lines.append(f"  --{name} {value}")
    return "\n".join(lines)


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


def default_image_size(spec: str) -> int:
    """The largest of 32, 64, 128 and 256 that the first readable image fills, at least 32."""
    from .data import BadImage, DataError, open_source

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
    side = overrides.get("data.image_size") or args.image_size or default_image_size(args.data)
    return int(side)


def run_train(args: argparse.Namespace, rest: list[str], argv: list[str]) -> None:
    from .recipes import ROWS, build_config, recipe_config
    from .train.folder import Launch, new_folder, read_settings, settings_alone
    from .train.loop import pretrain

    overrides = read_overrides(rest)
    if args.seed is not None:
        overrides["seed"] = args.seed
    if args.bad_images:
        overrides["data.bad_images"] = args.bad_images
    if args.recipe not in ROWS or args.size:
        recipe_config(args.recipe, DEFAULT_IMAGE_SIZE, args.size)
    set_values(Config(), overrides)
    folder = new_folder(args.out)
    if args.config:
        if args.size or args.image_size:
            raise SettingError(
                "--config already holds the size; change it by --model.* and --data.*"
            )
        saved = from_dict(settings_alone(read_settings(args.config)))
        config = check(set_values(saved, overrides))
    else:
        config = build_config(args.recipe, image_side(args, overrides), args.size, overrides)
    epochs = budget_epochs(args, 400.0)
    launch = Launch(args.data, args.device, args.impl, args.steps, epochs, args.minutes,
                    "ldae " + shlex.join(argv))  # fmt: skip
    show_result(pretrain(config, launch, folder, args.profile), folder.path)


def run_tokenizer(args: argparse.Namespace, rest: list[str], argv: list[str]) -> None:
    from .recipes import KIND_ROWS, build_config
    from .train import tokenizer_run
    from .train.folder import Launch, new_folder

    overrides = read_overrides(rest)
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
    launch = Launch(args.data, args.device, steps=args.steps, minutes=args.minutes,
                    command="ldae " + shlex.join(argv))  # fmt: skip
    print(json.dumps(tokenizer_run.run_tokenizer(config, launch, folder), indent=2))
    print(f"use it as --tokenizer.file {folder.path / 'tokenizer.safetensors'}")


def run_resume(args: argparse.Namespace, rest: list[str], argv: list[str]) -> None:
    from .train import finetune
    from .train.folder import read_settings
    from .train.loop import resume

    overrides = read_overrides(rest)
    if "encoder" in read_settings(args.dir / "config.json"):  # which fine-tuning starts from
        show_finetuned(finetune.resume(args.dir, overrides), args.dir)
    else:
        show_result(resume(args.dir, overrides), args.dir)


def run_probe(args: argparse.Namespace, rest: list[str], argv: list[str]) -> None:
    from .train.probe import probe

    result = probe(args.dir, args.data, args.method, args.weights, read_overrides(rest))
    text = json.dumps(result, indent=2)
    print(text)
    if args.json:
        from .train.checkpoint import replace_durably

        replace_durably(args.json.absolute(), text.encode() + b"\n")


def run_sample(args: argparse.Namespace, rest: list[str], argv: list[str]) -> None:
    from .evaluate.distance import Reference
    from .evaluate.sample import Sampling
    from .train.sample import draw_samples

    if rest:
        raise SettingError(f"unexpected argument {rest[0]!r}; `ldae sample --help` lists them all")
    eta = args.eta if args.eta is not None else float(args.sampler == "ddpm")
    if not 0 <= eta <= 1 or (args.sampler == "ddpm" and eta != 1):
        raise SettingError(f"--eta must be 0 to 1, beside --sampler ddim; got {eta:g}")
    if not 0 <= args.guidance < float("inf"):
        raise SettingError(f"--guidance must be 0 or more; got {args.guidance:g}")
    if (args.inception or args.classifier) and not args.frechet:
        raise SettingError("--inception and --classifier need --frechet DATA, what to compare with")
    if args.inception and args.classifier:
        raise SettingError("--inception and --classifier both name a feature network; give one")
    how = Sampling(args.steps, eta, args.guidance, args.seed)
    reference = None
    if args.frechet:
        reference = Reference(args.frechet, args.inception, args.classifier)
    result = draw_samples(args.dir, args.out, args.count, how, args.label, args.weights, reference)
    print(json.dumps(result, indent=2) if reference else f"picture: {result['picture']}")


def run_export(args: argparse.Namespace, rest: list[str], argv: list[str]) -> None:
    from .train.export import export

    c = export(args.dir, args.out, args.weights, read_overrides(rest)).config
    print(f"wrote {args.out}: a ViT of {c.depth} blocks, width {c.width}, patch {c.patch}, "
          f"for images of {c.image_size} x {c.image_size}")  # fmt: skip


def run_finetune(args: argparse.Namespace, rest: list[str], argv: list[str]) -> None:
    from .train.finetune import finetune
    from .train.folder import Launch, new_folder

    folder = new_folder(args.out)
    epochs = budget_epochs(args, 100.0)
    launch = Launch(args.data, args.device, "auto", args.steps, epochs, args.minutes,
                    "ldae " + shlex.join(argv))  # fmt: skip
    result = finetune(args.encoder, args.weights, launch, folder, read_overrides(rest))
    show_finetuned(result, args.out)


def run_pack(args: argparse.Namespace, rest: list[str], argv: list[str]) -> None:
    from .data.packed import pack

    read_overrides(rest)
    broken = pack(args.data, args.out, max_side=args.max_side)
    for place, reason in broken.items():
        print(f"left out {place}: {reason}", file=sys.stderr)
    print(f"packed {args.data} into {args.out}; use it as --data packed:{args.out}")


def run_trajectory(args: argparse.Namespace, rest: list[str], argv: list[str]) -> int:
    from .data import open_source
    from .recipes import recipe_config
    from .trajectory.arms import default_rows, parse_rows, parse_seeds, path_study, sweep
    from .trajectory.jobs import Ask
    from .trajectory.study import run_study

    settings = read_overrides(rest)
    if "seed" in settings:
        raise SettingError("a study runs several seeds; say how many by --seeds N")
    set_values(Config(), settings)
    side = image_side(args, settings)
    base = set_values(recipe_config("ldae", side, args.size), settings)
    rows = parse_rows(args.rows) if args.rows is not None else default_rows()
    study = sweep(args.table, base) if args.table else path_study(rows)
    seeds = parse_seeds(args.seeds, study.arms)
    open_source(args.data, "train", side)  # or raises, before any run is begun
    epochs = budget_epochs(args, 400.0)
    ask = Ask(args.data, side, args.size, args.device, args.impl, args.steps, epochs, args.minutes,
              settings)  # fmt: skip
    failed = run_study(study, ask, seeds, args.out, args.jobs, "ldae " + shlex.join(argv))
    print(f"{(args.out / 'trajectory.md').read_text()}\nreport: {args.out / 'trajectory.html'}")
    if failed:
        print(f"ldae: {len(failed)} runs failed: {', '.join(failed)}; {args.out / 'logs'} has what "
              "they said, and the same command tries them again", file=sys.stderr)  # fmt: skip
    return 1 if failed else 0


def run_plan(args: argparse.Namespace, rest: list[str], argv: list[str]) -> None:
    from .plan import make_plan, pick_rates, plan_text
    from .recipes import build_config

    config = build_config(args.recipe, args.image_size, args.size, read_overrides(rest))
    rates = pick_rates(args.gpu, args.device_rate)
    plan = make_plan(config, rates, args.mfu, args.epochs, args.images)
    print(json.dumps(plan, indent=2) if args.json else plan_text(plan))


def run_info(args: argparse.Namespace, rest: list[str], argv: list[str]) -> None:
    from .kernels import info

    if read_overrides(rest):
        raise SettingError("info takes no settings")
    facts = info.report()
    print(json.dumps(facts, indent=2) if args.json else info.text(facts))


def show_result(result: dict, folder: Path) -> None:
    from .report.tables import result_table

    print(result_table(result))
    print(f"\npictures: {folder / 'pictures'}\nreport:   {folder / 'report.html'}")


def show_finetuned(result: dict, folder: Path) -> None:
    from .report.tables import finetune_table

    print(finetune_table(result))
    print(f"\ncurves: {folder / 'pictures' / 'curves.png'}")


def main(argv: list[str] | None = None) -> int:
    """Runs one verb. Returns the exit status; each problem a user can mend is one sentence."""
    argv = sys.argv[1:] if argv is None else argv
    args, rest = build_parser().parse_known_args(argv)
    from .data import DataError
    from .train.checkpoint import CheckpointError
    from .train.engine import NotFinite
    from .train.folder import RunError
    from .train.loop import Interrupted
    from .train.out_of_memory import is_out_of_memory

    try:
        return args.run(args, rest, argv) or 0
    except Interrupted as stopped:
        print(f"ldae: {stopped}", file=sys.stderr)
        return 130
    except (SettingError, DataError, RunError, CheckpointError, NotFinite) as problem:
        print(f"ldae: {problem}", file=sys.stderr)
        return 2
    except OSError as problem:
        print(f"ldae: {problem_with_files(problem)}", file=sys.stderr)
        return 1
    except Exception as problem:
        if not is_out_of_memory(problem):
            raise
        print(f"ldae: out of memory outside of a training step ({str(problem).splitlines()[0]}); "
              "free some, and go on with `ldae resume DIR` where a run was trained",
              file=sys.stderr)  # fmt: skip
        return 1


def problem_with_files(problem: OSError) -> str:
    import errno

    where = problem.filename or "the output folder"
    if problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left for {where}; free some and go on with `ldae resume DIR`"
    return f"{where}: {problem.strerror or problem}; check the path and its permissions"


if __name__ == "__main__":
    sys.exit(main())
