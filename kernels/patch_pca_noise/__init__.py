"""patch_pca_noise: uint8 images to noisy PCA latents or patches in one op."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .. import triton_launch
from ..implementation import (
    Implementation,
    Kind,
    choose,
    refuse,
    require_device,
    require_float_dtype,
    require_floats,
)
from ..normal import check_key
from ..normal.cpp import refusal
from ..normal.cuda import refusal as cuda_refusal
from ..patches import ImageView, check_basis, check_images
from . import cpp, cuda, reference, triton_kernel

IMPLEMENTATIONS = {
    "cpp": Implementation(cpp.patch_pca_noise, refusal),
    "triton": Implementation(triton_kernel.patch_pca_noise, triton_launch.refusal),
    "cuda": Implementation(cuda.patch_pca_noise, cuda_refusal),
    "reference": Implementation(reference.patch_pca_noise),
}


def patch_pca_noise(
    images: Tensor,
    basis: Tensor,
    center: Tensor,
    scale: Tensor,
    gamma: Tensor,
    sigma: Tensor,
    sample_ids: Tensor,
    *,
    seed: int,
    step: int,
    view: ImageView,
    outputs: tuple[str, ...] = ("noisy_latents",),
    flip: Tensor | None = None,
    crop: Tensor | None = None,
    size: int | None = None,
    dtype: torch.dtype = torch.float32,
    impl: str = "auto",
) -> dict[str, Tensor]:
    """Crop, mirror, normalise, patchify, project on d components, scale, add noise.

    images: uint8 (B, H, W, C), or float (B, C, H, W). basis: V_d (d, P) with orthonormal rows, over
    the P values of a patch by row, column, channel, the channel fastest. center: (P,), the mean
    patch. scale: (d,), standard deviation by which each latent is divided. gamma, sigma: (B,), all
    five of any float dtype. sample_ids: (B,) int64, the key of each sample's noise with seed (64
    bits) and step (32), both unsigned. flip: (B,) bool. crop: (B, 2) int64 top left corners of a
    (size, size) window, in pixels.
    outputs: any of clean_latents, noisy_latents, noise (B, T, d) and noisy_patches (B, T, P).
    Returns a dict with these, in `dtype`. Raises ValueError naming a bad argument. The equations
    are those of arXiv 2401.14404, section 4. Only impl="reference" is differentiable, since images
    are data; "auto" takes it where an argument requires a gradient.

    >>> images = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    >>> made = patch_pca_noise(
    ...     images, torch.eye(48)[:5], torch.zeros(48), torch.ones(5), torch.ones(2), torch.ones(2),
    ...     torch.arange(2), seed=0, step=0, view=ImageView(4), outputs=("noisy_latents", "noise"),
    ... )
    >>> {name: tuple(t.shape) for name, t in made.items()}
    {'noisy_latents': (2, 4, 5), 'noise': (2, 4, 5)}
    """
    op = "patch_pca_noise"
    outputs = listed(op, outputs)
    require_floats(op, basis=basis, center=center, scale=scale, gamma=gamma, sigma=sigma)
    check_images(op, images, view, flip, crop, size)
    check_tokenizer(op, basis, center, scale, view)
    batch = images.shape[0]
    check_key(op, seed, step, sample_ids)
    require_device(op, images, basis=basis, sample_ids=sample_ids)
    for name, value in (("gamma", gamma), ("sigma", sigma), ("sample_ids", sample_ids)):
        if value.shape != (batch,):
            refuse(op, name, (batch,), value.shape)
    require_float_dtype(op, dtype)
    wanted = Kind(images.device, dtype)
    constants = {"images": images, "basis": basis, "center": center, "scale": scale,
                 "gamma": gamma, "sigma": sigma}  # fmt: skip
    run = choose(op, impl, IMPLEMENTATIONS, wanted, constants)
    return run(images, basis, center, scale, gamma, sigma, sample_ids, seed, step, view,
               outputs, flip, crop, size, dtype)  # fmt: skip


def listed(op: str, outputs: Iterable[str]) -> tuple[str, ...]:
    """The outputs asked for, each once; ValueError where one is none."""
    names = tuple(outputs) if isinstance(outputs, (tuple, Iterable)) else ()
    if not names or any(name not in reference.OUTPUTS for name in names):
        refuse(op, "outputs", f"some of {', '.join(reference.OUTPUTS)}", outputs)
    return tuple(dict.fromkeys(names))


def check_tokenizer(op: str, basis: Tensor, center: Tensor, scale: Tensor, view: ImageView) -> None:
    """ValueError that names the first that is not for the view's patches."""
    values, d = check_basis(op, basis, view), basis.shape[0]
    if center.shape != (values,):
        refuse(op, "center", f"({values},)", center.shape)
    if scale.shape != (d,):
        refuse(op, "scale", f"({d},)", scale.shape)
