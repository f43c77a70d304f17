"""Kernels with the faults that test_aot.py must see, and one without."""

import torch
import triton
import triton.language as tl


@triton.jit
def sound(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, i < n) * 2, i < n)


@triton.jit
def scalar_access(x, out, n, stride, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i * stride, tl.load(x + i * stride, i < n) * 2, i < n)


@triton.jit
def scaled(x, out, n, factor, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, i < n) * factor, i < n)


@triton.jit
def spilling(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    value = tl.load(x + i)
    for _ in range(4):
        value += tl.load(x + i + value.to(tl.int32))
    tl.store(out + i, value)
    tl.store(out + i, tl.sqrt(value) + value)


@triton.jit
def product(a, b, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    grid = i[:, None] * BLOCK + i[None]
    tl.store(out + grid, tl.dot(tl.load(a + grid), tl.load(b + grid)).to(tl.bfloat16))


def main(launch) -> None:
    """Calls launch(kernel, *arguments, **constants) for each kernel."""

    def empty(n, dtype=torch.float32):
        return torch.empty(n, dtype=dtype, device="meta")

    big = 1 << 22
    launch(sound, empty(big), empty(big), big, BLOCK=1024, num_warps=4)
    launch(scalar_access, empty(big), empty(big), big, 3, BLOCK=1024, num_warps=4)
    launch(scaled, empty(big), empty(big), big, 0.5, BLOCK=1024, num_warps=4)
    launch(spilling, empty(big), empty(big), BLOCK=32768, num_warps=4)
    squares = (empty(1 << 14, torch.bfloat16) for _ in range(3))
    launch(product, *squares, BLOCK=128, num_warps=4)
