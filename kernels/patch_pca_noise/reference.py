"""images -> patches -> PCA latents -> noisy latents -> noisy patches: the definition.

z_0 = V_d (x_0 - mean) / scale                 patch-wise PCA
z_t = gamma_t z_0 + sigma_t eps                forward process
x_t = V_d^T (scale z_t) + mean                 inverse PCA
(arXiv 2401.14404, section 4 and equation 1)
"""

import torch
from torch import Tensor

from ..implementation import without_autocast
from ..normal.reference import normal
from ..patches import ImageView, patchify

OUTPUTS = ("clean_latents", "noisy_latents", "noisy_patches", "noise")


@without_autocast
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
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    basis, center, scale = (t.to(compute) for t in (basis, center, scale))
    patches = patchify(images, view, flip=flip, crop=crop, size=size, dtype=compute)  # (B, T, P)
    made = {"clean_latents": (patches - center) @ (basis / scale[:, None]).T}  # (B, T, d)
    if set(outputs) != {"clean_latents"}:
        shape = made["clean_latents"].shape
        eps = normal(seed, step, sample_ids, shape[1] * shape[2], compute).view(shape)
        made["noise"] = eps
        noisy = gamma.to(compute)[:, None, None] * made["clean_latents"]
        made["noisy_latents"] = noisy + sigma.to(compute)[:, None, None] * eps
    if "noisy_patches" in outputs:
        made["noisy_patches"] = made["noisy_latents"] @ (basis * scale[:, None]) + center
    return {name: made[name].to(dtype) for name in outputs}
