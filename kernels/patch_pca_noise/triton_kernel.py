"""patch_pca_noise on a GPU: a small kernel folds the tokenizer, another does the rest.

Bytes are multiplied as they are, by the 8-bit matrix instructions: a weight is a whole number of
22 bits (30 for float32), relative to the largest of its latent, and cut into 3 (4) signed digits of
base 256. Every product and sum is then exact, pixels need no conversion but one bit flipped
(x - 128 as a signed byte), and the mean patch cancels in whole numbers. Float images take
float32 weights and tf32x3 products.
"""

import math

import torch
from torch import Tensor

from ..normal.triton_kernel import signed
from ..patches import ImageView
from ..triton_launch import MISSING, launch
from .reference import OUTPUTS

FUSED = 128  # up to so many latents one program holds all, and can make the noisy patches itself

if not MISSING:
    import triton
    import triton.language as tl

    from ..normal.triton_kernel import philox_normals

    @triton.jit
    def image_weights(
        row, center, k, scale, values, bk, ck,
        MEAN: tl.constexpr, STD: tl.constexpr, UNIT: tl.constexpr,
    ):  # fmt: skip
        """(weights of a latent on values k of the image, the mean patch in the image's units)."""
        mean = tl.zeros(k.shape, tl.float64)
        std = mean
        for c in tl.static_range(len(MEAN)):
            here = (k % len(MEAN) == c).to(tl.float64)
            mean += here * (MEAN[c] * UNIT)
            std += here * (STD[c] * UNIT)
        own = tl.load(row + k.to(tl.int64) * bk, k < values, 0.0)
        middle = tl.load(center + k.to(tl.int64) * ck, k < values, 0.0)
        return own.to(tl.float64) / (scale * std), mean + middle.to(tl.float64) * std

    @triton.jit
    def noise_fold_kernel(
        basis, center, scale, weights, latents, patch, back, d, values, bj, bk, ck, sj,
        MEAN: tl.constexpr, STD: tl.constexpr, BYTES: tl.constexpr, DIGITS: tl.constexpr,
        MIRROR: tl.constexpr, INVERSE: tl.constexpr, HALVES: tl.constexpr, PATCH: tl.constexpr,
        D: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        """Normalisation, centre, basis and scale as one product, computed in float64.

        A program a latent. weights: digits (mirrored too, digit, D, P), or float32 (D, P).
        latents (4, D): unit of the digits, bias beyond the whole one, whole bias in units of the
        last digit, scale. patch (2, P): centre, shift of float images. back: the basis for the
        inverse, float32 (D, P), or 256 times it as two float16 (2, D, P). P is padded by zeros, D
        by copies of the last latent with a scale of 0.
        """
        CHANNELS: tl.constexpr = len(MEAN)
        UNIT: tl.constexpr = 255.0 if BYTES else 1.0
        BITS: tl.constexpr = 8 * DIGITS - 2
        TOP: tl.constexpr = 1 << (8 * DIGITS - 8)  # value of the last digit
        j = tl.program_id(0).to(tl.int64)
        own_j = tl.minimum(j, d - 1)
        row = basis + own_j * bj
        divisor = tl.load(scale + own_j * sj).to(tl.float64)
        factor = tl.full((), 1.0, tl.float64)
        if BYTES:
            largest = tl.zeros((BLOCK,), tl.float64)
            for start in range(0, P, BLOCK):
                k = start + tl.arange(0, BLOCK)
                w, _ = image_weights(row, center, k, divisor, values, bk, ck, MEAN, STD, UNIT)
                largest = tl.maximum(largest, tl.abs(w))
            # Its exponent, within what leaves 2^+-shift a normal float32; 1023 stands for 2^0.
            exponent = tl.max(largest, 0).to(tl.int64, bitcast=True) >> 52
            exponent = tl.minimum(tl.maximum(exponent, BITS + 900), BITS + 1140)
            factor = ((2045 + BITS - exponent) << 52).to(tl.float64, bitcast=True)
        bias = tl.zeros((BLOCK,), tl.float64)
        for start in range(0, P, BLOCK):
            k = start + tl.arange(0, BLOCK)
            w, middle = image_weights(row, center, k, divisor, values, bk, ck, MEAN, STD, UNIT)
            if BYTES:
                w = tl.floor(w * factor + 0.5)
                bias += w * tl.where(k < values, 128 - middle, 0.0)
                rest = w.to(tl.int32)
                inside = k % (PATCH * CHANNELS)
                # where the weight goes for a mirrored image: the columns of its patch row turned
                turned = k - inside + (PATCH - 1 - inside // CHANNELS) * CHANNELS + k % CHANNELS
                turned = tl.where(k < values, turned, k)
                for digit in tl.static_range(DIGITS):
                    low = ((rest + 128) & 255) - 128
                    rest = (rest - low) >> 8
                    at = weights + (digit * D + j) * P
                    tl.store(at + k, low.to(tl.int8), k < P)
                    if MIRROR:
                        tl.store(at + DIGITS * D * P + turned, low.to(tl.int8), k < P)
            else:
                shift = middle.to(tl.float32)
                bias += tl.where(k < values, w * (shift.to(tl.float64) - middle), 0.0)
                tl.store(weights + j * P + k, w.to(tl.float32), k < P)
                if j == 0:
                    tl.store(patch + P + k, shift, k < P)
            if INVERSE:
                own = tl.load(row + k.to(tl.int64) * bk, k < values, 0.0).to(tl.float32)
                if HALVES:  # 256 keeps the lower halves of usual values out of the subnormals
                    own *= 256
                    high = own.to(tl.float16)
                    tl.store(back + j * P + k, high, k < P)
                    tl.store(back + (D + j) * P + k, (own - high).to(tl.float16), k < P)
                else:
                    tl.store(back + j * P + k, own, k < P)
                if j == 0:
                    mean = tl.load(center + k.to(tl.int64) * ck, k < values, 0.0)
                    tl.store(patch + k, mean.to(tl.float32), k < P)
        total = tl.sum(bias, 0)
        whole = tl.full((), 0.0, tl.float64)
        if BYTES:
            # As a float32, which may be no whole multiple of TOP: what is left goes the other way.
            whole = tl.minimum(tl.maximum(total / TOP, -1073741824.0), 1073741824.0)
            whole = tl.floor(whole).to(tl.float32).to(tl.float64)
        tl.store(latents + j, (1 / factor).to(tl.float32))
        tl.store(latents + D + j, ((total - whole * TOP) / factor).to(tl.float32))
        tl.store(latents + 2 * D + j, whole.to(tl.float32))
        tl.store(latents + 3 * D + j, tl.where(j < d, divisor, 0.0).to(tl.float32))

    @triton.jit
    def normals(
        token, part, key, seed_lo, seed_hi, step, d,
        GROUP: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
    ):  # fmt: skip
        """The noise of the tokens' latents part * BD and on, (BM, BD)."""
        if GROUP % 4 == 0:  # the four normals of a counter belong to one token
            block = token[:, None] * (d // 4) + part * (BD // 4) + tl.arange(0, BD // 4)[None]
            n0, n1, n2, n3 = philox_normals(block, key, seed_lo, seed_hi, step)
            eps = tl.reshape(tl.join(tl.join(n0, n2), tl.join(n1, n3)), (BM, BD))
        else:
            element = token[:, None] * d + part * BD + tl.arange(0, BD)[None]
            n0, n1, n2, n3 = philox_normals(element // 4, key, seed_lo, seed_hi, step)
            lane = element % 4
            eps = tl.where(lane < 2, tl.where(lane == 0, n0, n1), tl.where(lane == 2, n2, n3))
        return eps

    @triton.jit(do_not_specialize=["seed_lo", "seed_hi", "step"])
    def noise_project_kernel(
        images, weights, latents, patch, back, gamma, sigma, ids, flip, crop,
        clean, noisy, patches, noise, seed_lo, seed_hi, step, tokens, across, width, height, rows,
        columns, d, values, sb, sh, sw, sc,
        PATCH: tl.constexpr, CHANNELS: tl.constexpr, FLIP: tl.constexpr, CROP: tl.constexpr,
        CLEAN: tl.constexpr, NOISY: tl.constexpr, PATCHES: tl.constexpr, NOISE: tl.constexpr,
        BYTES: tl.constexpr, DIGITS: tl.constexpr, HALVES: tl.constexpr, CHUNK: tl.constexpr,
        GROUP: tl.constexpr, VALUES: tl.constexpr, D: tl.constexpr, P: tl.constexpr,
        BM: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, EARLY: tl.constexpr,
    ):  # fmt: skip
        """A tile of BM tokens x BD latents of one sample.

        CHUNK: so many values of a patch row lie side by side, aligned; 1: nothing is known. GROUP,
        VALUES: divisors of d and P that make accesses wide; triton would see none but 16. EARLY:
        the noise is made while the first pixels are under way, not after the last.
        """
        tile = tl.program_id(0) // (D // BD)
        tiles = tl.cdiv(tokens, BM)
        sample = (tile // tiles).to(tl.int64)
        token = tile % tiles * BM + tl.arange(0, BM)
        part = tl.program_id(0) % (D // BD)
        latent = part * BD + tl.arange(0, BD)
        valid = (token < tokens)[:, None]
        across_token = token % across
        row0 = (token // across).to(tl.int64) * PATCH
        mirrored = False
        if FLIP:
            mirrored = tl.load(flip + sample) != 0
        if CHUNK > 1:
            # A mirrored image is its tokens from right to left, times mirrored weights.
            if FLIP:
                across_token = tl.where(mirrored, across - 1 - across_token, across_token)
                weights += mirrored.to(tl.int64) * (DIGITS * D * P)
            corner = (row0 * sh + across_token * (PATCH * CHANNELS))[:, None]
        top, left = 0, 0
        if CROP:  # kept inside the image, whatever came: nothing may read beyond it
            top = tl.minimum(tl.maximum(tl.load(crop + sample * 2), 0), rows - height)
            left = tl.minimum(tl.maximum(tl.load(crop + sample * 2 + 1), 0), columns - width)
        images += sample * sb
        if BYTES:
            t0 = tl.zeros((BM, BD), tl.int32)
            t1, t2, t3 = t0, t0, t0
        else:
            total = tl.zeros((BM, BD), tl.float32)
        key = tl.load(ids + sample).to(tl.int64)
        eps = tl.zeros((BM, BD), tl.float32)
        for start in range(0, P, BK):
            if EARLY and start == 0:
                eps = normals(token, part, key, seed_lo, seed_hi, step, d, GROUP, BM, BD)
            k = start + tl.arange(0, BK)
            if CHUNK > 1:
                ROW: tl.constexpr = PATCH * CHANNELS // CHUNK
                chunk = k // CHUNK
                place = (chunk // ROW).to(tl.int64) * sh + chunk % ROW * CHUNK + k % CHUNK
                keep = valid & (chunk < values // CHUNK)[None]
                x = tl.load(images + (corner + place[None]), keep, 0)
            else:
                row = row0[:, None] + (k // (PATCH * CHANNELS))[None]
                column = across_token[:, None] * PATCH + (k // CHANNELS % PATCH)[None]
                if FLIP:
                    column = tl.where(mirrored, width - 1 - column, column)
                place = (top + row) * sh + (left + column).to(tl.int64) * sw
                keep = valid & (k < values)[None]
                x = tl.load(images + (place + (k % CHANNELS)[None] * sc), keep, 0)
            if BYTES:  # what lies outside meets weights of zero
                x = (x ^ 128).to(tl.int8, bitcast=True)
                w = weights + latent[None] * P + k[:, None]
                t0 = tl.dot(x, tl.load(w), t0, out_dtype=tl.int32)
                t1 = tl.dot(x, tl.load(w + D * P), t1, out_dtype=tl.int32)
                t2 = tl.dot(x, tl.load(w + 2 * D * P), t2, out_dtype=tl.int32)
                if DIGITS == 4:
                    t3 = tl.dot(x, tl.load(w + 3 * D * P), t3, out_dtype=tl.int32)
            else:
                x = x.to(tl.float32) - tl.load(patch + P + k)[None]
                w = tl.load(weights + latent[None] * P + k[:, None])
                total = tl.dot(x, w, total, input_precision="tf32x3")
        if BYTES:
            whole = tl.load(latents + 2 * D + latent).to(tl.int32)[None]
            if DIGITS == 4:
                last = t2.to(tl.float32) + (t3 + whole).to(tl.float32) * 256
            else:
                last = (t2 + whole).to(tl.float32)
            total = t0.to(tl.float32) + 256 * (t1.to(tl.float32) + 256 * last)
        z = total * tl.load(latents + latent)[None] + tl.load(latents + D + latent)[None]
        at = (sample * tokens + token)[:, None]
        place = at * (d // GROUP) * GROUP + latent[None]
        keep = valid & (latent // GROUP < d // GROUP)[None]
        if CLEAN:
            tl.store(clean + place, z.to(clean.dtype.element_ty), keep)
        if NOISY or NOISE or PATCHES:
            if not EARLY:
                eps = normals(token, part, key, seed_lo, seed_hi, step, d, GROUP, BM, BD)
            if NOISE:
                tl.store(noise + place, eps.to(noise.dtype.element_ty), keep)
            if NOISY or PATCHES:
                z = tl.load(gamma + sample) * z + tl.load(sigma + sample) * eps
                if NOISY:
                    tl.store(noisy + place, z.to(noisy.dtype.element_ty), keep)
            if PATCHES:
                z *= tl.load(latents + 3 * D + latent)[None]
                if HALVES:
                    high = z.to(tl.float16)
                    low = (z - high.to(tl.float32)).to(tl.float16)
                for first in range(0, P, BN):
                    value = first + tl.arange(0, BN)
                    b = back + latent[:, None] * P + value[None]
                    if HALVES:
                        upper = tl.load(b)
                        x_t = tl.dot(high, tl.load(b + D * P))
                        x_t = tl.dot(low, upper, x_t)
                        x_t = tl.dot(high, upper, x_t) * (1 / 256)
                    else:
                        x_t = tl.dot(z, tl.load(b), input_precision="tf32x3")
                    x_t += tl.load(patch + value)[None]
                    whole_row = at * (values // VALUES) * VALUES + value[None]
                    inside = valid & (value // VALUES < values // VALUES)[None]
                    tl.store(patches + whole_row, x_t.to(patches.dtype.element_ty), inside)

    @torch.library.triton_op("ldae_triton::patch_pca_noise", mutates_args=())
    def run(
        images: Tensor, basis: Tensor, center: Tensor, scale: Tensor, gamma: Tensor,
        sigma: Tensor, ids: Tensor, flip: Tensor | None, crop: Tensor | None, seed_lo: int,
        seed_hi: int, step: int, patch: int, height: int, width: int, mean: list[float],
        std: list[float], wanted: list[bool], dtype: torch.dtype,
    ) -> list[Tensor]:  # fmt: skip
        """The wanted ones of OUTPUTS, the others empty."""
        uint8 = images.dtype == torch.uint8
        b, h, w, c = range(4) if uint8 else (0, 2, 3, 1)
        batch, channels, (d, values) = images.shape[0], images.shape[c], basis.shape
        across = width // patch
        tokens = height // patch * across
        made = [
            images.new_empty((batch, tokens, n) if use else (0,), dtype=dtype)
            for n, use in zip((d, d, values, d), wanted, strict=True)
        ]
        inverse, halves = wanted[2], uint8 and dtype != torch.float32
        packed = images.stride(c) == 1 and images.stride(w) == channels
        chunk = math.gcd(patch * channels, 16) if uint8 and packed and crop is None else 1
        chunk = chunk if chunk >= 4 else 1  # the least that is copied without passing registers
        mirror = flip is not None and chunk > 1
        digits = (4 if dtype == torch.float32 else 3) if uint8 else 1
        bd = min(FUSED if inverse else 64, max(16, triton.next_power_of_2(d)))
        bm = 128 if bd <= 32 and tokens > 64 and chunk > 1 else 64
        padded_d, padded = triton.cdiv(d, bd) * bd, triton.cdiv(values, 64) * 64
        bk = 32 if chunk == 1 else 64 if padded % 128 else 128
        weights = images.new_empty(
            ((1 + mirror) * digits, padded_d, padded), dtype=torch.int8 if uint8 else torch.float32
        )
        latents = images.new_empty((4, padded_d), dtype=torch.float32)
        per_value = images.new_empty((2, padded), dtype=torch.float32)
        back = images.new_empty(
            (1 + halves, padded_d, padded) if inverse else (0,),
            dtype=torch.float16 if halves else torch.float32,
        )
        launch(
            noise_fold_kernel, (padded_d if batch else 0,), basis, center, scale, weights, latents,
            per_value, back, d, values, *basis.stride(), *center.stride(), *scale.stride(),
            MEAN=tuple(mean), STD=tuple(std), BYTES=uint8, DIGITS=digits, MIRROR=mirror,
            INVERSE=inverse, HALVES=halves, PATCH=patch, D=padded_d, P=padded,
            BLOCK=min(1024, triton.next_power_of_2(padded)), num_warps=4, num_stages=1,
        )  # fmt: skip
        grid = (batch * triton.cdiv(tokens, bm) * (padded_d // bd),)
        # With more latents than 16, early noise takes the registers of a second program on an SM.
        early = bd == 16 and bm == 128 and any(wanted[1:])
        launch(
            noise_project_kernel, grid,
            images, weights, latents, per_value, back, gamma, sigma, ids,
            ids if flip is None else flip, ids if crop is None else crop, *made,
            seed_lo, seed_hi, step, tokens, across, width, height,
            images.shape[h], images.shape[w], d, values, *(images.stride(i) for i in (b, h, w, c)),
            PATCH=patch, CHANNELS=channels, FLIP=flip is not None, CROP=crop is not None,
            CLEAN=wanted[0], NOISY=wanted[1], PATCHES=inverse, NOISE=wanted[3],
            BYTES=uint8, DIGITS=digits, HALVES=halves, CHUNK=chunk,
            GROUP=8 if d % 8 == 0 else 4 if d % 4 == 0 else 1, VALUES=math.gcd(values, 16),
            D=padded_d, P=padded, BM=bm, BK=bk, BD=bd, BN=64, EARLY=early,
            num_warps=4 if bm == 64 and bd <= 32 else 8, num_stages=4 if bm == 128 else 3,
        )  # fmt: skip
        return made


def patch_pca_noise(
    images, basis, center, scale, gamma, sigma, sample_ids, seed, step,
    view: ImageView, outputs, flip, crop, size, dtype,
) -> dict[str, Tensor]:  # fmt: skip
    """As the reference."""
    height, width = images.shape[1:3] if images.dtype == torch.uint8 else images.shape[2:4]
    if size is not None:
        height = width = size
    # With more latents no program has a whole z_t: torch multiplies it afterwards, in float32.
    after = "noisy_patches" in outputs and len(basis) > FUSED
    wanted = [name in outputs for name in OUTPUTS]
    if after:
        wanted = [wanted[0], True, False, wanted[3]]
    made = run(
        images, basis, center, scale, gamma.float().contiguous(), sigma.float().contiguous(),
        sample_ids.contiguous(), None if flip is None else flip.contiguous().view(torch.uint8),
        None if crop is None else crop.long().contiguous(), signed(seed), signed(seed >> 32),
        signed(step), view.patch, height, width, list(view.mean), list(view.std), wanted,
        torch.float32 if after else dtype,
    )  # fmt: skip
    result = dict(zip(OUTPUTS, made, strict=True))
    if after:
        with torch.autocast(images.device.type, enabled=False):
            scaled = basis.float() * scale.float()[:, None]
            result["noisy_patches"] = result["noisy_latents"] @ scaled + center.float()
    return {name: result[name].to(dtype) for name in outputs}
