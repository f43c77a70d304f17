"""denoise_loss on a GPU: a tile of tokens is read from memory once, for value and gradient.

The gradient needs V_d e of whole tokens before its first value, so a program goes over its tile
twice; the second time it lies in the L2 cache.
"""

import torch
from torch import Tensor

from ..triton_launch import MISSING, launch
from .fused import call, register_autograd

MOST = 1024  # components that one program can hold

if not MISSING:
    import triton
    import triton.language as tl

    @triton.jit
    def errors(
        pred, images, norm, pixel0, k, keep, values, sh, sw, sc, mirrored,
        PATCH: tl.constexpr, CHANNELS: tl.constexpr,
    ):  # fmt: skip
        """x_0 - pred of values k of each token; pred and pixel0 point at the tokens' first ones."""
        channel, pixel = k % CHANNELS, k // CHANNELS
        column = pixel % PATCH
        # From the right-hand end of a mirrored patch, one pixel back at a time.
        column = tl.where(mirrored, -column, column)
        place = (pixel // PATCH).to(tl.int64) * sh + column.to(tl.int64) * sw + channel * sc
        x = tl.load(images + pixel0[:, None] + place[None], keep, 0).to(tl.float32)
        factor = tl.load(norm + channel, k < values, 0.0)
        offset = tl.load(norm + CHANNELS + channel, k < values, 0.0)
        guess = tl.load(pred + k[None], keep, 0.0).to(tl.float32)
        return tl.where(keep, x * factor[None] - offset[None] - guess, 0.0)

    @triton.jit
    def denoise_loss_kernel(
        pred, images, basis, excess, norm, slope, flip, crop, partial, dpred,
        tokens, across, height, width, rows, columns, d, values, rest, sb, sh, sw, sc,
        PATCH: tl.constexpr, CHANNELS: tl.constexpr, FLIP: tl.constexpr, CROP: tl.constexpr,
        GRADIENT: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
    ):  # fmt: skip
        sample = tl.program_id(1).to(tl.int64)
        token = tl.program_id(0) * BM + tl.arange(0, BM)
        latent = tl.arange(0, BD)
        top, left = tl.zeros((), tl.int64), tl.zeros((), tl.int64)
        if CROP:  # kept inside the image, whatever came: nothing may read beyond it
            top = tl.minimum(tl.maximum(tl.load(crop + sample * 2), 0), rows - height)
            left = tl.minimum(tl.maximum(tl.load(crop + sample * 2 + 1), 0), columns - width)
        mirrored = False
        if FLIP:
            mirrored = tl.load(flip + sample) != 0
        column0 = token % across * PATCH
        column0 = tl.where(mirrored, width - 1 - column0, column0)
        pixel0 = sample * sb + (top + token // across * PATCH) * sh + (left + column0) * sw
        own = (sample * tokens + token)[:, None] * values
        squares = tl.zeros((BM,), tl.float32)
        z = tl.zeros((BM, BD), tl.float32)
        for start in range(0, values, BK):
            k = start + tl.arange(0, BK)
            keep = (token < tokens)[:, None] & (k < values)[None]
            e = errors(pred + own, images, norm, pixel0, k, keep, values, sh, sw, sc, mirrored,
                       PATCH, CHANNELS)  # fmt: skip
            squares += tl.sum(e * e, 1)
            here = (latent < d)[:, None] & (k < values)[None]
            v = tl.load(basis + latent[:, None] * values + k[None], here, 0.0)
            z = tl.dot(e, tl.trans(v), z, input_precision="tf32x3")
        weight = tl.load(excess + latent, latent < d, 0.0)[None]
        total = rest * tl.sum(squares) + tl.sum(tl.sum(weight * z * z, 1))
        tl.store(partial + sample * tl.num_programs(0) + tl.program_id(0), total)
        if GRADIENT:
            weighted = weight * z
            steep = tl.load(slope + sample)
            for start in range(0, values, BK):
                k = start + tl.arange(0, BK)
                keep = (token < tokens)[:, None] & (k < values)[None]
                e = errors(pred + own, images, norm, pixel0, k, keep, values, sh, sw, sc,
                           mirrored, PATCH, CHANNELS)  # fmt: skip
                here = (latent < d)[:, None] & (k < values)[None]
                v = tl.load(basis + latent[:, None] * values + k[None], here, 0.0)
                g = tl.dot(weighted, v, rest * e, input_precision="tf32x3")
                tl.store(dpred + own + k[None], (steep * g).to(dpred.dtype.element_ty), keep)

    @torch.library.triton_op("ldae_triton::denoise_loss", mutates_args=())
    def run(
        pred: Tensor, images: Tensor, basis: Tensor, excess: Tensor, level: Tensor,
        upstream: Tensor, flip: Tensor, crop: Tensor, mean: list[float], std: list[float],
        rest: float, height: int, width: int, patch: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        uint8 = images.dtype == torch.uint8
        b, h, w, c = range(4) if uint8 else (0, 2, 3, 1)
        (batch, tokens, values), d = pred.shape, basis.shape[0]
        if d > MOST:
            raise ValueError(f"denoise_loss: impl 'triton' takes a basis of at most {MOST} rows")
        # Filled from Python numbers: nothing is copied from the host.
        numbers = [1 / ((255.0 if uint8 else 1.0) * s) for s in std]
        numbers += [m / s for m, s in zip(mean, std, strict=True)]
        norm = torch.stack([level.new_full((), value) for value in numbers])
        gradient = upstream.dim() == 1
        dpred = torch.empty_like(pred) if gradient else pred.new_empty(0, tokens, values)
        scaled = level / max(tokens * values, 1)
        slope = -2 * scaled * upstream if gradient else scaled
        bd = max(16, triton.next_power_of_2(d))
        bm = min(64, max(16, 8192 // bd))
        programs = triton.cdiv(tokens, bm)
        partial = level.new_empty(batch, programs)
        launch(
            denoise_loss_kernel, (programs, batch), pred, images, basis, excess, norm, slope,
            flip.to(torch.uint8), crop, partial, dpred, tokens, width // patch, height, width,
            images.shape[h], images.shape[w], d, values, rest,
            *(images.stride(i) for i in (b, h, w, c)),
            PATCH=patch, CHANNELS=images.shape[c], FLIP=flip.dim() == 1,
            CROP=crop.shape[1:] == (2,), GRADIENT=gradient, BM=bm, BK=32 if bd <= 64 else 16, BD=bd,
            num_warps=4 if bd <= 64 and values % 32 == 0 else 8, num_stages=2,
        )  # fmt: skip
        return partial.sum(1) * scaled, dpred

    register_autograd("ldae_triton::denoise_loss")


def denoise_loss(*arguments) -> Tensor:
    """As the reference."""
    return call(run, *arguments)[0]


def denoise_loss_and_gradient(*arguments) -> tuple[Tensor, Tensor]:
    """As the reference, with pred read from memory once."""
    return call(run, *arguments)
