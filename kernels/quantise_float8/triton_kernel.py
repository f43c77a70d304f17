"""quantise_float8 on a GPU: two passes, one for the largest value, one that writes it both ways.

The first one is not needed where the pass that made x has found its largest value, and sums the
columns as well where x is the gradient of what a bias was added to.
"""

import torch
from torch import Tensor

from .. import triton_launch
from ..capability import capability
from ..triton_launch import INTERPRETED, MISSING, launch
from .reference import SMALLEST

CHUNK = 128  # rows that one program of the first pass looks at
LOOK = {"ROWS": 8, "BLOCK": 256, "num_warps": 4}
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

    from ..triton_largest import raise_to, sizes

    @triton.jit
    def float8_look_kernel(
        x, largest, partial, rows, columns, SUMS: tl.constexpr, CHUNK: tl.constexpr,
        ROWS: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        """The largest |x|; SUMS: each column's sum over CHUNK rows to partial (chunk, columns)."""
        blocks = tl.cdiv(columns, BLOCK)
        chunk = (tl.program_id(0) // blocks).to(tl.int64)
        column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)[None, :]
        inside = column < columns
        most, sums = tl.zeros((ROWS, BLOCK), tl.float32), tl.zeros((ROWS, BLOCK), tl.float32)
        for step in range(0, CHUNK, ROWS):
            row = chunk * CHUNK + step + tl.arange(0, ROWS)[:, None]
            at = x + row * columns + column
            value = tl.load(at, (row < rows) & inside, other=0.0).to(tl.float32)
            most = tl.maximum(most, sizes(value))
            if SUMS:
                sums += value
        if SUMS:
            total = tl.sum(sums, 0, keep_dims=True)
            tl.store(partial + chunk * columns + column, total, mask=inside)
        raise_to(largest, most)

    @triton.jit
    def float8_turn_kernel(
        x, largest, values, turned, scale, rows, columns,
        TOP: tl.constexpr, SMALLEST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    ):  # fmt: skip
        unit = tl.div_rn(tl.maximum(sizes(tl.load(largest)), SMALLEST), TOP)
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

    def look(x: Tensor, sums: bool) -> tuple[Tensor, Tensor]:
        """(the largest |x|, (), float32; partial sums (chunks, K), float32, where `sums`)."""
        rows, columns = x.shape
        chunks, blocks = triton.cdiv(rows, CHUNK), triton.cdiv(columns, LOOK["BLOCK"])
        largest = x.new_zeros((), dtype=torch.float32)
        partial = x.new_empty((chunks, columns), dtype=torch.float32) if sums else x
        launch(float8_look_kernel, (chunks * blocks,), x, largest, partial, rows, columns,
               SUMS=sums, CHUNK=CHUNK, num_stages=1, **LOOK)  # fmt: skip
        return largest, partial

    @torch.library.triton_op("ldae_triton::float8_largest", mutates_args=())
    def largest_of(x: Tensor) -> Tensor:
        return look(x, False)[0]

    @torch.library.triton_op("ldae_triton::float8_largest_and_sums", mutates_args=())
    def largest_and_sums_of(x: Tensor) -> tuple[Tensor, Tensor]:
        largest, partial = look(x, True)
        return largest, partial.sum(0)

    @torch.library.triton_op("ldae_triton::quantise_float8", mutates_args=())
    def run(x: Tensor, largest: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        rows, columns = x.shape
        values = x.new_empty((rows, columns), dtype=dtype)
        turned = x.new_empty((columns, rows), dtype=dtype)
        scale = x.new_empty(1, dtype=torch.float32)  # one of () inductor would fill first
        tiles = triton.cdiv(rows, ROWS) * triton.cdiv(columns, COLUMNS)
        launch(float8_turn_kernel, (tiles,), x, largest, values, turned, scale, rows, columns,
               TOP=torch.finfo(dtype).max, SMALLEST=SMALLEST, ROWS=ROWS, COLUMNS=COLUMNS,
               num_warps=WARPS, num_stages=1)  # fmt: skip
        return values, turned, scale.view(())


def largest_and_sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """As the reference."""
    return torch.ops.ldae_triton.float8_largest_and_sums(x.contiguous())


def quantise_float8(
    x: Tensor, dtype: torch.dtype, largest: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """As the reference."""
    x = x.contiguous()
    if largest is None:
        largest = torch.ops.ldae_triton.float8_largest(x)
    return torch.ops.ldae_triton.quantise_float8(x, largest, dtype)
