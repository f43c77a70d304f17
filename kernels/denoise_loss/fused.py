"""What the fused losses share: one registered op for value and gradient, and its autograd.

op(pred, images, basis (d, P), excess (d,), level (B,), upstream (B,) or None, flip, crop, mean,
std, rest, height, width, patch) -> (loss (B,), gradient in pred, empty without upstream). One pass
gives either or both. The backward pass of autograd is that pass again with the upstream gradient:
keeping a gradient from the forward pass would move more bytes, and round twice.
"""

import torch
from torch import Tensor

from ..implementation import require_first_order
from ..patches import ImageView


def fake(pred, images, basis, excess, level, upstream, *_):
    """The shapes that such an op returns."""
    nothing = pred.new_empty(0, *pred.shape[1:])
    return torch.empty_like(level), nothing if upstream is None else torch.empty_like(pred)


def register_autograd(name: str) -> None:
    """The derivative of the registered op `name` in pred."""
    space, short = name.split("::")

    def keep(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs[:5], *inputs[6:8])
        ctx.settings = inputs[8:]

    def backward(ctx, dloss, _):
        require_first_order("denoise_loss")
        *given, flip, crop = ctx.saved_tensors
        op = getattr(getattr(torch.ops, space), short)
        return op(*given, dloss.float().contiguous(), flip, crop, *ctx.settings)[1], *[None] * 13

    torch.library.register_autograd(name, backward, setup_context=keep)


def call(op, pred, images, basis, excess, rest, level_weight, view: ImageView, flip, crop, size,
         upstream: Tensor | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The op on contiguous tensors."""
    uint8 = images.dtype == torch.uint8
    height, width = images.shape[1:3] if uint8 else images.shape[2:4]
    if size is not None:
        height = width = size
    return op(
        pred.contiguous(),
        (images if uint8 else images.float()).contiguous(),
        basis.float().contiguous(),
        excess.float().contiguous(),
        level_weight.float().contiguous(),
        None if upstream is None else upstream.float().contiguous(),
        None if flip is None else flip.contiguous(),
        None if crop is None else crop.long().contiguous(),
        view.mean,
        view.std,
        rest,
        height,
        width,
        view.patch,
    )
