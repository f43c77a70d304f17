"""The adaLN ops as Triton kernels: one pass forward, one pass and a small sum backward.

`ldae_triton::adaln_forward` serves both adaLN ops; a one-dimensional y means that nothing is added.
gate, shift and scale are read where they lie, in their own dtype: slices of one packed modulation
tensor cost no copy.
"""

import torch
from torch import Tensor

from .. import triton_launch
from ..implementation import require_first_order
from ..triton_launch import MISSING, launch
from .cpp import filled

CHUNK = 32  # tokens whose column sums one program of the backward pass keeps in registers
WIDEST = 8192
FORWARD, BACKWARD = 16, 16  # values that a thread has of a tile
STAGES = 1  # tiles of the backward pass under way at once

if not MISSING:
    import triton
    import triton.language as tl

    @triton.jit
    def adaln_forward_kernel(
        x, y, gate, shift, scale, h, out, mean, rstd,
        tokens, width, gate_stride, shift_stride, scale_stride, eps,
        SUM: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        """ROWS tokens of one sample: the vectors are then read once for all of them."""
        programs = tl.cdiv(tokens, ROWS)
        sample = (tl.program_id(0) // programs).to(tl.int64)
        token = tl.program_id(0) % programs * ROWS + tl.arange(0, ROWS)[:, None]
        column = tl.arange(0, BLOCK)[None, :]
        inside = column < width
        here = (token < tokens) & inside
        row = sample * tokens + token
        at = row * width + column
        # Read before the sums over x, behind which they then arrive.
        factor = tl.load(scale + sample * scale_stride + column, mask=inside, other=0.0)
        offset = tl.load(shift + sample * shift_stride + column, mask=inside, other=0.0)
        value = tl.load(x + at, mask=here, other=0.0).to(tl.float32)
        if SUM:
            weight = tl.load(gate + sample * gate_stride + column, mask=inside, other=0.0)
            added = tl.load(y + at, mask=here, other=0.0).to(tl.float32)
            total = (value + weight.to(tl.float32) * added).to(h.dtype.element_ty)
            tl.store(h + at, total, mask=here)
            value = total.to(tl.float32)  # the statistics are those of h as it is returned
        centre = tl.sum(value, 1, keep_dims=True) / width
        away = tl.where(inside, value - centre, 0.0)
        eps = tl.cast(eps, tl.float32)  # torch.compile hands a float over in float64
        inverse = 1.0 / tl.sqrt(tl.sum(away * away, 1, keep_dims=True) / width + eps)
        tl.store(mean + row, centre, mask=token < tokens)
        tl.store(rstd + row, inverse, mask=token < tokens)
        result = away * inverse * (1.0 + factor.to(tl.float32)) + offset.to(tl.float32)
        tl.store(out + at, result.to(out.dtype.element_ty), mask=here)

    @triton.jit
    def adaln_backward_kernel(
        dh, dout, h, y, gate, scale, mean, rstd, dx, dy, partial,
        tokens, width, gate_stride, scale_stride,
        SUM: tl.constexpr, CHUNK: tl.constexpr, STAGES: tl.constexpr, ROWS: tl.constexpr,
        BLOCK: tl.constexpr,
    ):  # fmt: skip
        """dx = dh + rstd (g - mean(g) - n mean(g n)), n the normalised h, g = dout (1 + scale).

        A program owns CHUNK tokens of a sample and writes their sums for the three vectors to
        partial (sample, chunk, 3, width): shift, scale, gate.
        """
        chunks = tl.cdiv(tokens, CHUNK)
        sample = (tl.program_id(0) // chunks).to(tl.int64)
        start = tl.program_id(0) % chunks * CHUNK
        column = tl.arange(0, BLOCK)[None, :]
        inside = column < width
        factor = tl.load(scale + sample * scale_stride + column, mask=inside, other=0.0)
        factor = 1.0 + factor.to(tl.float32)
        if SUM:
            weight = tl.load(gate + sample * gate_stride + column, mask=inside, other=0.0)
            weight = weight.to(tl.float32)
            gates = tl.zeros((ROWS, BLOCK), tl.float32)
        shifts = tl.zeros((ROWS, BLOCK), tl.float32)
        scales = tl.zeros((ROWS, BLOCK), tl.float32)
        for step in tl.range(0, CHUNK, ROWS, num_stages=STAGES):
            token = start + step + tl.arange(0, ROWS)[:, None]
            here = (token < tokens) & inside
            row = sample * tokens + token
            at = row * width + column
            up = tl.load(dout + at, mask=here, other=0.0).to(tl.float32)
            value = tl.load(h + at, mask=here, other=0.0).to(tl.float32)
            if SUM:
                through = tl.load(dh + at, mask=here, other=0.0).to(tl.float32)
                added = tl.load(y + at, mask=here, other=0.0).to(tl.float32)
            centre = tl.load(mean + row, mask=token < tokens, other=0.0)
            inverse = tl.load(rstd + row, mask=token < tokens, other=0.0)
            normal = (value - centre) * inverse
            shifts += up
            scales += up * normal  # up is zero outside
            g = up * factor
            # Joined, so that threads exchange both sums at once.
            along, level = tl.split(tl.sum(tl.join(g * normal, g), 1) / width)
            total = inverse * (g - level[:, None] - normal * along[:, None])
            if SUM:
                total += through
                gates += total * added
                tl.store(dy + at, (total * weight).to(dy.dtype.element_ty), mask=here)
            tl.store(dx + at, total.to(dx.dtype.element_ty), mask=here)
        place = partial + tl.program_id(0).to(tl.int64) * 3 * width + column
        tl.store(place, tl.sum(shifts, 0, keep_dims=True), mask=inside)
        tl.store(place + width, tl.sum(scales, 0, keep_dims=True), mask=inside)
        if SUM:
            tl.store(place + 2 * width, tl.sum(gates, 0, keep_dims=True), mask=inside)

    @triton.jit
    def adaln_reduce_kernel(
        partial, dgate, dshift, dscale, chunks, width, SUM: tl.constexpr, BLOCK: tl.constexpr
    ):
        """The sums of a sample's chunks, in the order of the chunks."""
        blocks = tl.cdiv(width, BLOCK)
        sample = (tl.program_id(0) // blocks).to(tl.int64)
        column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
        inside = column < width
        shifts = tl.zeros((BLOCK,), tl.float32)
        scales = tl.zeros((BLOCK,), tl.float32)
        gates = tl.zeros((BLOCK,), tl.float32)
        for chunk in range(chunks):
            place = partial + (sample * chunks + chunk) * 3 * width + column
            shifts += tl.load(place, mask=inside, other=0.0)
            scales += tl.load(place + width, mask=inside, other=0.0)
            if SUM:
                gates += tl.load(place + 2 * width, mask=inside, other=0.0)
        at = sample * width + column
        tl.store(dshift + at, shifts.to(dshift.dtype.element_ty), mask=inside)
        tl.store(dscale + at, scales.to(dscale.dtype.element_ty), mask=inside)
        if SUM:
            tl.store(dgate + at, gates.to(dgate.dtype.element_ty), mask=inside)

    def tiling(width: int, values: int) -> dict[str, int]:
        """A tile with about so many values a thread, and a row's eight together: 16 bytes a load.

        As many warps as a row then fills, so that shift, scale and gate lie in the threads as the
        rows do; with more, they would have to be moved there through shared memory. It depends on
        nothing but the width, so that a sample's result cannot depend on its batch.
        """
        block = max(16, triton.next_power_of_2(int(width)))
        warps = min(16, max(1, block // 256))
        rows = max(1, values * 32 * warps // block)
        return {"ROWS": min(rows, CHUNK), "BLOCK": block, "num_warps": warps}

    def forward_op(
        x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(h, out, mean, rstd); h is empty where nothing is added."""
        batch, tokens, width = x.shape
        summed = y.dim() == 3
        h = torch.empty_like(x) if summed else x.new_empty(0)
        out = torch.empty_like(x)
        mean = x.new_empty((batch, tokens), dtype=torch.float32)
        rstd = torch.empty_like(mean)
        sizes = tiling(width, FORWARD)
        launch(
            adaln_forward_kernel, (batch * -(-tokens // sizes["ROWS"]) * min(int(width), 1),),
            x, y, gate, shift, scale, h, out, mean, rstd,
            tokens, width, gate.stride(0), shift.stride(0), scale.stride(0), eps,
            SUM=summed, num_stages=1, **sizes,
        )  # fmt: skip
        return h, out, mean, rstd

    def backward_op(
        dh: Tensor, dout: Tensor, h: Tensor, y: Tensor, gate: Tensor, shift_like: Tensor,
        scale: Tensor, mean: Tensor, rstd: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """(dx, dy, dgate, dshift, dscale); shift_like: an empty tensor of shift's dtype."""
        batch, tokens, width = h.shape
        summed = y.dim() == 3
        dx, dy = torch.empty_like(h), torch.empty_like(y)
        dgate = gate.new_empty((batch, width) if summed else (0, width))
        dshift, dscale = shift_like.new_empty((batch, width)), scale.new_empty((batch, width))
        chunks = -(-tokens // CHUNK)
        partial = h.new_empty((batch, chunks, 3, width), dtype=torch.float32)
        wide = min(int(width), 1)
        launch(
            adaln_backward_kernel, (batch * chunks * wide,),
            dh, dout, h, y, gate, scale, mean, rstd, dx, dy, partial,
            tokens, width, gate.stride(0), scale.stride(0),
            SUM=summed, CHUNK=CHUNK, STAGES=STAGES, num_stages=1, **tiling(width, BACKWARD),
        )  # fmt: skip
        launch(
            adaln_reduce_kernel, (batch * -(-width // 256),), partial, dgate, dshift, dscale,
            chunks, width, SUM=summed, BLOCK=256, num_warps=2, num_stages=1,
        )  # fmt: skip
        return dx, dy, dgate, dshift, dscale

    def keep(ctx, inputs, output) -> None:
        x, y, gate, shift, scale, _ = inputs
        h, _, mean, rstd = output
        ctx.summed, ctx.shift_dtype = y.dim() == 3, shift.dtype
        ctx.mark_non_differentiable(mean, rstd)
        ctx.save_for_backward(h if ctx.summed else x, y, gate, scale, mean, rstd)

    def backward(ctx, dh, dout, dmean, drstd):
        require_first_order(
            "gate_residual_layernorm_modulate" if ctx.summed else "layernorm_modulate"
        )
        h, y, gate, scale, mean, rstd = ctx.saved_tensors
        dh = filled(dh, h) if ctx.summed else h.new_empty(0)
        shift_like = h.new_empty(0, dtype=ctx.shift_dtype)
        dx, dy, dgate, dshift, dscale = torch.ops.ldae_triton.adaln_backward(
            dh, filled(dout, h), h, y, gate, shift_like, scale, mean, rstd
        )
        return dx, dy if ctx.summed else None, dgate if ctx.summed else None, dshift, dscale, None

    operator = torch.library.triton_op("ldae_triton::adaln_forward", forward_op, mutates_args=())
    torch.library.triton_op("ldae_triton::adaln_backward", backward_op, mutates_args=())
    operator.register_autograd(backward, setup_context=keep)


def refusal(x: Tensor) -> str:
    """Why the kernels cannot take x; '' when they can."""
    reason = triton_launch.refusal(x)
    if not reason and x.shape[-1] > WIDEST:
        reason = f"it takes a width of at most {WIDEST}, x has {x.shape[-1]}"
    return reason


def vector(v: Tensor) -> Tensor:
    """v with neighbouring values side by side; the stride over samples is free."""
    return v if v.stride(1) == 1 else v.contiguous()


def gate_residual_layernorm_modulate(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    h, out, _, _ = torch.ops.ldae_triton.adaln_forward(
        x.contiguous(), y.contiguous(), *map(vector, (gate, shift, scale)), eps
    )
    return h, out


def layernorm_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    nothing, gate = x.new_empty(0), x.new_empty((0, x.shape[-1]))
    return torch.ops.ldae_triton.adaln_forward(
        x.contiguous(), nothing, gate, vector(shift), vector(scale), eps
    )[1]
