"""layernorm_modulate: LayerNorm(x) (1 + scale) + shift with per-sample scale and shift."""

from torch import Tensor

from ..implementation import choose, require
from . import reference

IMPLEMENTATIONS = {"reference": reference.layernorm_modulate}


def layernorm_modulate(
    x: Tensor, shift: Tensor, scale: Tensor, *, eps: float = 1e-6, impl: str = "auto"
) -> Tensor:
    """LayerNorm over the last dimension, then modulation (adaLN; Peebles and Xie, 2023).

    x: (B, T, D). shift, scale: (B, D), the same for every token of a sample. Returns (B, T, D) in
    x's dtype; statistics in float32. Raises ValueError naming a bad argument.
    """
    op = "layernorm_modulate"
    require(x.dim() == 3, op, "x", "(B, T, D)", tuple(x.shape))
    rows = (x.shape[0], x.shape[2])
    require(tuple(shift.shape) == rows, op, "shift", str(rows), tuple(shift.shape))
    require(tuple(scale.shape) == rows, op, "scale", str(rows), tuple(scale.shape))
    return choose(op, impl, IMPLEMENTATIONS)(x, shift, scale, eps)
