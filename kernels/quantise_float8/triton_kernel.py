"""quantise_float8 on a GPU: two passes, one for the largest value, one that writes it both ways."""

import torch
from torch import Tensor

from .. import triton_launch
from ..capability import capability
from ..triton_launch import INTERPRETED, MISSING, launch
from .reference import SMALLEST

PARTIALS, BLOCK = 512, 4096  # programs that look for the largest value, and values at a time
ROWS, COLUMNS, WARPS = 128, 64, 8  # of a tile that is turned: 128 bytes to a row of either kind
CAPABILITY = (8, 9)  # the first with float8 tensor cores


def refusal(x: Tensor) -> str:
    reason = triton_launch.refusal(x)
    if reason:
        return reason
    if INTERPRETED:
        return "Triton's interpreter rounds float8 wrongly"
    have = divmod(capability(x.device.index), 10)
    return "" if have >= CAPABILITY else f"it needs compute capability 8.9, {x.device} is older"


if not MISSING:
    import triton
    import triton.language as tl

    @triton.jit
    def float8_largest_kernel(x, partial, size, steps, BLOCK: tl.constexpr):
        """The largest |x| that a program meets; infinite where it meets a NaN."""
        first = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        most = tl.zeros((BLOCK,), tl.float32)
        for step in range(steps):
            at = first + tl.num_programs(0).to(tl.int64) * BLOCK * step
            value = tl.abs(tl.load(x + at, at < size, other=0.0).to(tl.float32))
            most = tl.maximum(most, tl.where(value == value, value, float("inf")))
        tl.store(partial + tl.program_id(0), tl.max(most, 0))

    @triton.jit
    def float8_turn_kernel(
        x, partial, values, turned, scale, programs, rows, columns,
        TOP: tl.constexpr, SMALLEST: tl.constexpr, PARTIALS: tl.constexpr, ROWS: tl.constexpr,
        COLUMNS: tl.constexpr,
    ):  # fmt: skip
        i = tl.arange(0, PARTIALS)
        most = tl.maximum(tl.max(tl.load(partial + i, i < programs, other=0.0), 0), SMALLEST)
        unit = tl.div_rn(most, TOP)
        if tl.program_id(0) == 0:
            tl.store(scale, unit)
        blocks = tl.cdiv(columns, COLUMNS)
        row = (tl.program_id(0) // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        column = (tl.program_id(0) % blocks).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
        inside = (row < rows)[:, None] & (column < columns)[None]
        at = row[:, None] * columns + column[None]
        value = tl.load(x + at, inside, other=0.0).to(tl.float32) * tl.div_rn(1.0, unit)
        value = value.to(values.dtype.element_ty)
        tl.store(values + at, value, inside)
        tl.store(turned + column[:, None] * rows + row[None], tl.trans(value), tl.trans(inside))

    @torch.library.triton_op("ldae_triton::quantise_float8", mutates_args=())
    def run(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        rows, columns = x.shape
        values = x.new_empty((rows, columns), dtype=dtype)
        turned = x.new_empty((columns, rows), dtype=dtype)
        partial = x.new_empty(PARTIALS, dtype=torch.float32)
        scale = x.new_empty((), dtype=torch.float32)
        blocks = triton.cdiv(rows * columns, BLOCK)
        programs = min(PARTIALS, blocks)
        launch(float8_largest_kernel, (programs,), x, partial, rows * columns,
               triton.cdiv(blocks, programs), BLOCK=BLOCK, num_warps=8, num_stages=1)  # fmt: skip
        tiles = triton.cdiv(rows, ROWS) * triton.cdiv(columns, COLUMNS)
        launch(float8_turn_kernel, (tiles,), x, partial, values, turned, scale, programs, rows,
               columns, TOP=torch.finfo(dtype).max, SMALLEST=SMALLEST, PARTIALS=PARTIALS, ROWS=ROWS,
               COLUMNS=COLUMNS, num_warps=WARPS, num_stages=1)  # fmt: skip
        return values, turned, scale


def quantise_float8(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """As the reference."""
    return torch.ops.ldae_triton.quantise_float8(x.contiguous(), dtype)
