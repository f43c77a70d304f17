"""The compiled adaLN op: h = x + gate y and LayerNorm(h) (1 + scale) + shift in one pass.

`ldae::adaln_forward` serves both adaLN ops; without y and gate nothing is added.
"""

import torch
from torch import Tensor

from .. import native
from ..implementation import require_first_order


def register() -> None:
    """Tells torch the shapes and the derivative; the schemas come with the library."""

    @torch.library.register_fake("ldae::adaln_forward")
    def _(x, y, gate, shift, scale, eps):
        h = x.new_empty(0) if y is None else torch.empty_like(x)
        statistics = x.new_empty((2, *x.shape[:2]), dtype=torch.float32)
        return h, torch.empty_like(x), statistics

    @torch.library.register_fake("ldae::adaln_backward")
    def _(dh, dout, h, y, gate, shift, scale, statistics):
        size = h.shape[0], h.shape[2]
        dy = h.new_empty(0) if y is None else torch.empty_like(h)
        dgate = scale.new_empty((0, size[1])) if y is None else gate.new_empty(size)
        return torch.empty_like(h), dy, dgate, shift.new_empty(size), scale.new_empty(size)

    torch.library.register_autograd("ldae::adaln_forward", backward, setup_context=keep)


def keep(ctx, inputs, output) -> None:
    x, y, gate, shift, scale, _ = inputs
    h, _, statistics = output
    ctx.mark_non_differentiable(statistics)
    ctx.save_for_backward(x if y is None else h, y, gate, shift, scale, statistics)


def backward(ctx, dh, dout, dstatistics):
    h, y, gate, shift, scale, statistics = ctx.saved_tensors
    require_first_order("layernorm_modulate" if y is None else "gate_residual_layernorm_modulate")
    dh = None if y is None else filled(dh, h)
    dx, dy, dgate, dshift, dscale = torch.ops.ldae.adaln_backward(
        dh, filled(dout, h), h, y, gate, shift, scale, statistics
    )
    return dx, *((None, None) if y is None else (dy, dgate)), dshift, dscale, None


def filled(grad: Tensor | None, like: Tensor) -> Tensor:
    """The gradient of an output, zeros where nobody used that output."""
    return torch.zeros_like(like) if grad is None else grad.contiguous()


if not native.MISSING:
    register()


def gate_residual_layernorm_modulate(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    h, out, _ = torch.ops.ldae.adaln_forward(
        x.contiguous(), y.to(x.dtype).contiguous(), gate, shift, scale, eps
    )
    return h, out


def layernorm_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    return torch.ops.ldae.adaln_forward(x.contiguous(), None, None, shift, scale, eps)[1]
