"""The noise op as a CUDA kernel: its folded arguments and its shapes."""

import torch
from torch import Tensor

from .. import native
from ..normal.cpp import signed
from ..patches import ImageView
from .reference import OUTPUTS

if not native.MISSING and hasattr(torch.ops.ldae, "patch_pca_noise_cuda"):

    @torch.library.register_fake("ldae::patch_pca_noise_cuda")
    def _(images, weight, bias, back, center, gamma, sigma, sample_ids, seed, step, flip, crop,
          height, width, patch, outputs, dtype):  # fmt: skip
        tokens, (values, d) = (height // patch) * (width // patch), weight.shape
        return tuple(
            images.new_empty(
                (images.shape[0], tokens, n) if outputs >> i & 1 else (0,), dtype=dtype
            )
            for i, n in enumerate((d, d, values, d))
        )


def fold(
    basis: Tensor, center: Tensor, scale: Tensor, view: ImageView, uint8: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """weight (P, d), bias (d,), back (d, P), center (P,), float32, computed in float64.

    latents = (values - offset) weight + bias, patches = latents back + center, where values are
    those of the image and offset is 128 for uint8, which keeps the sums small, 0 for floats.
    """
    unit, offset = (255.0, 128.0) if uint8 else (1.0, 0.0)
    basis, center, scale = basis.double(), center.double(), scale.double()
    # Filled from Python numbers: nothing is copied from the host.
    mean, std = (
        torch.stack([center.new_full((view.patch**2,), value) for value in of], dim=1).flatten()
        for of in (view.mean, view.std)
    )
    rows = basis / scale[:, None]  # (d, P)
    bias = rows @ ((offset / unit - mean) / std - center)
    folded = (rows / (unit * std)).T, bias, basis * scale[:, None], center
    return tuple(t.float().contiguous() for t in folded)


def patch_pca_noise(
    images: Tensor,
    basis: Tensor,
    center: Tensor,
    scale: Tensor,
    gamma: Tensor,
    sigma: Tensor,
    sample_ids: Tensor,
    seed: int,
    step: int,
    view: ImageView,
    outputs: tuple[str, ...],
    flip: Tensor | None,
    crop: Tensor | None,
    size: int | None,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    uint8 = images.dtype == torch.uint8
    height, width = images.shape[1:3] if uint8 else images.shape[2:4]
    if size is not None:
        height = width = size
    with torch.autocast("cuda", enabled=False):
        folded = fold(basis, center, scale, view, uint8)
    made = torch.ops.ldae.patch_pca_noise_cuda(
        images.contiguous() if uint8 else images.float().contiguous(),
        *folded,
        gamma.float().contiguous(),
        sigma.float().contiguous(),
        sample_ids.contiguous(),
        signed(seed),
        step,
        None if flip is None else flip.contiguous(),
        None if crop is None else crop.long().contiguous(),
        height,
        width,
        view.patch,
        sum(1 << OUTPUTS.index(name) for name in outputs),
        dtype,
    )
    return {name: made[OUTPUTS.index(name)] for name in outputs}
