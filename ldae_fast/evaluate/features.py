"""Features of whole data sets, computed once and kept: encoders and baselines in one pass."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..config import EvaluateConfig
from ..data import Batch, mirror
from ..model import LatentDAE
from ..objective import Objective
from ..tokenizers import Tokenizer

Encode = Callable[[Tensor, Tensor], Tensor]  # uint8 (B, H, W, C), ids (B,) -> features (B, D)


@dataclass(frozen=True)
class FeatureSet:
    """values: (N, D) float32; labels: (N,) int64; images: (N,) int64, whose view a row is."""

    values: Tensor
    labels: Tensor
    images: Tensor


def select(features: FeatureSet, rows: Tensor) -> FeatureSet:
    return FeatureSet(features.values[rows], features.labels[rows], features.images[rows])


@torch.no_grad()
def extract(encoders: dict[str, Encode], batches: Iterable[Batch], device) -> dict[str, FeatureSet]:
    """Runs every encoder on the device over the batches; one FeatureSet a name, on the host.

    On the host, since all encoders' features of ImageNet together are more than a GPU holds.
    """
    parts = {name: [] for name in encoders}
    labels, ids = [], []
    for batch in batches:
        images = mirror(batch.images, batch.flip).to(device)
        batch_ids = batch.ids.to(device)
        for name, encode in encoders.items():
            parts[name].append(encode(images, batch_ids).float().cpu())
        labels.append(batch.labels)
        ids.append(batch.ids)
    labels, ids = torch.cat(labels), torch.cat(ids)
    return {name: FeatureSet(torch.cat(parts.pop(name)), labels, ids) for name in encoders}


def trained_encoder(
    model: LatentDAE, objective: Objective, config: EvaluateConfig, autocast
) -> Encode:
    """Average-pooled encoder tokens at level config.t (section 3, linear probe).

    A model of latents reads the clean (or noisy) latents of the image; one of images reads the raw
    image, its PCA round trip, or the noisy image.
    """
    tokenizer = objective.tokenizer
    t_model = min(config.t, objective.schedule.levels)

    def encode(images: Tensor, ids: Tensor) -> Tensor:
        t = torch.full((len(images),), t_model, device=images.device)
        tokens = tokenizer.patches(images)
        if config.input == "noisy":
            name = "noisy_latents" if objective.config.input == "latent" else "noisy_patches"
            tokens = objective.add_noise(images, t, ids, 0, (name,))[name]
        elif objective.config.input == "latent":
            tokens = tokenizer.encode(tokens)
        elif config.input == "pca":
            tokens = tokenizer.decode(tokenizer.encode(tokens))
        with autocast():
            return model.encode(tokens, t, config.cut).float().mean(dim=1)

    return encode


def baseline_encoders(tokenizer: Tokenizer, pca: Tokenizer) -> dict[str, Encode]:
    """What the encoder must beat: raw pixels, a colour histogram, PCA latents, the run's own."""
    baselines = {"raw_pixels": raw_pixels, "colour_histogram": colour_histogram}
    baselines["pca"] = partial(latents, pca)
    if tokenizer.kind not in ("pca", "pixel"):  # pixels' latents are raw pixels once more
        baselines[tokenizer.kind.replace("-", "_")] = partial(latents, tokenizer)
    return baselines


def latents(tokenizer: Tokenizer, images: Tensor, ids: Tensor) -> Tensor:
    """All tokens' latents, averaged down to 8 x 8 tokens where there are more: (B, tokens d)."""
    z = tokenizer.encode(tokenizer.patches(images))  # (B, T, d)
    side = math.isqrt(z.shape[1])
    if side > 8:
        grid = z.transpose(1, 2).unflatten(2, (side, side))  # (B, d, side, side)
        z = torch.nn.functional.adaptive_avg_pool2d(grid, 8).flatten(2).transpose(1, 2)
    return z.flatten(1)


def raw_pixels(images: Tensor, ids: Tensor) -> Tensor:
    """Pixels 0..1, averaged down to 32 x 32 where the image is larger: (B, 3072)."""
    x = images.float().permute(0, 3, 1, 2) / 255
    if x.shape[-1] > 32:
        x = torch.nn.functional.adaptive_avg_pool2d(x, 32)
    return x.flatten(1)


def colour_histogram(images: Tensor, ids: Tensor) -> Tensor:
    """Square roots of the shares of 8 x 8 x 8 RGB bins: (B, 512)."""
    red, green, blue = (images.long() >> 5).flatten(1, 2).unbind(2)
    bins = 64 * red + 8 * green + blue  # no product: CUDA has none of integers
    counts = torch.zeros(len(images), 512, device=images.device)
    counts.scatter_add_(1, bins, torch.ones_like(bins, dtype=torch.float32))
    return (counts / bins.shape[1]).sqrt()
