"""denoise_loss: the l-DAE loss straight from the uint8 image, one value a sample."""

import torch
from torch import Tensor

from .. import native, triton_launch
from ..implementation import (
    Implementation,
    choose,
    number,
    refuse,
    require_device,
    require_floats,
)
from ..patches import ImageView, check_basis, check_images
from . import cpp, reference, triton_kernel

IMPLEMENTATIONS = {
    "cpp": Implementation(cpp.denoise_loss, native.refusal),
    "triton": Implementation(triton_kernel.denoise_loss, triton_launch.refusal),
    "reference": Implementation(reference.denoise_loss),
}
AND_GRADIENT = {
    "cpp": Implementation(cpp.denoise_loss_and_gradient, native.refusal),
    "triton": Implementation(triton_kernel.denoise_loss_and_gradient, triton_launch.refusal),
    "reference": Implementation(reference.denoise_loss_and_gradient),
}


def denoise_loss(
    pred: Tensor,
    images: Tensor,
    basis: Tensor,
    level_weight: Tensor,
    *,
    view: ImageView,
    weights: Tensor | tuple[float, float] = (1.0, 0.1),
    flip: Tensor | None = None,
    crop: Tensor | None = None,
    size: int | None = None,
    impl: str = "auto",
) -> Tensor:
    """Weighted PCA residue of pred against the images (arXiv 2401.14404, equation 6).

    pred: (B, T, P) normalised patches, in patchify's order. images, view, flip, crop, size: as in
    patch_pca_noise. level_weight: lambda, (B,). weights: (w_kept, w_rest) with orthonormal rows
    V_d (d, P), which takes the exact shortcut; or one weight a component, (P,), with the full basis
    V (P, P). pred, basis, level_weight and a tensor of weights are each of any float dtype.
    Returns (B,) float32 (float64 for float64 pred): lambda times the mean over the T*P weighted
    squared residues. Differentiable in pred, once; by impl="reference" twice and in every argument,
    so "auto" takes that where another one requires a gradient. Raises ValueError naming a bad
    argument.

    >>> import torch
    >>> images = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    >>> pred = torch.ones(2, 4, 48)
    >>> denoise_loss(pred, images, torch.eye(48)[:12], torch.ones(2), view=ImageView(4))
    tensor([0.3250, 0.3250])
    """
    check("denoise_loss", pred, images, basis, level_weight, view, weights, flip, crop, size)
    basis, excess, rest = split(weights, basis, pred)
    constants = {"images": images, "basis": basis, "level_weight": level_weight, "weights": excess}
    run = choose("denoise_loss", able(impl, pred, basis), IMPLEMENTATIONS, pred, constants)
    return run(pred, images, basis, excess, rest, level_weight, view, flip, crop, size)


def denoise_loss_and_gradient(
    pred: Tensor,
    images: Tensor,
    basis: Tensor,
    level_weight: Tensor,
    upstream: Tensor,
    *,
    view: ImageView,
    weights: Tensor | tuple[float, float] = (1.0, 0.1),
    flip: Tensor | None = None,
    crop: Tensor | None = None,
    size: int | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """denoise_loss and its gradient in one pass, for a trainer that knows the upstream gradient.

    upstream: (B,), the derivative of what is minimised by each sample's loss; 1 / B for a mean.
    Returns (loss (B,), dpred (B, T, P) in pred's dtype), neither of them differentiable: go on with
    `pred.backward(dpred)`. The rest is as in denoise_loss. Raises ValueError naming a bad argument.
    Source: arXiv 2401.14404, equation 6.

    >>> import torch
    >>> images = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    >>> pred = torch.ones(2, 4, 48, requires_grad=True)
    >>> loss, dpred = denoise_loss_and_gradient(pred, images, torch.eye(48)[:12], torch.ones(2),
    ...                                         torch.full((2,), 1 / 2), view=ImageView(4))
    >>> pred.backward(dpred)
    >>> float(loss.mean()), pred.grad.shape
    (0.32499998807907104, torch.Size([2, 4, 48]))
    """
    op = "denoise_loss_and_gradient"
    check(op, pred, images, basis, level_weight, view, weights, flip, crop, size)
    require_floats(op, pred=pred, upstream=upstream)
    if upstream.shape != images.shape[:1]:
        refuse(op, "upstream", "(B,)", upstream.shape)
    basis, excess, rest = split(weights, basis, pred)
    run = choose(op, able(impl, pred, basis), AND_GRADIENT, pred)
    with torch.no_grad():
        return run(pred.detach(), images, basis, excess, rest, level_weight, view, flip, crop,
                   size, upstream)  # fmt: skip


def check(op, pred, images, basis, level_weight, view, weights, flip, crop, size) -> None:
    """ValueError that names the first bad argument."""
    require_floats(op, pred=pred, basis=basis, level_weight=level_weight)
    if isinstance(weights, Tensor):
        require_floats(op, pred=pred, weights=weights)
    check_images(op, images, view, flip, crop, size)
    require_device(op, pred, images=images)
    values = check_components(op, basis, view, weights)
    side = images.shape[2:4] if images.is_floating_point() else images.shape[1:3]
    height, width = side if size is None else (size, size)
    tokens = (height // view.patch) * (width // view.patch)
    shape = (images.shape[0], tokens, values)
    if pred.shape != shape:
        refuse(op, "pred", shape, pred.shape)
    if level_weight.shape != shape[:1]:
        refuse(op, "level_weight", shape[:1], level_weight.shape)


def check_components(op: str, basis: Tensor, view: ImageView, weights) -> int:
    """P, the values of the view's patches; ValueError where basis or weights are not for them."""
    values = check_basis(op, basis, view)
    if isinstance(weights, Tensor):
        if not weights.shape == (basis.shape[0],) == (values,):
            came = (tuple(weights.shape), tuple(basis.shape))
            refuse(op, "weights", f"({values},) with the full basis", came)
        return values
    two = isinstance(weights, tuple | list) and len(weights) == 2 and all(map(number, weights))
    if not two:
        refuse(op, "weights", "(w_kept, w_rest) or a tensor", weights)
    return values


def able(impl: str, pred: Tensor, basis: Tensor) -> str:
    """Leaves a basis that does not fit a Triton program's registers to cuBLAS, unless told so."""
    large = basis.shape[0] > triton_kernel.FITS and pred.device.type == "cuda"
    return "reference" if impl == "auto" and large else impl


def split(
    weights: Tensor | tuple[float, float], basis: Tensor, pred: Tensor
) -> tuple[Tensor, Tensor, float]:
    """(V_d, c (d,), rest): c is what V_d's components weigh above what all components do.

    Where two levels are asked for and none is dropped, all weigh the same: no product is needed.
    """
    if isinstance(weights, Tensor):
        return basis, weights, 0.0
    kept, rest = weights
    if basis.shape[0] == basis.shape[1]:
        basis, rest = basis[:0], kept
    dtype = torch.promote_types(pred.dtype, torch.float32)  # a 16-bit basis would round them
    return basis, basis.new_full((basis.shape[0],), kept - rest, dtype=dtype), float(rest)
