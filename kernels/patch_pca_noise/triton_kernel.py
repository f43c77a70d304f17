"""patch_pca_noise on a GPU: images to latents in one kernel; pixels are read once a tile of d.

Normalisation, centring and scale are folded into the columns and one bias a latent, in float64.
"""

import torch
from torch import Tensor

from ..normal.triton_kernel import signed
from ..patches import ImageView
from ..triton_launch import MISSING, launch

LATENTS = ("clean_latents", "noisy_latents", "noise")

if not MISSING:
    import triton
    import triton.language as tl

    from ..normal.triton_kernel import philox_normals

    @triton.jit(do_not_specialize=["seed_lo", "seed_hi", "step"])
    def project_kernel(
        images, shift, high, low, bias, gamma, sigma, ids, flip, crop, clean, noisy, noise,
        seed_lo, seed_hi, step, tokens, across, width, d, values, sb, sh, sw, sc,
        PATCH: tl.constexpr, CHANNELS: tl.constexpr, FLIP: tl.constexpr, CROP: tl.constexpr,
        CLEAN: tl.constexpr, NOISY: tl.constexpr, NOISE: tl.constexpr, SPLIT: tl.constexpr,
        BM: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
    ):  # fmt: skip
        sample = tl.program_id(2).to(tl.int64)
        token = tl.program_id(0) * BM + tl.arange(0, BM)
        latent = tl.program_id(1) * BD + tl.arange(0, BD)
        top, left = 0, 0
        if CROP:
            top = tl.load(crop + sample * 2)
            left = tl.load(crop + sample * 2 + 1)
        row0 = token // across * PATCH
        column0 = token % across * PATCH
        total = tl.zeros((BM, BD), tl.float32)
        for start in range(0, values, BK):
            k = start + tl.arange(0, BK)
            inside = k % (PATCH * CHANNELS)
            row = row0[:, None] + (k // (PATCH * CHANNELS))[None]
            column = column0[:, None] + (inside // CHANNELS)[None]
            if FLIP:
                column = tl.where(tl.load(flip + sample) != 0, width - 1 - column, column)
            place = (top + row).to(tl.int64) * sh + (left + column).to(tl.int64) * sw
            place += (sample * sb) + (k % CHANNELS)[None] * sc
            keep = (token < tokens)[:, None] & (k < values)[None]
            x = tl.load(images + place, keep, 0).to(tl.float32)
            x -= tl.load(shift + k, k < values, 0.0)[None]
            x = tl.where(keep, x, 0.0)
            w = k[:, None].to(tl.int64) * d + latent[None]
            keep_w = (k < values)[:, None] & (latent < d)[None]
            h = tl.load(high + w, keep_w, 0.0)
            if SPLIT:  # whole numbers up to 255 are exact in bfloat16: two products are enough
                exact = x.to(tl.bfloat16)
                total = tl.dot(exact, h, total)
                total = tl.dot(exact, tl.load(low + w, keep_w, 0.0), total)
            else:
                total = tl.dot(x, h, total, input_precision="tf32x3")
        keep = (token < tokens)[:, None] & (latent < d)[None]
        z = total + tl.load(bias + latent, latent < d, 0.0)[None]
        element = token[:, None].to(tl.int64) * d + latent[None]
        place = sample * tokens * d + element
        if CLEAN:
            tl.store(clean + place, z.to(clean.dtype.element_ty), keep)
        if NOISY or NOISE:
            n0, n1, n2, n3 = philox_normals(
                element // 4, tl.load(ids + sample).to(tl.int64), seed_lo, seed_hi, step
            )
            lane = element % 4
            eps = tl.where(lane < 2, tl.where(lane == 0, n0, n1), tl.where(lane == 2, n2, n3))
            if NOISE:
                tl.store(noise + place, eps.to(noise.dtype.element_ty), keep)
            if NOISY:
                mixed = tl.load(gamma + sample) * z + tl.load(sigma + sample) * eps
                tl.store(noisy + place, mixed.to(noisy.dtype.element_ty), keep)

    @torch.library.triton_op("ldae_triton::patch_pca_project", mutates_args=())
    def project(
        images: Tensor, shift: Tensor, high: Tensor, low: Tensor, bias: Tensor, gamma: Tensor,
        sigma: Tensor, ids: Tensor, flip: Tensor | None, crop: Tensor | None,
        seed_lo: int, seed_hi: int, step: int, patch: int, height: int, width: int,
        wanted: list[bool], dtype: torch.dtype,
    ) -> list[Tensor]:  # fmt: skip
        uint8 = images.dtype == torch.uint8
        b, h, w, c = range(4) if uint8 else (0, 2, 3, 1)
        batch, (values, d) = images.shape[0], high.shape
        across = width // patch
        tokens = (height // patch) * across
        made = [bias.new_empty((batch, tokens, d) if use else (0,), dtype=dtype) for use in wanted]
        bd = min(64, max(16, triton.next_power_of_2(d)))
        grid = (triton.cdiv(tokens, 64), triton.cdiv(d, bd), batch)
        launch(
            project_kernel, grid, images, shift, high, low, bias, gamma, sigma, ids,
            ids if flip is None else flip, ids if crop is None else crop, *made,
            seed_lo, seed_hi, step, tokens, across, width, d, values,
            *(images.stride(i) for i in (b, h, w, c)),
            PATCH=patch, CHANNELS=images.shape[c], FLIP=flip is not None, CROP=crop is not None,
            CLEAN=wanted[0], NOISY=wanted[1], NOISE=wanted[2],
            SPLIT=high.dtype == torch.bfloat16, BM=64, BK=32, BD=bd,
            num_warps=4 if bd < 32 else 8, num_stages=2,
        )  # fmt: skip
        return made


def fold(basis, center, scale, view: ImageView, unit: float, whole: bool):
    """(shift (P,), columns (P, d), bias (d,)) with z = (x - shift) @ columns + bias, float64."""
    p2 = view.patch**2
    basis, center, scale = basis.double(), center.double(), scale.double()
    # Filled from Python numbers: nothing is copied from the host.
    fill = [torch.full((p2,), unit * s, dtype=basis.dtype, device=basis.device) for s in view.std]
    std = torch.stack(fill, dim=1).flatten()
    fill = [torch.full((p2,), m, dtype=basis.dtype, device=basis.device) for m in view.mean]
    mean = torch.stack(fill, dim=1).flatten() * unit
    middle = mean + center * std  # the mean patch in units of the image
    shift = middle.round().clamp(0, 255) if whole else middle.float().double()
    columns = (basis / scale[:, None] / std).T.contiguous()  # (P, d)
    return shift, columns, (shift - middle) @ columns


def patch_pca_noise(
    images, basis, center, scale, gamma, sigma, sample_ids, seed, step,
    view: ImageView, outputs, flip, crop, size, dtype,
) -> dict[str, Tensor]:  # fmt: skip
    """As the reference. The inverse PCA is a matrix product of torch after the kernel."""
    uint8 = images.dtype == torch.uint8
    height, width = images.shape[1:3] if uint8 else images.shape[2:4]
    if size is not None:
        height = width = size
    unit = 255.0 if uint8 else 1.0
    shift, columns, bias = fold(basis, center, scale, view, unit, uint8)
    inverse = "noisy_patches" in outputs
    exact = uint8 and dtype == torch.bfloat16 and not inverse
    high = columns.to(torch.bfloat16 if exact else torch.float32)
    low = (columns - high.double()).to(torch.bfloat16) if exact else high
    wanted = [n in outputs or (inverse and n == "noisy_latents") for n in LATENTS]
    made = project(
        images, shift.float(), high, low, bias.float(), gamma.float().contiguous(),
        sigma.float().contiguous(), sample_ids.contiguous(),
        None if flip is None else flip.to(torch.uint8).contiguous(),
        None if crop is None else crop.long().contiguous(),
        signed(seed), signed(seed >> 32), signed(step), view.patch, height, width, wanted,
        torch.float32 if inverse else dtype,
    )  # fmt: skip
    result = dict(zip(LATENTS, made, strict=True))
    if inverse:
        with torch.autocast(images.device.type, enabled=False):
            scaled = basis.float() * scale.float()[:, None]
            result["noisy_patches"] = result["noisy_latents"] @ scaled + center.float()
    return {name: result[name].to(dtype) for name in outputs}
