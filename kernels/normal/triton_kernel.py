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
        angle = (b >> 8).to(tl.float32) * 3.7450702829239286e-07
        return radius * tl.cos(angle), radius * tl.sin(angle)

    @triton.jit
    def philox_normals(block, sample, seed_lo, seed_hi, step):
        """Four normals of each counter (block, sample low, sample high, step)."""
        c0 = block.to(tl.uint32)
        zero = c0 * 0
        c1 = zero + (sample & 0xFFFFFFFF).to(tl.uint32)
        c2 = zero + ((sample >> 32) & 0xFFFFFFFF).to(tl.uint32)
        c3 = zero + step.to(tl.uint32)
        k0, k1 = zero + seed_lo.to(tl.uint32), zero + seed_hi.to(tl.uint32)
        c0, c1, c2, c3 = tl.philox_impl(c0, c1, c2, c3, k0, k1, 10)
        n0, n1 = box_muller(c0, c1)
        n2, n3 = box_muller(c2, c3)
        return n0, n1, n2, n3

    @triton.jit(do_not_specialize=["seed_lo", "seed_hi", "step"])
    def normal_kernel(out, ids, seed_lo, seed_hi, step, elements, BLOCK: tl.constexpr):
        row = tl.program_id(1)
        first = tl.program_id(0) * BLOCK
        sample = tl.load(ids + row).to(tl.int64)
        n0, n1, n2, n3 = philox_normals(first + tl.arange(0, BLOCK), sample, seed_lo, seed_hi, step)
        values = tl.reshape(tl.join(tl.join(n0, n2), tl.join(n1, n3)), (4 * BLOCK,))
        element = first.to(tl.int64) * 4 + tl.arange(0, 4 * BLOCK)
        target = out + row.to(tl.int64) * elements + element
        tl.store(target, values.to(out.dtype.element_ty), element < elements)

    @torch.library.triton_op("ldae_triton::normal", mutates_args=())
    def run(
        seed_lo: int, seed_hi: int, step: int, ids: Tensor, elements: int, dtype: torch.dtype
    ) -> Tensor:
        out = ids.new_empty((len(ids), elements), dtype=dtype)
        grid = (triton.cdiv(elements, 1024), len(ids))
        launch(normal_kernel, grid, out, ids, seed_lo, seed_hi, step, elements,
               BLOCK=256, num_warps=4, num_stages=1)  # fmt: skip
        return out


def normal(seed: int, step: int, sample_ids: Tensor, elements: int, dtype: torch.dtype) -> Tensor:
    """As the reference's normal; float32, bfloat16 or float16."""
    words = signed(seed), signed(seed >> 32), signed(step)
    return run(*words, sample_ids.contiguous(), elements, dtype)
