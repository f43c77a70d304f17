"""How Triton kernels find the largest value of what they pass over, many programs together."""

from .triton_launch import MISSING

if not MISSING:
    import triton
    import triton.language as tl

    @triton.jit
    def sizes(value):
        """|value|, infinite for a NaN, which no maximum would keep."""
        return tl.where(value == value, tl.abs(value), float("inf"))

    @triton.jit
    def raise_to(largest, size):
        """Makes the number at `largest` at least what a tile holds, whatever the programs' order.

        One request a program, and nobody waits for it; reading first would be one a warp.
        """
        tl.atomic_max(largest, tl.max(size), sem="relaxed")
