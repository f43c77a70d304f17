"""The perceptron with a Triton middle: bias and GELU in one pass, forward and backward.

The products stay in cuBLAS. Only u = x weight1^T is kept for the backward pass; the bias's gradient
comes from the pass that computes du, by sums of a fixed order. For products in float8 each pass
finds the largest value that it writes besides.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..implementation import require_first_order
from ..triton_launch import MISSING, launch

CHUNK = 128  # rows that one program of the backward pass sums
FORWARD = {"ROWS": 8, "BLOCK": 512, "num_warps": 8}
BACKWARD = {"ROWS": 4, "BLOCK": 256, "STAGES": 1, "num_warps": 4}  # STAGES: tiles under way at once

if not MISSING:
    import triton
    import triton.language as tl

    from ..triton_largest import raise_to, sizes

    @triton.jit
    def inverse(x, ENOUGH: tl.constexpr):
        """1 / x; ENOUGH: by two instructions, to 2 units in the last place, for a positive x."""
        if ENOUGH:
            root = tl.rsqrt(x)
            result = root * root
        else:
            result = 1.0 / x
        return result

    @triton.jit
    def exact(x, ENOUGH: tl.constexpr):
        """(Phi(x) of the normal distribution, exp(-x^2 / 2)).

        ENOUGH: Phi to 2.3e-4 of it, far tail and middle alike, for results that are rounded to 16
        bits: Phi(-z) is the density times Mills' ratio, here t Q(t) with t = 1 / (1 + 0.3 z) and
        the cubic Q of csrc/mlp_gelu.cpp. erf takes twice the instructions, so many that they took
        longer than the memory.
        """
        if ENOUGH:
            bell = tl.exp2(-0.7213475204444817 * x * x)
            t = inverse(1.0 + 0.3 * tl.abs(x), ENOUGH)
            ratio = t * (((0.20884471 * t + 0.03558780) * t + 0.13747815) * t + 0.11820439)
            tail = bell * ratio  # Q's numbers hold the density's 1 / sqrt(2 pi)
            phi = tl.where(x < 0, tail, 1.0 - tail)
        else:
            bell = tl.exp(-0.5 * x * x)
            phi = 0.5 + 0.5 * tl.math.erf(0.7071067811865476 * x)
        return phi, bell

    @triton.jit
    def tanh_share(x, ENOUGH: tl.constexpr):
        """gelu(x) / x of the tanh form: (1 + tanh(v)) / 2 = 1 / (1 + exp(-2 v))."""
        twice = 1.5957691216057308 * x * (1.0 + 0.044715 * x * x)
        if ENOUGH:
            result = inverse(1.0 + tl.exp2(-1.4426950408889634 * twice), ENOUGH)
        else:
            result = tl.sigmoid(twice)
        return result

    @triton.jit
    def value(x, TANH: tl.constexpr, ENOUGH: tl.constexpr):
        """gelu(x)."""
        if TANH:
            result = x * tanh_share(x, ENOUGH)
        else:
            phi, _ = exact(x, ENOUGH)
            result = x * phi
        return result

    @triton.jit
    def slope(x, TANH: tl.constexpr, ENOUGH: tl.constexpr):
        """The derivative of gelu at x."""
        if TANH:
            part = tanh_share(x, ENOUGH)
            inner = 1.5957691216057308 * (1.0 + 0.134145 * x * x)
            result = part + x * part * (1.0 - part) * inner
        else:
            phi, bell = exact(x, ENOUGH)
            result = phi + 0.3989422804014327 * x * bell
        return result

    @triton.jit
    def gelu_forward_kernel(
        u, bias, out, largest, rows, width,
        TANH: tl.constexpr, LARGEST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        """out = gelu(u + bias), a tile of ROWS x BLOCK. LARGEST: and the largest |out|."""
        blocks = tl.cdiv(width, BLOCK)
        row = tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS)[:, None]
        column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)[None, :]
        here = (row < rows) & (column < width)
        at = row.to(tl.int64) * width + column
        offset = tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)
        x = tl.load(u + at, mask=here, other=0.0).to(tl.float32) + offset
        result = value(x, TANH, out.dtype.element_ty != tl.float32).to(out.dtype.element_ty)
        tl.store(out + at, result, mask=here)
        if LARGEST:
            raise_to(largest, tl.where(here, sizes(result.to(tl.float32)), 0.0))

    @triton.jit
    def gelu_backward_kernel(
        dout, u, bias, du, partial, largest, rows, width,
        TANH: tl.constexpr, LARGEST: tl.constexpr, CHUNK: tl.constexpr, STAGES: tl.constexpr,
        ROWS: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        """du = dout gelu'(u + bias) of CHUNK rows, and their sum to partial (chunk, width).

        LARGEST: and the largest |du|.
        """
        blocks = tl.cdiv(width, BLOCK)
        chunk = (tl.program_id(0) // blocks).to(tl.int64)
        column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)[None, :]
        inside = column < width
        offset = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
        most, sums = tl.zeros((ROWS, BLOCK), tl.float32), tl.zeros((ROWS, BLOCK), tl.float32)
        for step in tl.range(0, CHUNK, ROWS, num_stages=STAGES):
            row = chunk * CHUNK + step + tl.arange(0, ROWS)[:, None]
            here = (row < rows) & inside
            at = row * width + column
            up = tl.load(dout + at, mask=here, other=0.0).to(tl.float32)
            x = tl.load(u + at, mask=here, other=0.0).to(tl.float32) + offset
            down = up * slope(x, TANH, du.dtype.element_ty != tl.float32)
            sums += down
            if LARGEST:
                most = tl.maximum(most, sizes(down))
            tl.store(du + at, down.to(du.dtype.element_ty), mask=here)
        tl.store(partial + chunk * width + column, tl.sum(sums, 0, keep_dims=True), mask=inside)
        if LARGEST:  # of what was stored: rounding keeps the order
            raise_to(largest, most.to(du.dtype.element_ty).to(tl.float32))

    @triton.jit
    def gelu_reduce_kernel(partial, dbias, chunks, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
        """dbias: the sum over the chunks."""
        column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
        sums = tl.zeros((ROWS, BLOCK), tl.float32)
        for start in range(0, chunks, ROWS):
            chunk = start + tl.arange(0, ROWS)[:, None]
            here = (chunk < chunks) & (column < width)
            sums += tl.load(partial + chunk.to(tl.int64) * width + column, mask=here, other=0.0)
        total = tl.sum(sums, 0, keep_dims=True).to(dbias.dtype.element_ty)
        tl.store(dbias + column, total, mask=column < width)

    def forward_pass(u: Tensor, bias: Tensor, tanh: bool, largest: Tensor | None) -> Tensor:
        rows, width = u.shape
        out = torch.empty_like(u)
        grid = (-(-rows // FORWARD["ROWS"]) * -(-width // FORWARD["BLOCK"]),)
        launch(gelu_forward_kernel, grid, u, bias, out, u if largest is None else largest, rows,
               width, TANH=tanh, LARGEST=largest is not None, num_stages=1, **FORWARD)  # fmt: skip
        return out

    def backward_pass(
        dout: Tensor, u: Tensor, bias: Tensor, tanh: bool, largest: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        rows, width = u.shape
        du, dbias = torch.empty_like(u), torch.empty_like(bias)
        chunks, blocks = -(-rows // CHUNK), -(-width // BACKWARD["BLOCK"])
        partial = u.new_empty((chunks, width), dtype=torch.float32)
        launch(gelu_backward_kernel, (chunks * blocks,), dout, u, bias, du, partial,
               u if largest is None else largest, rows, width, TANH=tanh,
               LARGEST=largest is not None, CHUNK=CHUNK, num_stages=1, **BACKWARD)  # fmt: skip
        launch(gelu_reduce_kernel, (-(-width // 64),), partial, dbias, chunks, width,
               ROWS=32, BLOCK=64, num_warps=4, num_stages=1)  # fmt: skip
        return du, dbias

    def forward_op(u: Tensor, bias: Tensor, tanh: bool) -> Tensor:
        """gelu(u + bias) for u (rows, width), in u's dtype."""
        return forward_pass(u, bias, tanh, None)

    def backward_op(dout: Tensor, u: Tensor, bias: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
        """(du, dbias), dbias in bias's dtype from sums in float32."""
        return backward_pass(dout, u, bias, tanh, None)

    @torch.library.triton_op("ldae_triton::bias_gelu_forward_largest", mutates_args=())
    def forward_largest(u: Tensor, bias: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
        """As forward_op, and the largest |value| of the result, (), float32."""
        largest = u.new_zeros((), dtype=torch.float32)
        return forward_pass(u, bias, tanh, largest), largest

    @torch.library.triton_op("ldae_triton::bias_gelu_backward_largest", mutates_args=())
    def backward_largest(
        dout: Tensor, u: Tensor, bias: Tensor, tanh: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As backward_op, and the largest |du|, (), float32."""
        largest = u.new_zeros((), dtype=torch.float32)
        return *backward_pass(dout, u, bias, tanh, largest), largest

    def keep(ctx, inputs, output) -> None:
        u, bias, ctx.tanh = inputs
        ctx.save_for_backward(u, bias)

    def backward(ctx, dout):
        require_first_order("mlp_gelu")
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


def bias_gelu(u: Tensor, bias: Tensor, approximate: str) -> tuple[Tensor, Tensor]:
    """As the reference."""
    run = torch.ops.ldae_triton.bias_gelu_forward_largest
    return run(u.contiguous(), bias.contiguous(), approximate == "tanh")


def bias_gelu_backward(
    dout: Tensor, u: Tensor, bias: Tensor, approximate: str
) -> tuple[Tensor, Tensor, Tensor]:
    """As the reference."""
    run = torch.ops.ldae_triton.bias_gelu_backward_largest
    return run(dout.contiguous(), u, bias.contiguous(), approximate == "tanh")
