"""denoise_loss on a GPU: a small kernel lays out what every tile needs, another does the rest.

A tile of tokens is read from memory once, for value and gradient. The gradient needs V_d e of whole
tokens before its first value, so a program goes over its tile twice; the second time it lies in the
L2 cache. What depends on a value's place alone (where its pixel lies, how it is normalised) comes
from tables: it took more instructions than all else.

For bytes and a 16-bit prediction V_d e is V_d diag(f) (x - 128) - V_d pred - V_d (o - 128 f), whose
x - 128 and pred are exact in 16 bits: with V_d and V_d diag(f) cut into three 16-bit parts the
matrix instructions give float32's digits. Otherwise e is multiplied as sums of three bfloat16 parts
(bf16x6); tf32x3 cuts its operands off instead of rounding them, which biases what is squared later.
The instructions cut off what they add up, too: a few values at a time are added up so, the least
parts first, and the rest by additions that round.
"""

import torch
from torch import Tensor

from ..triton_launch import FLOAT32_PRODUCT, GATHERS_ALONG_FIRST, MISSING, launch
from .fused import call, register_autograd

MOST = 1024  # components that one program can hold
FITS = 128  # components up to which it holds them in registers
PARTS = 3  # of a float32 number in 16-bit ones
EXACT_MOST = 64  # components up to which the parts fit beside the rest
BM, BK, WARPS, STAGES = 64, 32, 4, 2  # up to 64 components: tokens and values of a tile

if not MISSING:
    import triton
    import triton.language as tl

    @triton.jit
    def store_parts(to, value, size, keep, PARTS: tl.constexpr):
        """value as a sum of PARTS numbers of the pointer's type, `size` apart in memory."""
        for part in tl.static_range(PARTS):
            piece = value.to(to.dtype.element_ty)
            tl.store(to + part * size, piece, keep)
            value -= piece.to(tl.float32)

    @triton.jit
    def denoise_prepare_kernel(
        basis, place, norm, parts, base, d, values, sh, sw, sc,
        FACTOR: tl.constexpr, OFFSET: tl.constexpr, PATCH: tl.constexpr, EXACT: tl.constexpr,
        PARTS: tl.constexpr, D: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr,
        BLOCK: tl.constexpr,
    ):  # fmt: skip
        """ROWS components a program. Everything is padded to D components and P values by zeros.

        place (2, P): from a token's first pixel to each value's, as it is and mirrored. norm
        (2, P): factor and offset. parts: 256 V_d (D, P) in float32; or EXACT, 256 V_d and 1024 V_d
        diag(factor) in parts (2, PARTS, D, P), and base (D,) = V_d offset.
        """
        CHANNELS: tl.constexpr = len(FACTOR)
        j = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        row = j.to(tl.int64)[:, None]
        total = tl.zeros((ROWS, BLOCK), tl.float32)
        for start in range(0, P, BLOCK):
            k = start + tl.arange(0, BLOCK)
            factor = tl.zeros((BLOCK,), tl.float32)
            offset = factor
            for c in tl.static_range(CHANNELS):
                factor = tl.where(k % CHANNELS == c, FACTOR[c], factor)
                offset = tl.where(k % CHANNELS == c, OFFSET[c], offset)
            here = (j < d)[:, None] & (k < values)[None]
            v = tl.load(basis + row * values + k[None], here, 0.0)
            own, inside = parts + row * P + k[None], (k < P)[None]
            if EXACT:
                image = v * factor[None] * 1024
                store_parts(own, v * 256, D * P, inside, PARTS)
                store_parts(own + PARTS * D * P, image, D * P, inside, PARTS)
                total += v * offset[None]
            else:
                tl.store(own, v * 256, inside)
            if tl.program_id(0) == 0:
                pixel = k // CHANNELS
                down, right = (pixel // PATCH).to(tl.int64) * sh, (pixel % PATCH).to(tl.int64) * sw
                channel = (k % CHANNELS).to(tl.int64) * sc
                kind = place.dtype.element_ty
                tl.store(place + k, (down + right + channel).to(kind), k < P)
                # From the right-hand end of a mirrored patch, one pixel back at a time.
                tl.store(place + P + k, (down - right + channel).to(kind), k < P)
                tl.store(norm + k, tl.where(k < values, factor, 0.0), k < P)
                tl.store(norm + P + k, tl.where(k < values, offset, 0.0), k < P)
        tl.store(base + j, tl.sum(total, 1))

    @triton.jit
    def tile(
        pred, first, valid, place, norm, k, values,
        BYTES: tl.constexpr, TURNED: tl.constexpr, P: tl.constexpr,
    ):  # fmt: skip
        """(x, pred, x_0 - pred) of values k of each token; pred and first point at the tokens.

        TURNED: the image is read with its axes exchanged, see triton_launch.GATHERS_ALONG_FIRST.
        """
        keep = valid[:, None] & (k < values)[None]
        if TURNED:
            pixel = tl.load(place + k)[:, None] + first[None]
            x = tl.load(pixel, (k < values)[:, None] & valid[None], 128 if BYTES else 0)
            x = tl.trans(x)
        else:
            x = tl.load(first[:, None] + tl.load(place + k)[None], keep, 128 if BYTES else 0)
        x = x.to(tl.float32) - 128 if BYTES else x
        guess = tl.load(pred + k[None], keep, 0.0)
        normal = x * tl.load(norm + k[None]) - tl.load(norm + P + k[None])
        return x, guess, tl.where(keep, normal - guess.to(tl.float32), 0.0)

    @triton.jit
    def denoise_loss_kernel(
        pred, images, place, norm, parts, base, excess, slope, flip, crop, partial, dpred,
        tokens, across, height, width, rows, columns, d, values, rest, sb, sh, sw,
        PATCH: tl.constexpr, FLIP: tl.constexpr, CROP: tl.constexpr, BYTES: tl.constexpr,
        TURNED: tl.constexpr, EXACT: tl.constexpr, PARTS: tl.constexpr, GRADIENT: tl.constexpr,
        PRODUCT: tl.constexpr, P: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
        BD: tl.constexpr,
    ):  # fmt: skip
        rest = tl.cast(rest, tl.float32)  # torch.compile hands a float over in float64
        tiles = tl.cdiv(tokens, BM)
        sample = (tl.program_id(0) // tiles).to(tl.int64)
        token = tl.program_id(0) % tiles * BM + tl.arange(0, BM)
        valid, latent = token < tokens, tl.arange(0, BD)
        top, left = tl.zeros((), tl.int64), tl.zeros((), tl.int64)
        if CROP:  # kept inside the image, whatever came: nothing may read beyond it
            top = tl.minimum(tl.maximum(tl.load(crop + sample * 2), 0), rows - height)
            left = tl.minimum(tl.maximum(tl.load(crop + sample * 2 + 1), 0), columns - width)
        column0 = token % across * PATCH
        if FLIP:
            mirrored = tl.load(flip + sample) != 0
            column0 = tl.where(mirrored, width - 1 - column0, column0)
            place += mirrored.to(tl.int64) * P
        first = images + sample * sb + (top + token // across * PATCH) * sh + (left + column0) * sw
        own = (sample * tokens + token)[:, None] * values
        # Where triton up to 3.6 gives a thread 16 tokens of one value, it adds up its own.
        OWN: tl.constexpr = TURNED and BYTES and BD <= 32
        squares = tl.zeros((BM // 16, BK) if OWN else (BM,), tl.float32)
        z = tl.zeros((BM, BD), tl.float32)
        if EXACT:
            z -= tl.load(base + latent)[None]
            half = pred.dtype.element_ty
        for start in range(0, P, BK):
            k = start + tl.arange(0, BK)
            x, guess, e = tile(pred + own, first, valid, place, norm, k, values, BYTES, TURNED, P)
            if OWN:
                squares += tl.sum(tl.reshape(e * e, (16, BM // 16, BK)), 0)
            else:
                squares += tl.sum(e * e, 1)
            v = parts + latent[None] * P + k[:, None]
            # The factors also keep the compiler from adding up in the matrix instructions.
            if EXACT:
                x, some, image_z = x.to(half), tl.zeros_like(z), tl.zeros_like(z)
                for less in tl.static_range(PARTS):
                    part = v + (PARTS - 1 - less) * BD * P
                    some = tl.dot(guess, tl.load(part), some)
                    image_z = tl.dot(x, tl.load(part + PARTS * BD * P), image_z)
                z += image_z * (1 / 1024) - some * (1 / 256)
            else:
                z += tl.dot(e, tl.load(v), input_precision=PRODUCT) * (1 / 256)
        if EXACT:
            z = tl.where(valid[:, None], z, 0.0)
        weight = tl.load(excess + latent, latent < d, 0.0)[None]
        total = rest * tl.sum(squares) + tl.sum(tl.sum(weight * z * z, 1))
        tl.store(partial + tl.program_id(0), total)
        if GRADIENT:
            weighted = weight * z
            steep = tl.load(slope + sample)
            if EXACT:
                high = weighted.to(half)
                low = (weighted - high.to(tl.float32)).to(half)
            for start in range(0, P, BK):
                k = start + tl.arange(0, BK)
                _, _, e = tile(pred + own, first, valid, place, norm, k, values, BYTES, TURNED, P)
                v = parts + latent[:, None] * P + k[None]
                if EXACT:
                    upper = tl.load(v)
                    g = tl.dot(high, tl.load(v + BD * P))
                    g = tl.dot(low, upper, g)
                    g = tl.dot(high, upper, g) * (1 / 256) + rest * e
                else:
                    g = tl.dot(weighted, tl.load(v), input_precision=PRODUCT) * (1 / 256)
                    g += rest * e
                keep = valid[:, None] & (k < values)[None]
                tl.store(dpred + own + k[None], (steep * g).to(dpred.dtype.element_ty), keep)

    @torch.library.triton_op("ldae_triton::denoise_loss", mutates_args=())
    def run(
        pred: Tensor, images: Tensor, basis: Tensor, excess: Tensor, level: Tensor,
        upstream: Tensor | None, flip: Tensor | None, crop: Tensor | None, mean: list[float],
        std: list[float], rest: float, height: int, width: int, patch: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        uint8 = images.dtype == torch.uint8
        b, h, w, c = range(4) if uint8 else (0, 2, 3, 1)
        (batch, tokens, values), d = pred.shape, basis.shape[0]
        if d > MOST:
            raise ValueError(f"denoise_loss: impl 'triton' takes a basis of at most {MOST} rows")
        gradient = upstream is not None
        dpred = torch.empty_like(pred) if gradient else pred.new_empty(0, tokens, values)
        scaled = level / max(tokens * values, 1)
        slope = -2 * scaled * upstream if gradient else scaled
        bd = max(16, triton.next_power_of_2(d))
        bm = min(BM, max(16, 8192 // bd))
        bk = BK if bd <= 64 else 16
        padded = triton.cdiv(values, bk) * bk
        tiles = triton.cdiv(tokens, bm)
        partial = level.new_empty(batch, tiles)
        exact = uint8 and pred.itemsize == 2 and bd <= EXACT_MOST
        factor = [1 / ((255.0 if uint8 else 1.0) * s) for s in std]
        offset = [m / s for m, s in zip(mean, std, strict=True)]
        if uint8:  # bytes are taken as x - 128
            offset = [o - 128 * f for o, f in zip(offset, factor, strict=True)]
        small = images.numel() < 2**31  # and so is every place in an image
        place = images.new_empty((2, padded), dtype=torch.int32 if small else torch.int64)
        norm, base = level.new_empty(2, padded), level.new_empty(bd)
        shape = (2, PARTS, bd, padded) if exact else (bd, padded)
        parts = pred.new_empty(shape, dtype=pred.dtype if exact else torch.float32)
        launch(
            denoise_prepare_kernel, (bd // 8 if batch * tokens else 0,),
            basis, place, norm, parts, base, d, values, *(images.stride(i) for i in (h, w, c)),
            FACTOR=tuple(factor), OFFSET=tuple(offset), PATCH=patch, EXACT=exact, PARTS=PARTS,
            D=bd, P=padded, ROWS=8,
            BLOCK=min(256, triton.next_power_of_2(padded)), num_warps=4, num_stages=1,
        )  # fmt: skip
        launch(
            denoise_loss_kernel, (batch * tiles,), pred, images, place, norm, parts, base, excess,
            slope, slope if flip is None else flip.view(torch.uint8),
            place if crop is None else crop, partial, dpred, tokens, width // patch, height,
            width, images.shape[h], images.shape[w], d, values, rest,
            *(images.stride(i) for i in (b, h, w)),
            PATCH=patch, FLIP=flip is not None, CROP=crop is not None, BYTES=uint8,
            TURNED=GATHERS_ALONG_FIRST, EXACT=exact, PARTS=PARTS, GRADIENT=gradient,
            PRODUCT=FLOAT32_PRODUCT, P=padded, BM=bm, BK=bk, BD=bd,
            num_warps=WARPS if bd <= 64 and values % 32 == 0 else 8, num_stages=STAGES,
        )  # fmt: skip
        return partial.sum(1) * scaled, dpred

    register_autograd("ldae_triton::denoise_loss")


def denoise_loss(*arguments) -> Tensor:
    """As the reference."""
    return call(torch.ops.ldae_triton.denoise_loss, *arguments)[0]


def denoise_loss_and_gradient(*arguments) -> tuple[Tensor, Tensor]:
    """As the reference, with pred read from memory once."""
    return call(torch.ops.ldae_triton.denoise_loss, *arguments)
