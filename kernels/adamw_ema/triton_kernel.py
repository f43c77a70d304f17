"""adamw_ema on a GPU: one launch over all tensors, each value read and written once.

Two tables in device memory: which tensor each program works on, which never changes, and every
tensor's size and addresses, which changes with the gradients', in most steps: it is small, and sent
without the host waiting.
"""

import functools

import torch
from torch import Tensor

from .. import triton_launch
from ..triton_launch import MISSING, launch
from .fused import contiguous

BLOCK, WARPS = 2048, 8  # values that a program updates, and by how many warps
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def refusal(param: Tensor) -> str:
    """Why the kernel cannot take parameters like this one; '' when it can."""
    if param.dtype != torch.float32:
        return f"it takes float32 parameters, params are {param.dtype}"
    return triton_launch.refusal(param)


if not MISSING:
    import triton
    import triton.language as tl

    @triton.jit
    def tensor_at(table, index, KIND: tl.constexpr, ALIGNED: tl.constexpr):
        """The pointer at an index of the table."""
        pointer = tl.load(table + index).to(tl.pointer_type(KIND))
        # To four values, so that one access takes them: 16 bytes of float32. Of 16-bit values too:
        # eight to a thread would have to change threads to meet the others.
        if ALIGNED:
            pointer = tl.multiple_of(pointer, 4 * KIND.primitive_bitwidth // 8)
        return pointer

    @triton.jit
    def lerp(start, end, weight):
        """From the end that is nearer; from the other one its rounding errors would stay."""
        near, far = start + weight * (end - start), end - (1 - weight) * (end - start)
        return tl.where(weight < 0.5, near, far)

    @triton.jit
    def update_block(
        row, at, keep, scale, first, beta2, second, eps, shrink, rate, root, toward,
        GRAD: tl.constexpr, COPY: tl.constexpr, COPIES: tl.constexpr, ALIGNED: tl.constexpr,
    ):  # fmt: skip
        param = tensor_at(row, 1, tl.float32, ALIGNED) + at
        exp_avg = tensor_at(row, 3, tl.float32, ALIGNED) + at
        exp_avg_sq = tensor_at(row, 4, tl.float32, ALIGNED) + at
        ema = tensor_at(row, 5, tl.float32, ALIGNED) + at
        g = tl.load(tensor_at(row, 2, GRAD, ALIGNED) + at, keep).to(tl.float32) * scale
        m = lerp(tl.load(exp_avg, keep), g, first)
        v = beta2 * tl.load(exp_avg_sq, keep) + second * g * g
        p = shrink * tl.load(param, keep) - rate * m / (tl.sqrt_rn(v) / root + eps)
        tl.store(exp_avg, m, keep)
        tl.store(exp_avg_sq, v, keep)
        tl.store(param, p, keep)
        tl.store(ema, lerp(tl.load(ema, keep), p, toward), keep)
        if COPIES:
            tl.store(tensor_at(row, 6, COPY, ALIGNED) + at, p.to(COPY), keep)

    @triton.jit
    def adamw_ema_kernel(
        table, owners, grad_scale, first, beta2, second, eps, shrink, rate, root, toward,
        GRAD: tl.constexpr, COPY: tl.constexpr, COPIES: tl.constexpr, ALIGNED: tl.constexpr,
        BLOCK: tl.constexpr,
    ):  # fmt: skip
        row = table + tl.load(owners + tl.program_id(0) * 2) * 7
        begin = tl.load(owners + tl.program_id(0) * 2 + 1) * BLOCK
        begin = tl.multiple_of(begin, BLOCK)
        at = begin + tl.arange(0, BLOCK)
        count = tl.load(row)
        scale = tl.load(grad_scale)
        if scale - scale == 0:  # else it is not finite, and the step is called off
            if begin + BLOCK <= count:  # without a mask accesses are as wide as alignment allows
                update_block(row, at, None, scale, first, beta2, second, eps,
                             shrink, rate, root, toward, GRAD, COPY, COPIES, ALIGNED)  # fmt: skip
            else:
                update_block(row, at, at < count, scale, first, beta2, second, eps,
                             shrink, rate, root, toward, GRAD, COPY, COPIES, ALIGNED)  # fmt: skip

    KINDS = dict(zip(DTYPES, (tl.float32, tl.bfloat16, tl.float16), strict=True))

    @functools.lru_cache(maxsize=8)
    def programs(device, sizes: tuple[int, ...], block: int) -> Tensor:
        """(tensor, which block of so many values) of each program, int64."""
        owners = [(i, j) for i, n in enumerate(sizes) for j in range(triton.cdiv(n, block))]
        return torch.tensor(owners, dtype=torch.int64, device=device)

    @functools.lru_cache(maxsize=8)
    def places(device, sizes: tuple[int, ...], addresses: tuple) -> Tensor:
        """Size and addresses of each tensor, int64 (tensors, 7)."""
        rows = [(n, *own) for n, own in zip(sizes, zip(*addresses, strict=True), strict=True)]
        table = torch.tensor(rows, dtype=torch.int64)
        if device.type == "cuda":  # from pinned memory, which waits for nothing
            table = table.pin_memory()
        return table.to(device, non_blocking=True)

    @torch.library.custom_op(
        "ldae_triton::adamw_ema_",
        mutates_args=("params", "exp_avgs", "exp_avg_sqs", "emas", "copies"),
    )
    def run(
        params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor],
        exp_avg_sqs: list[Tensor], emas: list[Tensor], copies: list[Tensor], grad_scale: Tensor,
        step: float, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
        ema_decay: float,
    ) -> None:  # fmt: skip
        lists = (params, grads, exp_avgs, exp_avg_sqs, emas, copies or params)
        sizes = tuple(p.numel() for p in params)
        addresses = tuple(tuple(t.data_ptr() for t in one) for one in lists)
        device = params[0].device
        table, owners = places(device, sizes, addresses), programs(device, sizes, BLOCK)
        launch(
            adamw_ema_kernel, (owners.shape[0],), table, owners, grad_scale, 1 - beta1, beta2,
            1 - beta2, eps, 1 - lr * weight_decay, lr / (1 - beta1**step),
            (1 - beta2**step) ** 0.5, 1 - ema_decay,
            GRAD=KINDS[grads[0].dtype], COPY=KINDS[(copies or params)[0].dtype],
            COPIES=bool(copies), BLOCK=BLOCK,
            ALIGNED=all(a % 16 == 0 for one in addresses for a in one),
            num_warps=WARPS, num_stages=1,
        )  # fmt: skip


def adamw_ema(
    params, grads, exp_avgs, exp_avg_sqs, emas, copies, step, lr, betas, eps, weight_decay,
    ema_decay, grad_scale,
) -> None:  # fmt: skip
    """As the reference."""
    with contiguous(params, grads, exp_avgs, exp_avg_sqs, emas, copies) as lists:
        run(*lists, grad_scale.float(), step, lr, *betas, eps, weight_decay, ema_decay)
