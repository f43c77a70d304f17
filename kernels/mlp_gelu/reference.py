"""fc2(gelu(fc1(x))): the definition; and that of its middle, with the largest values in it."""

import torch
import torch.nn.functional as F
from torch import Tensor


def mlp_gelu(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, approximate: str
) -> Tensor:
    hidden = F.gelu(F.linear(x, weight1, bias1), approximate=approximate)
    return F.linear(hidden, weight2, bias2)


def bias_gelu(u: Tensor, bias: Tensor, approximate: str) -> tuple[Tensor, Tensor]:
    hidden = F.gelu(u.float() + bias.float(), approximate=approximate).to(u.dtype)
    return hidden, hidden.abs().amax().float()


def bias_gelu_backward(
    dout: Tensor, u: Tensor, bias: Tensor, approximate: str
) -> tuple[Tensor, Tensor, Tensor]:
    x = u.float() + bias.float()
    du = torch.ops.aten.gelu_backward(dout.float(), x, approximate=approximate)
    rounded = du.to(u.dtype)
    return rounded, du.sum(0).to(bias.dtype), rounded.abs().amax().float()
