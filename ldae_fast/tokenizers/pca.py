"""Patch-wise PCA by eigendecomposition of the covariance of random patches (section 4)."""

import torch
from torch import Tensor

from ..ops import ImageView
from .linear import LinearTokenizer, latent_scale


def fit_pca(patches: Tensor, d: int, scale: str, view: ImageView) -> LinearTokenizer:
    """patches: (n, P) normalised. Float64 inside. Raises ValueError when d > P or n < 2.

    Deterministic sign: the entry of largest magnitude in each row of V is positive.
    """
    n, values = patches.shape
    if not 0 < d <= values:
        raise ValueError(f"tokenizer.d must be 1 to {values}, the values of a patch; got {d}")
    if n < 2:
        raise ValueError(f"PCA needs at least 2 patches; got {n}")
    x = patches.double()
    center = x.mean(0)
    x = x - center
    variance, vectors = torch.linalg.eigh(x.T @ x / (n - 1))  # rising variance
    variance, basis = variance.flip(0).clamp_min(0), vectors.flip(1).T
    largest = basis.gather(1, basis.abs().argmax(1, keepdim=True))
    basis = (basis * largest.sign()).float().contiguous()
    variance = variance.float()
    return LinearTokenizer(basis, center.float(), latent_scale(scale, variance, d), variance, view)
