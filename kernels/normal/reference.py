"""Standard normals as a pure function of (seed, step, sample id, element).

Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) gives four
32-bit integers a counter, Box-Muller turns each pair into two normals. Uniforms have 24 bits, so
float32 and float64 start from the very same numbers and |normal| <= 5.77.
"""

import math

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIER = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


def rounds(counter: tuple[Tensor, ...], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox 4x32-10: four int64 tensors of 32-bit words and a key of two, to four words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # The 64-bit product wraps in int64, but its bits are those of the unsigned product.
        a, b = c0 * MULTIPLIER[0], c2 * MULTIPLIER[1]
        c0, c1 = ((b >> 32) & MASK) ^ c1 ^ k0, b & MASK
        c2, c3 = ((a >> 32) & MASK) ^ c3 ^ k1, a & MASK
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def philox(seed: int, step: int, sample_ids: Tensor, blocks: int) -> Tensor:
    """Integers in [0, 2^32), int64, shape (B, blocks, 4).

    Counter (block, sample id low, sample id high, step), key (seed low, seed high), each 32 bits.
    `sample_ids` is (B,) int64.
    """
    ids = sample_ids.to(torch.int64)[:, None]  # (B, 1)
    # With ^ 0 a word of the counter, which inductor otherwise takes for an index and multiplies in
    # 32 bits: on a GPU it then refuses MULTIPLIER.
    block = torch.arange(blocks, device=ids.device)[None] ^ 0  # (1, blocks)
    words = torch.broadcast_tensors(
        block, ids & MASK, (ids >> 32) & MASK, torch.full_like(ids, step & MASK)
    )
    return torch.stack(rounds(words, (seed & MASK, (seed >> 32) & MASK)), dim=-1)


def normal(
    seed: int, step: int, sample_ids: Tensor, elements: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normals, shape (B, elements), computed in float32 (float64 when asked for it)."""
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    bits = philox(seed, step, sample_ids, -(-elements // 4)) >> 8  # (B, blocks, 4), 24 bits
    radius = ((bits[..., 0::2] + 1).to(compute) * 2.0**-24).log_().mul_(-2).sqrt_()
    angle = bits[..., 1::2].to(compute) * (2 * math.pi * 2.0**-24)
    pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)
    return pairs.flatten(1)[:, :elements].to(dtype)
