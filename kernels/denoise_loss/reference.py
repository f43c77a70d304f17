"""The weighted PCA-residue loss against the original image: the definition.

r = V_d (x_0 - pred) per patch, loss = lambda (sum_i c_i r_i^2 + rest |x_0 - pred|^2), as a mean
over the T * P values of a sample, so that its size does not depend on the image's.

With the full basis, c = w and rest = 0 this is arXiv 2401.14404, equation 6. V is orthonormal, so
sum_i w_i r_i^2 with w = kept on the rows of V_d and w = rest on all others equals the same with
c = kept - rest on V_d alone: exact, and P/d times less work.
"""

import torch
from torch import Tensor

from ..implementation import without_autocast
from ..patches import ImageView, patchify


@without_autocast
def denoise_loss(
    pred: Tensor,
    images: Tensor,
    basis: Tensor,
    excess: Tensor,
    rest: float,
    level_weight: Tensor,
    view: ImageView,
    flip: Tensor | None,
    crop: Tensor | None,
    size: int | None,
) -> Tensor:
    compute = torch.float64 if pred.dtype == torch.float64 else torch.float32
    target = patchify(images, view, flip=flip, crop=crop, size=size, dtype=compute)
    error = target - pred.to(compute)  # (B, T, P)
    residue = error @ basis.to(compute).T  # (B, T, d)
    total = (residue.square() * excess.to(compute)).sum(dim=(1, 2))
    if rest:
        total = total + rest * error.square().sum(dim=(1, 2))
    return level_weight.to(compute) * total / (error.shape[1] * error.shape[2])


@without_autocast
def denoise_loss_and_gradient(
    pred: Tensor,
    images: Tensor,
    basis: Tensor,
    excess: Tensor,
    rest: float,
    level_weight: Tensor,
    view: ImageView,
    flip: Tensor | None,
    crop: Tensor | None,
    size: int | None,
    upstream: Tensor,
) -> tuple[Tensor, Tensor]:
    """The loss, and dpred = -2 lambda upstream (V^T c r + rest e) / (T P) with e = x_0 - pred."""
    compute = torch.float64 if pred.dtype == torch.float64 else torch.float32
    basis, level_weight = basis.to(compute), level_weight.to(compute)
    target = patchify(images, view, flip=flip, crop=crop, size=size, dtype=compute)
    error = target - pred.to(compute)  # (B, T, P)
    weighted = (error @ basis.T) * excess.to(compute) @ basis + rest * error
    count = error.shape[1] * error.shape[2]
    loss = level_weight * (error * weighted).sum(dim=(1, 2)) / count
    slope = -2 * level_weight * upstream.to(compute) / count
    return loss, (slope[:, None, None] * weighted).to(pred.dtype)
