"""x + gate y, then LayerNorm and modulation of the sum: the definition."""

import torch
from torch import Tensor

from ..layernorm_modulate.reference import layernorm_modulate


def gate_residual_layernorm_modulate(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    gate = gate.to(compute)[:, None]
    total = torch.addcmul(x.to(compute), gate, y.to(compute)).to(x.dtype)
    return total, layernorm_modulate(total, shift, scale, eps)
