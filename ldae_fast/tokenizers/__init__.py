"""Tokenizers: fit on sampled images, then encode patches to latents and decode them back."""

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
    x = images.double().flatten(0, 2) / 255
    return tuple(x.mean(0).tolist()), tuple(x.std(0).clamp_min(1e-3).tolist())


def random_patches(images: Tensor, view: ImageView, count: int, seed: int) -> Tensor:
    """At most `count` patches (n, P) at random tokens of uint8 images (N, H, W, C)."""
    patches = patchify(images, view).flatten(0, 1)
    if len(patches) <= count:
        return patches
    keys = philox(stream(seed, "patches"), 0, torch.arange(len(patches)), 1)[:, 0, 0]
    return patches[keys.argsort(stable=True)[:count]]


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
