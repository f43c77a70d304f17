"""The weighted PCA-residue loss against the original image: the definition.

r = V (x_0 - pred) per patch, loss = lambda sum_i w_i r_i^2 (arXiv 2401.14404, equation 6), as a
mean over the T * P residues of a sample, so that its size does not depend on the image's.
"""

import torch
from torch import Tensor

from ..implementation import full_precision
from ..patches import ImageView, patchify


@full_precision
def denoise_loss(
    pred: Tensor,
    images: Tensor,
    basis: Tensor,
    weights: Tensor,
    level_weight: Tensor,
    view: ImageView,
    flip: Tensor | None,
    crop: Tensor | None,
    size: int | None,
) -> Tensor:
    compute = torch.float64 if pred.dtype == torch.float64 else torch.float32
    target = patchify(images, view, flip=flip, crop=crop, size=size, dtype=compute)
    residue = (target - pred.to(compute)) @ basis.to(compute).T  # (B, T, P)
    return level_weight.to(compute) * (residue.square() * weights.to(compute)).mean(dim=(1, 2))


@full_precision
def denoise_loss_two_level(
    pred: Tensor,
    images: Tensor,
    basis: Tensor,
    kept: float,
    rest: float,
    level_weight: Tensor,
    view: ImageView,
    flip: Tensor | None,
    crop: Tensor | None,
    size: int | None,
) -> Tensor:
    """w = kept on the rows of basis (d, P), rest on all others, without the full rotation.

    V is orthonormal, so sum_i w_i r_i^2 = rest |e|^2 + (kept - rest) |V_d e|^2: exact, P/d cheaper.
    """
    compute = torch.float64 if pred.dtype == torch.float64 else torch.float32
    target = patchify(images, view, flip=flip, crop=crop, size=size, dtype=compute)
    error = target - pred.to(compute)  # (B, T, P)
    total = rest * error.square().sum(dim=(1, 2))
    total = total + (kept - rest) * (error @ basis.to(compute).T).square().sum(dim=(1, 2))
    return level_weight.to(compute) * total / (error.shape[1] * error.shape[2])
