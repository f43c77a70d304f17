"""The random images of a source that a tokenizer is fitted on."""

from torch import Tensor

from ..config import Config
from ..data import Loader, Source
from ..noise import stream

TOKENS_AN_IMAGE = 16  # of each image, so that many images count


def sample_size(config: Config, source: Source) -> int:
    return min(len(source), -(-config.tokenizer.patches // TOKENS_AN_IMAGE))


def sample(config: Config, source: Source) -> Tensor:
    """Random training images (N, S, S, 3) uint8 that give a tokenizer its statistics."""
    return Loader(
        source, batch_size=sample_size(config, source), image_size=config.data.image_size,
        flip=False, workers=0, seed=stream(config.seed, "tokenizer"), cache_mb=0,
        bad_images=config.data.bad_images,
    ).batch(0).images  # fmt: skip
