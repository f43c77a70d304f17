"""softmax(q k^T / sqrt(head_dim)) v: the definition."""

import torch
from torch import Tensor

from ..implementation import without_autocast


@without_autocast
def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q, k, v: (B, T, heads, head_dim). Returns the same shape and dtype."""
    compute = torch.float64 if q.dtype == torch.float64 else torch.float32
    q, k, v_ = (x.to(compute).transpose(1, 2) for x in (q, k, v))  # (B, heads, T, head_dim)
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
    return (weights @ v_).transpose(1, 2).to(v.dtype)
