"""The compiled noise op: its folded arguments and its shapes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import native
from ..normal.cpp import signed
from ..patches import ImageView
from .reference import OUTPUTS

LANES = 16  # as in csrc/patch_pca_noise.h


if not native.MISSING:

    @torch.library.register_fake("ldae::patch_pca_noise")
    def _(images, weight, bias, back, center, gamma, sigma, sample_ids, seed, step, flip, crop,
          height, width, patch, d, outputs, dtype):  # fmt: skip
        tokens = (height // patch) * (width // patch)
        sizes = (d, d, weight.shape[0], d)
        return tuple(
            images.new_empty(
                (images.shape[0], tokens, n) if outputs >> i & 1 else (0,), dtype=dtype
            )
            for i, n in enumerate(sizes)
        )


def fold(
    basis: Tensor, center: Tensor, scale: Tensor, view: ImageView, uint8: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalisation, centre, basis and scale as one product each way, padded to whole vectors.

    latents = (values - offset) weight + bias, patches = latents back + center, where values are
    those of the image and offset is 128 for uint8, which keeps the sums small, 0 for floats.
    Computed in float64. Returns weight (P, d'), bias (d'), back (d, P'), center (P').
    """
    d, values = basis.shape
    exact = {"dtype": torch.float64, "device": basis.device}
    std = torch.tensor(view.std, **exact).repeat(values // len(view.std))
    mean = torch.tensor(view.mean, **exact).repeat(values // len(view.mean))
    unit, offset = (255.0, 128.0) if uint8 else (1.0, 0.0)
    rows = basis.double() / scale.double()[:, None]  # (d, P)
    weight = (rows / (unit * std)).T
    bias = rows @ ((offset / unit - mean) / std - center.double())
    back = basis.double() * scale.double()[:, None]
    right, below = -d % LANES, -values % LANES
    padded = (F.pad(weight, (0, right)), F.pad(bias, (0, right)), F.pad(back, (0, below)),
              F.pad(center.double(), (0, below)))  # fmt: skip
    return tuple(t.float().contiguous() for t in padded)


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
    nothing = images.new_empty(0)
    made = torch.ops.ldae.patch_pca_noise(
        images.contiguous() if uint8 else images.float().contiguous(),
        *fold(basis, center, scale, view, uint8),
        gamma.float().contiguous(),
        sigma.float().contiguous(),
        sample_ids.contiguous(),
        signed(seed),
        step,
        nothing if flip is None else flip.contiguous(),
        nothing if crop is None else crop.long().contiguous(),
        height,
        width,
        view.patch,
        basis.shape[0],
        sum(1 << OUTPUTS.index(name) for name in outputs),
        dtype,
    )
    return {name: made[OUTPUTS.index(name)] for name in outputs}
