"""`ldae sample`: draw samples from a run, and measure them."""

import argparse
import json
from pathlib import Path

from ..config import SettingError
from .arguments import add_run, add_verb, add_weights, check_output, positive, writable

EPILOG = """examples:
  ldae sample runs/row7
  ldae sample runs/row7 --weights ema --sampler ddim --steps 50 --out samples.png
  ldae sample runs/row7 --count 5000 --frechet cifar10 --classifier cifar10.safetensors
  ldae sample runs/row7 --count 50000 --frechet cifar10 --inception pt_inception-2015-12-05.pth

A distance is called fid only where FILE holds FID's own weights. Beside it stands that of as many
test images: what it comes to for real images, the bias of so few included.
"""


def add(verbs) -> None:
    verb = add_verb(verbs, "sample", "draw samples from a run, as a picture", EPILOG)
    add_run(verb)
    verb.add_argument("--count", type=positive(int), default=64, metavar="N",
                      help="samples to draw (default 64); the picture shows 100")  # fmt: skip
    verb.add_argument("--sampler", choices=["ddpm", "ddim"], default="ddpm")
    verb.add_argument("--eta", type=float, metavar="E",
                      help="of ddim: from 0 (default), without noise, to 1, ddpm")  # fmt: skip
    verb.add_argument("--steps", type=positive(int), default=100, metavar="N",
                      help="evenly spaced levels on the way (default 100)")  # fmt: skip
    verb.add_argument("--label", type=int, metavar="K",
                      help="class, where a run is told classes (default: each)")  # fmt: skip
    verb.add_argument("--guidance", type=float, default=0.0, metavar="W",
                      help="(1 + W) conditional - W unconditional (default 0)")  # fmt: skip
    add_weights(verb)
    verb.add_argument("--seed", type=int, default=0, metavar="N")
    verb.add_argument("--out", type=Path, metavar="FILE.png", help="DIR/pictures/samples.png")
    verb.add_argument("--frechet", metavar="DATA", help="print the Frechet distance to the "
                      "training images of DATA too, as JSON")  # fmt: skip
    verb.add_argument("--inception", type=Path, metavar="FILE", help="features: Inception-v3 "
                      "weights, .safetensors or .pth, as pytorch-fid or torchvision has them; "
                      "without, a small classifier is trained on DATA")  # fmt: skip
    verb.add_argument("--classifier", type=Path, metavar="FILE",
                      help="read that classifier from there, or keep it there")  # fmt: skip
    verb.set_defaults(run=run)


def run(args: argparse.Namespace, rest: list[str], argv: list[str]) -> None:
    from ..evaluate.distance import Reference
    from ..evaluate.sample import Sampling
    from ..train.sample import draw_samples

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
    if args.out:
        check_output("--out", args.out, ".png")
    else:
        pictures = args.dir / "pictures"
        folder = pictures if pictures.is_dir() else args.dir
        if folder.is_dir() and not writable(folder):
            raise SettingError(f"{folder} may not be written to; name a file elsewhere by --out")
    if args.classifier and not args.classifier.is_file():
        check_output("--classifier", args.classifier, ".safetensors")
    how = Sampling(args.steps, eta, args.guidance, args.seed)
    reference = None
    if args.frechet:
        reference = Reference(args.frechet, args.inception, args.classifier)
    result = draw_samples(args.dir, args.out, args.count, how, args.label, args.weights, reference)
    print(json.dumps(result, indent=2) if reference else f"picture: {result['picture']}")
