"""`ldae tokenizer`: one tokenizer in a folder of its own, with its log and its picture."""

from contextlib import nullcontext
from dataclasses import replace

from ..config import Config, SettingError
from ..data import Loader, Source, open_source
from ..evaluate.gallery import draw_reconstructions
from ..noise import stream
from ..report.metrics import MetricsLog
from ..tokenizers import ConvTokenizer
from .checkpoint import replace_durably
from .device import make_ready
from .folder import Launch, RunFolder
from .tokenizer import alone, cached_path, keep, make_tokenizer, taken

SHOWN = 8  # test images in the picture


def run_tokenizer(config: Config, launch: Launch, folder: RunFolder) -> dict:
    """Makes the tokenizer of the settings; returns what was found about it.

    launch.minutes: how long to train instead of config.tokenizer.steps; such a tokenizer depends on
    the machine, so it is not kept in the cache.
    """
    t, size = config.tokenizer, config.data.image_size
    make_ready(launch.device)  # as `ldae train` does: the cache holds one tokenizer for both
    if t.file:
        raise SettingError("--tokenizer.file names a finished tokenizer, so there is none to make")
    train, test = (open_source(launch.data, split, size) for split in ("train", "test"))
    with folder.claim(for_new=True):
        return make(config, replace(launch, verb="tokenizer"), folder, train, test)


def make(config: Config, launch: Launch, folder: RunFolder, train: Source, test: Source) -> dict:
    t, size = config.tokenizer, config.data.image_size
    folder.write_config(config, launch)
    conv = t.kind == ConvTokenizer.kind
    kept = cached_path(config, train) if conv and not launch.minutes else None
    try:
        with MetricsLog(folder.metrics) as log, alone(kept, print) if kept else nullcontext():
            tokenizer = taken(kept, print) if kept else None
            if tokenizer is None:
                tokenizer = make_tokenizer(
                    config, train, launch.device, launch.minutes, log.append, kept
                )
                keep(tokenizer, kept, print)
        replace_durably(folder.path / "tokenizer.safetensors", tokenizer.to_bytes())
    except BaseException:  # so that the same command can be given again
        folder.discard()
        raise
    shown = Loader(
        test, batch_size=min(SHOWN, len(test)), image_size=size, flip=False, workers=0,
        seed=stream(config.seed, "gallery"), cache_mb=0,
    ).batch(0)  # fmt: skip
    found = {
        "kind": tokenizer.kind, "d": tokenizer.d, "patch": tokenizer.view.patch,
        "image_size": size, "explained_variance": tokenizer.explained,
        "psnr": draw_reconstructions(tokenizer, shown.images, folder.pictures),
    }  # fmt: skip
    return found | ({k: tokenizer.about[k] for k in ("steps", "perceptual")} if conv else {})
