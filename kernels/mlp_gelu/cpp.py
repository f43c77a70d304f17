"""The perceptron with a compiled middle: bias and GELU in one pass, forward and backward."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import native
from ..implementation import require_first_order
from ..quantise_float8.reference import largest_of


def register() -> None:
    """Tells torch the shapes and the derivative; the schemas come with the library."""

    @torch.library.register_fake("ldae::bias_gelu_forward")
    def _(u, bias, tanh):
        return torch.empty_like(u)

    @torch.library.register_fake("ldae::bias_gelu_backward")
    def _(dout, u, bias, tanh):
        return torch.empty_like(u), bias.new_empty(bias.shape)

    torch.library.register_autograd("ldae::bias_gelu_forward", backward, setup_context=keep)


def keep(ctx, inputs, output) -> None:
    u, bias, ctx.tanh = inputs
    ctx.save_for_backward(u, bias)


def backward(ctx, dout):
    require_first_order("mlp_gelu")
    u, bias = ctx.saved_tensors
    du, dbias = torch.ops.ldae.bias_gelu_backward(dout.contiguous(), u, bias, ctx.tanh)
    return du, dbias, None


if not native.MISSING:
    register()


def refusal(x: Tensor) -> str:
    """Why the compiled middle cannot take what the first product makes of x; '' when it can."""
    if torch.is_autocast_enabled("cpu") and x.device.type == "cpu" and x.dtype != torch.float64:
        made = torch.get_autocast_dtype("cpu")
        if made not in native.DTYPES:
            return f"it takes float32 or bfloat16, autocast makes {made} of x"
        return native.MISSING
    return native.refusal(x)


def mlp_gelu(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, approximate: str
) -> Tensor:
    u = F.linear(x, weight1).contiguous()
    hidden = torch.ops.ldae.bias_gelu_forward(u, bias1, approximate == "tanh")
    return F.linear(hidden, weight2, bias2)


def bias_gelu(u: Tensor, bias: Tensor, approximate: str) -> tuple[Tensor, Tensor]:
    """As the reference."""
    hidden = torch.ops.ldae.bias_gelu_forward(u.contiguous(), bias, approximate == "tanh")
    return hidden, largest_of(hidden)


def bias_gelu_backward(
    dout: Tensor, u: Tensor, bias: Tensor, approximate: str
) -> tuple[Tensor, Tensor, Tensor]:
    """As the reference."""
    run = torch.ops.ldae.bias_gelu_backward
    du, dbias = run(dout.contiguous(), u.contiguous(), bias, approximate == "tanh")
    return du, dbias, largest_of(du)
