"""One AdamW step with decoupled weight decay, gradient clipping and an EMA: the definition.

Loshchilov and Hutter, "Decoupled weight decay regularization", algorithm 2.
"""

import torch
from torch import Tensor


def adamw_ema(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    emas: list[Tensor],
    copies: list[Tensor],
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    ema_decay: float,
    grad_scale: Tensor,
) -> None:
    if grad_scale.is_meta or not grad_scale.isfinite():
        return
    beta1, beta2 = betas
    grads = torch._foreach_mul([g.to(params[0].dtype) for g in grads], grad_scale)
    torch._foreach_mul_(params, 1 - lr * weight_decay)
    torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)
    denominators = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_div_(denominators, (1 - beta2**step) ** 0.5)
    torch._foreach_add_(denominators, eps)
    torch._foreach_addcdiv_(params, exp_avgs, denominators, -lr / (1 - beta1**step))
    torch._foreach_lerp_(emas, params, 1 - ema_decay)
    if copies:
        torch._foreach_copy_(copies, params)
