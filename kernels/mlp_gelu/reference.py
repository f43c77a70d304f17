"""fc2(gelu(fc1(x))), whole or its middle alone: the definitions."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..quantise_float8.reference import largest_of


def mlp_gelu(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, approximate: str
) -> Tensor:
    hidden = F.gelu(F.linear(x, weight1, bias1), approximate=approximate)
    return F.linear(hidden, weight2, bias2)


def bias_gelu(u: Tensor, bias: Tensor, approximate: str) -> tuple[Tensor, Tensor]:
    hidden = F.gelu(u.float() + bias.float(), approximate=approximate).to(u.dtype)
    return hidden, largest_of(hidden)


def bias_gelu_backward(
    dout: Tensor, u: Tensor, bias: Tensor, approximate: str
) -> tuple[Tensor, Tensor, Tensor]:
    x = u.float() + bias.float()
    du = torch.ops.aten.gelu_backward(dout.float(), x, approximate=approximate)
    rounded = du.to(u.dtype)
    return rounded, du.sum(0).to(bias.dtype), largest_of(rounded)
