"""The tokenizer of a run: taken from a file, found in the cache, or made now."""

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

import numpy as np

from ..config import Config, SettingError
from ..data import BadImage, Source, cache_folder
from ..report.atomic import replace_bytes
from ..report.progress import Progress
from ..tokenizers import (
    ConvTokenizer,
    Tokenizer,
    TokenizerError,
    fit_tokenizer,
    load_tokenizer,
)
from ..tokenizers.sample import sample, sample_size
from .conv_tokenizer import Log, fit_conv_tokenizer

FORMAT = 1  # of a training's outcome: a change to the loop or the network makes old files stale
LOOKED_AT = 64  # images whose pixels stand for the data set's

Say = Callable[[str], None]


def find_tokenizer(config: Config, source: Source, device: str, say: Say) -> Tokenizer:
    """The tokenizer that the settings ask for; a convolutional one is trained once and kept."""
    if config.tokenizer.file:
        return given(config)
    kept = cached_path(config, source) if config.tokenizer.kind == ConvTokenizer.kind else None
    with alone(kept, say) if kept else nullcontext():
        tokenizer = taken(kept, say) if kept else None
        if tokenizer:
            return tokenizer
        tokenizer = make_tokenizer(config, source, device, kept=kept)
        keep(tokenizer, kept, say)
    share = f"{100 * tokenizer.explained:.1f} % of the variance"
    say(
        f"{tokenizer.kind} tokenizer: d={tokenizer.d} of {tokenizer.values} values a patch keep "
        + share
    )
    return tokenizer


@contextmanager
def alone(path: Path, say: Say) -> Iterator[None]:
    """Waits until no other run makes the tokenizer at `path`; that run may end in any way.

    Where the cache takes no locks, two runs may train the same tokenizer side by side.
    """
    with ExitStack() as held:
        with suppress(OSError):
            lock = path.parent.with_name("locks") / path.stem
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = held.enter_context(open(lock, "w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("waiting for another run, which trains the same tokenizer")
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def taken(path: Path, say: Say) -> Tokenizer | None:
    """The tokenizer in the cache; None where there is none that is whole."""
    if not path.exists():
        return None
    try:
        tokenizer = load_tokenizer(path)
    except TokenizerError as problem:
        say(f"{problem}; trained again")
        return None
    say(f"tokenizer: {path}, trained before")
    return tokenizer


def keep(tokenizer: Tokenizer, path: Path | None, say: Say) -> None:
    """Puts a tokenizer into the cache. That this fails is said, and costs nothing else."""
    if path is None:
        return
    try:
        replace_bytes(path, tokenizer.to_bytes())
    except OSError as problem:
        say(f"the tokenizer could not be kept for later runs: {path}: {problem.strerror}")


def given(config: Config) -> Tokenizer:
    """The tokenizer of --tokenizer.file; TokenizerError where it is another than the run's."""
    t = config.tokenizer
    tokenizer = load_tokenizer(Path(t.file))
    found = {
        "model.patch": (tokenizer.view.patch, config.model.patch),
        "data.image_size": (tokenizer.image_size or config.data.image_size, config.data.image_size),
        "tokenizer.kind": (tokenizer.kind, t.kind),
        "tokenizer.d": (tokenizer.d, t.d if t.kind != "pixel" else tokenizer.d),
    }
    for name, (its, wanted) in found.items():
        if its != wanted:
            raise TokenizerError(
                f"--tokenizer.file {t.file} was fitted at {name} {its}, but the run has {wanted}; "
                f"give --{name} {its} or another file"
            )
    return tokenizer


def make_tokenizer(
    config: Config,
    source: Source,
    device: str,
    minutes: float = 0.0,
    log: Log = lambda record: None,
    kept: Path | None = None,
) -> Tokenizer:
    """A new tokenizer, fitted on random patches or trained on images of `source`.

    kept: its place in the cache, beside which a training that stops is kept.
    """
    t = config.tokenizer
    if t.kind == ConvTokenizer.kind:
        unfinished = kept and kept.with_suffix(".unfinished")
        return fit_conv_tokenizer(
            config, source, sample(config, source), device, minutes, log, unfinished
        )
    with Progress("fit tokenizer") as line:
        line.update(None, {"images": sample_size(config, source), "patches": t.patches})
        return fit_tokenizer(
            t.kind, sample(config, source), patch=config.model.patch, d=t.d, scale=t.scale,
            count=t.patches, seed=config.seed,
        )  # fmt: skip


def cached_path(config: Config, source: Source) -> Path:
    """Where the cache keeps the convolutional tokenizer of these settings and this data."""
    settings = {k: v for k, v in vars(config.tokenizer).items() if k not in ("file", "vgg")}
    vgg = config.tokenizer.vgg if config.tokenizer.perceptual else ""
    facts = {
        "format": FORMAT, "settings": settings, "seed": config.seed, "patch": config.model.patch,
        "image_size": config.data.image_size, "flip": config.data.flip,
        "data": fingerprint(source), "vgg": file_digest(vgg),
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return cache_folder(None) / "tokenizers" / f"{digest[:32]}.safetensors"


def file_digest(path: str) -> str:
    """SHA-256 of a file's content, '' for no file."""
    if not path:
        return ""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise SettingError(f"--tokenizer.vgg {path} cannot be read ({error.strerror})") from error


def fingerprint(source: Source) -> str:
    """A digest of a data set: how many images, all labels, and the pixels of 64 of them.

    Not of every pixel, which would take as long as decoding the set.
    """
    found = hashlib.sha256(np.ascontiguousarray(source.labels, np.int64).tobytes())
    for index in np.linspace(0, len(source) - 1, min(len(source), LOOKED_AT)).astype(int):
        try:
            image = source.read(int(index))
        except BadImage:
            image = np.zeros(0, np.uint8)
        found.update(str(image.shape).encode() + image.tobytes())
    return found.hexdigest()
