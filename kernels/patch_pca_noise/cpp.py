"""The compiled noise op; normalisation, centre and scale are folded into its products."""

import torch
from torch import Tensor

from .. import native
from ..normal.cpp import signed
from ..patches import ImageView
from .reference import OUTPUTS

if not native.MISSING:

    @torch.library.register_fake("ldae::patch_pca_noise")
    def _(images, basis, center, scale, gamma, sigma, sample_ids, seed, step, flip, crop,
          mean, std, height, width, patch, outputs, dtype):  # fmt: skip
        tokens, (d, values) = (height // patch) * (width // patch), basis.shape
        return tuple(
            images.new_empty(
                (images.shape[0], tokens, n) if outputs >> i & 1 else (0,), dtype=dtype
            )
            for i, n in enumerate((d, d, values, d))
        )


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
    made = torch.ops.ldae.patch_pca_noise(
        images.contiguous() if uint8 else images.float().contiguous(),
        basis,
        center,
        scale,
        gamma.float().contiguous(),
        sigma.float().contiguous(),
        sample_ids.contiguous(),
        signed(seed),
        step,
        None if flip is None else flip.contiguous(),
        None if crop is None else crop.long().contiguous(),
        view.mean,
        view.std,
        height,
        width,
        view.patch,
        sum(1 << OUTPUTS.index(name) for name in outputs),
        dtype,
    )
    return {name: made[OUTPUTS.index(name)] for name in outputs}
