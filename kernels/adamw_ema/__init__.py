"""adamw_ema: AdamW and the weights' moving average over all parameters in one op."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..implementation import (
    FLOAT,
    FLOATS,
    Implementation,
    choose,
    number,
    refuse,
    require_device,
    require_floats,
    require_number,
    require_whole,
)
from . import cpp, reference, triton_kernel

IMPLEMENTATIONS = {
    "cpp": Implementation(cpp.adamw_ema, cpp.refusal),
    "triton": Implementation(triton_kernel.adamw_ema, triton_kernel.refusal),
    "reference": Implementation(reference.adamw_ema),
}


def check_numbers(
    op: str, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> None:
    """ValueError that names the first that AdamW cannot work with."""
    below_one = isinstance(betas, Sequence) and [number(b, 0) and b < 1 for b in betas]
    if below_one != [True, True]:
        refuse(op, "betas", "two numbers from 0 to below 1", betas)
    for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
        require_number(op, name, value)


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
    copies: Sequence[Tensor] = (),
    impl: str = "auto",
) -> None:
    """Updates params, exp_avgs, exp_avg_sqs and emas in place; grads are left as they are.

    Five lists of equal length with tensors of equal shapes, all on one device and of one float
    dtype; grads may be float32, bfloat16 or float16 instead. step counts from 1. grad_scale: 0-d
    float tensor that multiplies every gradient first (clipping, loss scaling); where it is not
    finite nothing is written, so that a device can call a step off without asking the host. On
    meta, where there is nothing to write, it is checks alone. emas moves towards the new parameters
    by 1 - ema_decay. copies: none, or a sixth list, bfloat16 or float16, that takes the new
    parameters rounded.
    Not for torch.compile, which would compile the step and the rate of each call anew.
    Raises ValueError naming a bad argument. Source: Loshchilov and Hutter, "Decoupled weight decay
    regularization", 2019, algorithm 2.

    >>> import torch
    >>> p, g, m, v, ema = ([torch.ones(3)] for _ in range(5))
    >>> adamw_ema(p, g, m, v, ema, step=1, lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0,
    ...           ema_decay=0.5, grad_scale=torch.tensor(1.0))
    >>> bool((ema[0] > p[0]).all())
    True
    """
    op = "adamw_ema"
    lists = {"params": params, "grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs,
             "emas": emas, "copies": copies}  # fmt: skip
    # By sets, each made once: a step of a small batch ends before a few calls a tensor do.
    for name, tensors in lists.items():
        if not isinstance(tensors, (list, tuple)):
            refuse(op, name, "a list of tensors", type(tensors))
        for kind in set(map(type, tensors)):
            if not issubclass(kind, Tensor):
                refuse(op, name, "tensors throughout", kind)
    for layout in {g.layout for g in grads}:
        if layout != torch.strided:
            refuse(op, "grads", "dense", layout)
    shapes, dtypes = [p.shape for p in params], {p.dtype for p in params}
    halves = (torch.bfloat16, torch.float16)
    taken = {"copies": halves, "grads": (torch.float32, *halves, *dtypes)}
    for name, tensors in lists.items():
        if name == "copies" and not tensors:
            continue
        if tensors is not params and (came := [t.shape for t in tensors]) != shapes:
            odd = next((a for a, b in zip(came, shapes) if a != b), len(came))
            refuse(op, name, f"of params' {len(shapes)} shapes", odd)
        first = params if name in ("exp_avgs", "exp_avg_sqs", "emas") else tensors
        for dtype in dtypes if tensors is params else {t.dtype for t in tensors}:
            if dtype not in FLOATS or dtype != tensors[0].dtype:
                refuse(op, name, f"of one dtype, {FLOAT}", dtype)
            if dtype != first[0].dtype:
                refuse(op, name, f"{first[0].dtype} as params", dtype)
            if dtype not in taken.get(name, (dtype,)):
                refuse(op, name, f"of a dtype among {taken.get(name)}", dtype)
        for device in {t.device for t in tensors}:
            if device != params[0].device:
                refuse(op, name, f"on {params[0].device}", device)
    if torch.is_grad_enabled():  # a graph may still need what a step would write over
        for name, tensors in lists.items():
            if name != "grads" and any(t.requires_grad for t in tensors):
                refuse(op, f"{name}.requires_grad", "False outside torch.no_grad()", True)
    check_numbers(op, lr, betas, eps, weight_decay)
    if not (number(ema_decay, 0) and ema_decay <= 1):
        refuse(op, "ema_decay", "from 0 to 1", ema_decay)
    require_whole(op, "step", step, 1)
    require_floats(op, grad_scale=grad_scale)
    if grad_scale.dim() != 0:
        refuse(op, "grad_scale", "a 0-d tensor", grad_scale.shape)
    if not params:
        return
    require_device(op, params[0], grad_scale=grad_scale)
    run = choose(op, impl, IMPLEMENTATIONS, params[0])
    run(params, grads, exp_avgs, exp_avg_sqs, emas, list(copies), step, lr, betas, eps,
        weight_decay, ema_decay, grad_scale)  # fmt: skip
