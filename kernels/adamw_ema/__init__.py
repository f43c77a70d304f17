"""adamw_ema: AdamW and the weights' moving average over all parameters in one op."""

from torch import Tensor

from ..implementation import Implementation, choose, require
from . import reference

IMPLEMENTATIONS = {"reference": Implementation(reference.adamw_ema)}


def adamw_ema(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    emas: list[Tensor],
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    ema_decay: float,
    grad_scale: Tensor,
    impl: str = "auto",
) -> None:
    """Updates params, exp_avgs, exp_avg_sqs and emas in place; grads are left as they are.

    Five lists of equal length with tensors of equal shapes. step counts from 1. grad_scale: 0-d
    tensor that multiplies every gradient first (clipping, loss scaling). emas moves towards the
    new parameters by 1 - ema_decay. Raises ValueError naming a bad argument. Source: Loshchilov and
    Hutter, "Decoupled weight decay regularization", algorithm 2.

    >>> import torch
    >>> p, g, m, v, ema = ([torch.ones(3)] for _ in range(5))
    >>> adamw_ema(p, g, m, v, ema, step=1, lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0,
    ...           ema_decay=0.5, grad_scale=torch.tensor(1.0))
    >>> bool((ema[0] > p[0]).all())
    True
    """
    lists = {"grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, "emas": emas}
    shapes = [p.shape for p in params]
    for name, tensors in lists.items():
        same = [t.shape for t in tensors] == shapes
        require(same, "adamw_ema", name, "a list like params", f"{len(tensors)} tensors")
    require(step >= 1, "adamw_ema", "step", "1 or more", step)
    if not params:
        return
    choose("adamw_ema", impl, IMPLEMENTATIONS, grad_scale)(
        params, grads, exp_avgs, exp_avg_sqs, emas, step, lr, betas, eps, weight_decay, ema_decay,
        grad_scale,
    )  # fmt: skip
