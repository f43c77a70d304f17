"""gate_residual_layernorm_modulate: the step between two sub-blocks of a DiT block, in one op."""

import torch
from torch import Tensor

from .. import native
from ..implementation import Implementation, choose, refuse, require_floats, require_number
from . import cpp, reference, triton_kernel

IMPLEMENTATIONS = {
    "cpp": Implementation(cpp.gate_residual_layernorm_modulate, native.refusal),
    "triton": Implementation(triton_kernel.gate_residual_layernorm_modulate, triton_kernel.refusal),
    "reference": Implementation(reference.gate_residual_layernorm_modulate),
}


def gate_residual_layernorm_modulate(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    *,
    eps: float = 1e-6,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """h = x + gate y and LayerNorm(h) (1 + scale) + shift (adaLN-Zero; Peebles and Xie, 2023).

    x: (B, T, D), the residual stream; y: (B, T, D), a sub-block's output, in x's dtype or one that
    it holds. gate, shift, scale: (B, D), each of any float dtype. Returns (h, normalised h), both
    (B, T, D) in x's dtype; sums and statistics in float32 (float64 for float64 x), the statistics
    those of h as it is returned. Raises ValueError naming a bad argument.

    >>> import torch
    >>> x, y = torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    >>> gate, shift, scale = torch.randn(2, 24).chunk(3, dim=1)
    >>> h, out = gate_residual_layernorm_modulate(x, y, gate, shift, scale)
    >>> torch.allclose(h, x + gate[:, None] * y)
    True
    """
    op = "gate_residual_layernorm_modulate"
    require_floats(op, x=x, y=y, gate=gate, shift=shift, scale=scale)
    if x.dim() != 3:
        refuse(op, "x", "(B, T, D)", x.shape)
    if y.shape != x.shape:
        refuse(op, "y", x.shape, y.shape)
    if torch.promote_types(x.dtype, y.dtype) != x.dtype:
        refuse(op, "y.dtype", f"{x.dtype}, as x, or one that it holds", y.dtype)
    rows = (x.shape[0], x.shape[2])
    for name, value in (("gate", gate), ("shift", shift), ("scale", scale)):
        if value.shape != rows:
            refuse(op, name, rows, value.shape)
    require_number(op, "eps", eps)
    run = choose(op, impl, IMPLEMENTATIONS, x)
    return run(x, y, gate, shift, scale, eps)
