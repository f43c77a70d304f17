"""LayerNorm without affine, then y = x_hat (1 + scale) + shift: the definition (adaLN, DiT)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def layernorm_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    normal = F.layer_norm(x.to(compute), x.shape[-1:], eps=eps)
    shift, scale = shift.to(compute)[:, None], scale.to(compute)[:, None]
    return torch.addcmul(shift, normal, 1 + scale).to(x.dtype)
