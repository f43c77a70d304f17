"""The perceptron with a Triton middle: bias and GELU in one pass, forward and backward.

The products stay in cuBLAS. Only u = x weight1^T is kept for the backward pass; the bias's gradient
comes from the pass that computes du, by sums of a fixed order.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..triton_launch import MISSING, launch

CHUNK = 128  # rows that one program of the backward pass sums

if not MISSING:
    import triton
    import triton.language as tl

    @triton.jit
    def share(x, TANH: tl.constexpr):
        """gelu(x) / x: the normal distribution's Phi(x), or its approximation by tanh."""
        if TANH:  # (1 + tanh(z)) / 2 = sigmoid(2 z), which keeps its digits in the tail
            result = tl.sigmoid(1.5957691216057308 * x * (1.0 + 0.044715 * x * x))
        else:
            result = 0.5 + 0.5 * tl.math.erf(0.7071067811865476 * x)
        return result

    @triton.jit
    def slope(x, TANH: tl.constexpr):
        """The derivative of gelu at x."""
        part = share(x, TANH)
        if TANH:
            inner = 1.5957691216057308 * (1.0 + 0.134145 * x * x)
            result = part + x * part * (1.0 - part) * inner
        else:
            result = part + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
        return result

    @triton.jit
    def forward_kernel(
        u, bias, out, rows, width, TANH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
    ):
        """out = gelu(u + bias), a tile of ROWS x BLOCK."""
        blocks = tl.cdiv(width, BLOCK)
        row = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)[:, None]
        column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)[None, :]
        here = (row < rows) & (column < width)
        at = row.to(tl.int64) * width + column
        offset = tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)
        x = tl.load(u + at, mask=here, other=0.0).to(tl.float32) + offset
        tl.store(out + at, (x * share(x, TANH)).to(out.dtype.element_ty), mask=here)

    @triton.jit
    def backward_kernel(
        dout, u, bias, du, partial, rows, width,
        TANH: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        """du = dout gelu'(u + bias) of CHUNK rows, and their sum to partial (chunk, width)."""
        blocks = tl.cdiv(width, BLOCK)
        chunk = (tl.program_id(0) // blocks).to(tl.int64)
        column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)[None, :]
        inside = column < width
        offset = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
        sums = tl.zeros((ROWS, BLOCK), tl.float32)
        for step in range(0, CHUNK, ROWS):
            row = chunk * CHUNK + step + tl.arange(0, ROWS)[:, None]
            here = (row < rows) & inside
            at = row * width + column
            up = tl.load(dout + at, mask=here, other=0.0).to(tl.float32)
            x = tl.load(u + at, mask=here, other=0.0).to(tl.float32) + offset
            down = up * slope(x, TANH)
            sums += down
            tl.store(du + at, down.to(du.dtype.element_ty), mask=here)
        tl.store(partial + chunk * width + column, tl.sum(sums, 0, keep_dims=True), mask=inside)

    @triton.jit
    def reduce_kernel(partial, dbias, chunks, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
        """dbias: the sum over the chunks."""
        column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
        sums = tl.zeros((ROWS, BLOCK), tl.float32)
        for start in range(0, chunks, ROWS):
            chunk = start + tl.arange(0, ROWS)[:, None]
            here = (chunk < chunks) & (column < width)
            sums += tl.load(partial + chunk.to(tl.int64) * width + column, mask=here, other=0.0)
        total = tl.sum(sums, 0, keep_dims=True).to(dbias.dtype.element_ty)
        tl.store(dbias + column, total, mask=column < width)

    def forward_op(u: Tensor, bias: Tensor, tanh: bool) -> Tensor:
        """gelu(u + bias) for u (rows, width), in u's dtype."""
        rows, width = u.shape
        out = torch.empty_like(u)
        grid = (-(-rows // 8) * -(-width // 512),)
        launch(forward_kernel, grid, u, bias, out, rows, width, TANH=tanh, ROWS=8, BLOCK=512,
               num_warps=8, num_stages=1)  # fmt: skip
        return out

    def backward_op(dout: Tensor, u: Tensor, bias: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
        """(du, dbias), dbias in bias's dtype from sums in float32."""
        rows, width = u.shape
        du, dbias = torch.empty_like(u), torch.empty_like(bias)
        chunks, blocks = -(-rows // CHUNK), -(-width // 256)
        partial = u.new_empty((chunks, width), dtype=torch.float32)
        launch(backward_kernel, (chunks * blocks,), dout, u, bias, du, partial, rows, width,
               TANH=tanh, CHUNK=CHUNK, ROWS=8, BLOCK=256, num_warps=4, num_stages=1)  # fmt: skip
        launch(reduce_kernel, (-(-width // 64),), partial, dbias, chunks, width,
               ROWS=32, BLOCK=64, num_warps=4, num_stages=1)  # fmt: skip
        return du, dbias

    def keep(ctx, inputs, output) -> None:
        u, bias, ctx.tanh = inputs
        ctx.save_for_backward(u, bias)

    def backward(ctx, dout):
        u, bias = ctx.saved_tensors
        call = torch.ops.ldae_triton.bias_gelu_backward
        return *call(dout.contiguous(), u, bias, ctx.tanh), None

    operator = torch.library.triton_op(
        "ldae_triton::bias_gelu_forward", forward_op, mutates_args=()
    )
    torch.library.triton_op("ldae_triton::bias_gelu_backward", backward_op, mutates_args=())
    operator.register_autograd(backward, setup_context=keep)


def mlp_gelu(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, approximate: str
) -> Tensor:
    u = F.linear(x, weight1)
    flat = u.reshape(u.shape[:-1].numel(), weight1.shape[0]).contiguous()
    hidden = torch.ops.ldae_triton.bias_gelu_forward(
        flat, bias1.contiguous(), approximate == "tanh"
    )
    return F.linear(hidden.view(u.shape), weight2, bias2)
