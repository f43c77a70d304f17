"""PatchPCANoise: the noise op with its tokenizer as buffers."""

import torch
from torch import Tensor, nn

from ..implementation import require_float_dtype, require_floats, require_impl, require_whole
from ..patches import ImageView
from . import IMPLEMENTATIONS, check_tokenizer, listed, patch_pca_noise


class PatchPCANoise(nn.Module):
    """Images to noisy PCA latents with a fixed basis.

    basis: (d, P), center: (P,), scale: (d,), over the P values of a patch by row, column, channel,
    the channel fastest; these, view, seed, outputs, dtype and impl are as in `patch_pca_noise`.
    Raises ValueError naming a bad setting, and in forward a bad argument. Source: arXiv 2401.14404,
    section 4.

    >>> make = PatchPCANoise(torch.eye(48)[:8], torch.zeros(48), torch.ones(8), ImageView(4))
    >>> images, ones = torch.zeros(2, 8, 8, 3, dtype=torch.uint8), torch.ones(2)
    >>> make(images, ones, ones, torch.arange(2), step=0)["noisy_latents"].shape
    torch.Size([2, 4, 8])
    """

    def __init__(
        self,
        basis: Tensor,
        center: Tensor,
        scale: Tensor,
        view: ImageView,
        seed: int = 0,
        outputs: tuple[str, ...] = ("noisy_latents",),
        dtype: torch.dtype = torch.float32,
        impl: str = "auto",
    ):
        super().__init__()
        op = "PatchPCANoise"
        require_floats(op, basis=basis, center=center, scale=scale)
        check_tokenizer(op, basis, center, scale, view)
        require_whole(op, "seed", seed, bits=64)
        require_float_dtype(op, dtype)
        require_impl(op, impl, IMPLEMENTATIONS)
        self.register_buffer("basis", basis)
        self.register_buffer("center", center)
        self.register_buffer("scale", scale)
        self.view, self.seed, self.dtype, self.impl = view, seed, dtype, impl
        self.outputs = listed(op, outputs)

    def forward(
        self, images: Tensor, gamma: Tensor, sigma: Tensor, sample_ids: Tensor, *, step: int, **view
    ) -> dict[str, Tensor]:
        """images: uint8 (B, H, W, C) or float (B, C, H, W). gamma, sigma: (B,), float; sample_ids:
        (B,) int64. view: flip, crop and size of `patch_pca_noise`, whose dict it returns."""
        return patch_pca_noise(
            images, self.basis, self.center, self.scale, gamma, sigma, sample_ids, seed=self.seed,
            step=step, view=self.view, outputs=self.outputs, dtype=self.dtype,
            impl=self.impl, **view,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return (
            f"basis={tuple(self.basis.shape)}, view={self.view}, seed={self.seed}, "
            f"outputs={self.outputs}, dtype={self.dtype}, impl={self.impl!r}"
        )
