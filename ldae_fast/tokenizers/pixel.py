"""The tokenizer that changes nothing: noise then falls on normalised pixels (Fig. 5)."""

import torch
from torch import Tensor

from ..ops import ImageView
from .linear import LinearTokenizer, latent_scale


def fit_pixel(patches: Tensor, scale: str, view: ImageView) -> LinearTokenizer:
    """patches: (n, P) normalised, measured for their variance alone. V = I, d = P, center 0."""
    values = patches.shape[1]
    variance = patches.double().var(0).float()
    divisor = latent_scale(scale, variance, values)
    eye, center = torch.eye(values), torch.zeros(values)
    return LinearTokenizer(eye, center, divisor, variance, view, kind="pixel")
