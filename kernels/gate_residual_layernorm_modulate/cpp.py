"""The compiled adaLN op: h = x + gate y and LayerNorm(h) (1 + scale) + shift in one pass.

`ldae::adaln_forward` serves both adaLN ops; a one-dimensional y means that nothing is added.
"""

import torch
from torch import Tensor

from .. import native


def register() -> None:
    """Tells torch the shapes and the derivative; the schemas come with the library."""

    @torch.library.register_fake("ldae::adaln_forward")
    def _(x, y, gate, shift, scale, eps):
        h = torch.empty_like(x) if y.dim() == 3 else x.new_empty(0)
        statistics = x.new_empty(x.shape[:2], dtype=torch.float32)
        return h, torch.empty_like(x), statistics, torch.empty_like(statistics)

    @torch.library.register_fake("ldae::adaln_backward")
    def _(dh, dout, h, y, gate, scale, mean, rstd):
        vector = h.new_empty((h.shape[0], h.shape[2]), dtype=torch.float32)
        summed = y.dim() == 3
        return (
            torch.empty_like(h),
            torch.empty_like(h) if summed else h.new_empty(0),
            torch.empty_like(vector) if summed else vector.new_empty(0, h.shape[2]),
            torch.empty_like(vector),
            torch.empty_like(vector),
        )

    torch.library.register_autograd("ldae::adaln_forward", backward, setup_context=keep)


def keep(ctx, inputs, output) -> None:
    x, y, gate, _, scale, _ = inputs
    h, _, mean, rstd = output
    ctx.summed = y.dim() == 3
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(h if ctx.summed else x, y, gate, scale, mean, rstd)


def backward(ctx, dh, dout, dmean, drstd):
    h, y, gate, scale, mean, rstd = ctx.saved_tensors
    dh = filled(dh, h) if ctx.summed else h.new_empty(0)
    dout = filled(dout, h)
    dx, dy, dgate, dshift, dscale = torch.ops.ldae.adaln_backward(
        dh, dout, h, y, gate, scale, mean, rstd
    )
    return dx, dy if ctx.summed else None, dgate if ctx.summed else None, dshift, dscale, None


def filled(grad: Tensor | None, like: Tensor) -> Tensor:
    """The gradient of an output, zeros where nobody used that output."""
    return torch.zeros_like(like) if grad is None else grad.contiguous()


if not native.MISSING:
    register()


def vector(v: Tensor) -> Tensor:
    return v.float().contiguous()


def gate_residual_layernorm_modulate(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    h, out, _, _ = torch.ops.ldae.adaln_forward(
        x.contiguous(), y.to(x.dtype).contiguous(), *map(vector, (gate, shift, scale)), eps
    )
    return h, out


def layernorm_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    nothing = x.new_empty(0)
    gate = x.new_empty(0, dtype=torch.float32)
    return torch.ops.ldae.adaln_forward(
        x.contiguous(), nothing, gate, vector(shift), vector(scale), eps
    )[1]
