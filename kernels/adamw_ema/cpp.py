"""The compiled optimizer step."""

import torch
from torch import Tensor

from .. import native
from .fused import contiguous


def refusal(param: Tensor) -> str:
    """Why the compiled step cannot take parameters like this one; '' when it can."""
    if param.device.type == "cpu" and param.dtype != torch.float32:
        return f"it takes float32 parameters, params are {param.dtype}"
    return native.refusal(param)


if not native.MISSING:

    @torch.library.register_fake("ldae::adamw_ema_")
    def _(*_) -> None:
        """Returns nothing."""


def adamw_ema(
    params, grads, exp_avgs, exp_avg_sqs, emas, copies, step, lr, betas, eps, weight_decay,
    ema_decay, grad_scale,
) -> None:  # fmt: skip
    """As the reference."""
    lists = (params, grads, exp_avgs, exp_avg_sqs, emas, copies)
    with contiguous(*lists) as lists:
        torch.ops.ldae.adamw_ema_(
            *lists, grad_scale.float(), step, lr, *betas, eps, weight_decay, ema_decay
        )
    if not torch.compiler.is_compiling():  # so that autograd notices what a graph still needs
        written = (*params, *exp_avgs, *exp_avg_sqs, *emas, *copies)
        torch.autograd.graph.increment_version(written)
