"""layernorm_modulate: LayerNorm(x) (1 + scale) + shift with per-sample scale and shift."""

from torch import Tensor

from .. import native
from ..gate_residual_layernorm_modulate import cpp, triton_kernel
from ..implementation import Implementation, choose, refuse, require_floats, require_number
from . import reference

IMPLEMENTATIONS = {
    "cpp": Implementation(cpp.layernorm_modulate, native.refusal),
    "triton": Implementation(triton_kernel.layernorm_modulate, triton_kernel.refusal),
    "reference": Implementation(reference.layernorm_modulate),
}


def layernorm_modulate(
    x: Tensor, shift: Tensor, scale: Tensor, *, eps: float = 1e-6, impl: str = "auto"
) -> Tensor:
    """LayerNorm over the last dimension, then modulation (adaLN; Peebles and Xie, 2023).

    x: (B, T, D). shift, scale: (B, D), the same for every token of a sample. Each is of any float
    dtype. Returns (B, T, D) in x's dtype; statistics in float32 (float64 for float64 x).
    Raises ValueError naming a bad argument.

    >>> import torch
    >>> x, zero = torch.randn(2, 4, 8), torch.zeros(2, 8)
    >>> plain = torch.nn.functional.layer_norm(x, (8,), eps=1e-6)
    >>> torch.allclose(layernorm_modulate(x, zero, zero), plain, atol=1e-5)
    True
    """
    op = "layernorm_modulate"
    require_floats(op, x=x, shift=shift, scale=scale)
    if x.dim() != 3:
        refuse(op, "x", "(B, T, D)", x.shape)
    rows = (x.shape[0], x.shape[2])
    if shift.shape != rows:
        refuse(op, "shift", rows, shift.shape)
    if scale.shape != rows:
        refuse(op, "scale", rows, scale.shape)
    require_number(op, "eps", eps)
    run = choose(op, impl, IMPLEMENTATIONS, x)
    return run(x, shift, scale, eps)
