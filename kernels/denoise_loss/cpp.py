"""The compiled loss."""

import torch
from torch import Tensor

from .. import native
from .fused import call, fake, register_autograd

if not native.MISSING:
    torch.library.register_fake("ldae::denoise_loss")(fake)
    register_autograd("ldae::denoise_loss")


def denoise_loss(*arguments) -> Tensor:
    """As the reference."""
    return call(torch.ops.ldae.denoise_loss, *arguments)[0]


def denoise_loss_and_gradient(*arguments) -> tuple[Tensor, Tensor]:
    """As the reference, in one pass."""
    return call(torch.ops.ldae.denoise_loss, *arguments)
