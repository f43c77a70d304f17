"""normal on a GPU: one Philox counter a lane, four normals a counter, stores of whole vectors."""

import torch
from torch import Tensor

from ..triton_launch import MISSING, launch

MASK = 0xFFFFFFFF


def signed(word: int) -> int:
    """The low 32 bits as an int32, so that a launch never meets another integer type."""
    return ((word & MASK) ^ 0x80000000) - 0x80000000


if not MISSING:
    import triton
    import triton.language as tl

    @triton.jit
    def box_muller(a, b):
        """Two words to two normals, from 24 bits each; 2^-24 and 2 pi 2^-24 are the constants."""
        radius = tl.sqrt(-2.0 * tl.log(((a >> 8) + 1).to(tl.float32) * 5.960464477539063e-08))
        # The library's sine and cosine reduce any argument, in slow code; here the quarter of the
        # turn comes from the bits, exactly, and what is left lies within pi / 4 (Cephes' sinf).
        turn = (b >> 8).to(tl.int32)
        quarter = (turn + 0x200000) >> 22
        x = (turn - (quarter << 22)).to(tl.float32) * 3.7450702829239286e-07
        x2 = x * x
        sine = -1.9515295891e-4 * x2 + 8.3321608736e-3
        sine = x + x * x2 * (sine * x2 - 1.6666654611e-1)
        cosine = 2.443315711809948e-5 * x2 - 1.388731625493765e-3
        cosine = 1.0 - 0.5 * x2 + x2 * x2 * (cosine * x2 + 4.166664568298827e-2)
        odd = (quarter & 1) != 0
        first, second = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
        first = tl.where(((quarter + 1) & 2) != 0, -first, first)
        second = tl.where((quarter & 2) != 0, -second, second)
        return radius * first, radius * second

    @triton.jit
    def philox_words(block, sample, seed_lo, seed_hi, step):
        """Four 32-bit words of each counter (block, sample low, sample high, step)."""
        c0 = block.to(tl.uint32)
        zero = c0 * 0
        c1 = zero + (sample & 0xFFFFFFFF).to(tl.uint32)
        c2 = zero + ((sample >> 32) & 0xFFFFFFFF).to(tl.uint32)
        c3 = zero + step.to(tl.uint32)
        k0, k1 = zero + seed_lo.to(tl.uint32), zero + seed_hi.to(tl.uint32)
        for _ in tl.static_range(10):
            # tl.philox_impl takes high and low words by two multiplications, here it is one.
            a, b = c0.to(tl.uint64) * 0xD2511F53, c2.to(tl.uint64) * 0xCD9E8D57
            c0, c1 = (b >> 32).to(tl.uint32) ^ c1 ^ k0, b.to(tl.uint32)
            c2, c3 = (a >> 32).to(tl.uint32) ^ c3 ^ k1, a.to(tl.uint32)
            k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
        return c0, c1, c2, c3

    @triton.jit
    def philox_normals(block, sample, seed_lo, seed_hi, step):
        """Four normals of each counter."""
        c0, c1, c2, c3 = philox_words(block, sample, seed_lo, seed_hi, step)
        n0, n1 = box_muller(c0, c1)
        n2, n3 = box_muller(c2, c3)
        return n0, n1, n2, n3

    @triton.jit(do_not_specialize=["seed_lo", "seed_hi", "step"])
    def philox_kernel(out, ids, seed_lo, seed_hi, step, blocks, BLOCK: tl.constexpr):
        programs = tl.cdiv(blocks, BLOCK)
        row = (tl.program_id(0) // programs).to(tl.int64)
        first = tl.program_id(0) % programs * BLOCK
        sample = tl.load(ids + row).to(tl.int64)
        block = first + tl.arange(0, BLOCK)
        c0, c1, c2, c3 = philox_words(block, sample, seed_lo, seed_hi, step)
        words = tl.reshape(tl.join(tl.join(c0, c2), tl.join(c1, c3)), (4 * BLOCK,)).to(tl.int64)
        word = first.to(tl.int64) * 4 + tl.arange(0, 4 * BLOCK)
        tl.store(out + row * 4 * blocks + word, words, word < 4 * blocks)

    @triton.jit(do_not_specialize=["seed_lo", "seed_hi", "step"])
    def normal_kernel(out, ids, seed_lo, seed_hi, step, elements, BLOCK: tl.constexpr):
        programs = tl.cdiv(elements, 4 * BLOCK)
        row = (tl.program_id(0) // programs).to(tl.int64)
        first = tl.program_id(0) % programs * BLOCK
        sample = tl.load(ids + row).to(tl.int64)
        n0, n1, n2, n3 = philox_normals(first + tl.arange(0, BLOCK), sample, seed_lo, seed_hi, step)
        values = tl.reshape(tl.join(tl.join(n0, n2), tl.join(n1, n3)), (4 * BLOCK,))
        element = first.to(tl.int64) * 4 + tl.arange(0, 4 * BLOCK)
        target = out + row * elements + element
        tl.store(target, values.to(out.dtype.element_ty), element < elements)

    @torch.library.triton_op("ldae_triton::philox", mutates_args=())
    def words_of(seed_lo: int, seed_hi: int, step: int, ids: Tensor, blocks: int) -> Tensor:
        batch = ids.shape[0]  # len() of it would hold a compiled graph to this batch
        out = ids.new_empty((batch, blocks, 4))
        launch(philox_kernel, (triton.cdiv(blocks, 64) * batch,), out, ids, seed_lo, seed_hi, step,
               blocks, BLOCK=64, num_warps=1, num_stages=1)  # fmt: skip
        return out

    @torch.library.triton_op("ldae_triton::normal", mutates_args=())
    def run(
        seed_lo: int, seed_hi: int, step: int, ids: Tensor, elements: int, dtype: torch.dtype
    ) -> Tensor:
        batch = ids.shape[0]
        out = ids.new_empty((batch, elements), dtype=dtype)
        grid = (triton.cdiv(elements, 1024) * batch,)
        launch(normal_kernel, grid, out, ids, seed_lo, seed_hi, step, elements,
               BLOCK=256, num_warps=4, num_stages=1)  # fmt: skip
        return out


def philox(seed: int, step: int, sample_ids: Tensor, blocks: int) -> Tensor:
    """As the reference's philox."""
    words = signed(seed), signed(seed >> 32), signed(step)
    return words_of(*words, sample_ids.contiguous(), blocks)


def normal(seed: int, step: int, sample_ids: Tensor, elements: int, dtype: torch.dtype) -> Tensor:
    """As the reference's normal; float32, bfloat16 or float16."""
    words = signed(seed), signed(seed >> 32), signed(step)
    return run(*words, sample_ids.contiguous(), elements, dtype)
