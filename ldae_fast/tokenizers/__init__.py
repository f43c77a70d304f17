"""Tokenizers: fit on sampled images, then encode patches to latents and decode them back."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..kernels.normal.reference import philox
from ..noise import stream
from ..ops import ImageView, patchify
from .conv_vae import ConvTokenizer
from .file import Tokenizer, TokenizerError, load_tokenizer
from .linear import LinearTokenizer
from .patch_ae import fit_patch_ae
from .pca import fit_pca
from .pixel import fit_pixel

AT_ONCE = 256  # images whose pixels are held as floats
KINDS = ("pca", "pixel", "patch-ae", "patch-vae")  # linear ones; conv-vae is trained in train/

__all__ = [
    "KINDS",
    "ConvTokenizer",
    "LinearTokenizer",
    "Tokenizer",
    "TokenizerError",
    "channel_statistics",
    "fit_tokenizer",
    "load_tokenizer",
    "random_patches",
]


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and standard deviation of uint8 (N, H, W, C), in units of value / 255."""
    level = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in images.unbind(3):
        counts = sum(torch.bincount(x.flatten(), minlength=256) for x in channel.split(AT_ONCE))
        count = int(counts.sum())
        share = counts.double() / count
        mean.append(float((share * level).sum()))
        variance = float((share * (level - mean[-1]) ** 2).sum())
        std.append(max(1e-3, math.sqrt(variance * count / max(1, count - 1))))
    return tuple(mean), tuple(std)


def random_patches(images: Tensor, view: ImageView, count: int, seed: int) -> Tensor:
    """At most `count` patches (n, P) at random tokens of uint8 images (N, H, W, C)."""
    tokens = patchify(images[:1], view).shape[1]
    chosen = torch.arange(len(images) * tokens)
    if len(chosen) > count:
        keys = philox(stream(seed, "patches"), 0, chosen, 1)[:, 0, 0]
        chosen = keys.argsort(stable=True)[:count]
    first, made = 0, []
    for some in images.split(AT_ONCE):  # all patches of all images would not fit in memory
        patches = patchify(some, view).flatten(0, 1)
        here = ((chosen >= first) & (chosen < first + len(patches))).nonzero().flatten()
        made.append((here, patches[chosen[here] - first]))
        first += len(patches)
    rows, patches = (torch.cat(parts) for parts in zip(*made))
    return patches[rows.argsort()]


def fit_tokenizer(
    kind: str, images: Tensor, *, patch: int, d: int, scale: str, count: int, seed: int
) -> LinearTokenizer:
    """Fits on uint8 images (N, H, W, C); pixels are first normalised to unit variance a channel."""
    view = ImageView(patch, *channel_statistics(images))
    patches = random_patches(images, view, count, seed)
    if kind == "pixel":
        fitted = fit_pixel(patches, scale, view)
    elif kind == "pca":
        fitted = fit_pca(patches, d, scale, view)
    elif kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    else:
        fitted = fit_patch_ae(patches, d, scale, view, variational=kind == "patch-vae", seed=seed)
    return replace(fitted, image_size=images.shape[1])
