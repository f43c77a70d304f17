"""denoise_loss: the l-DAE loss straight from the uint8 image, one value a sample."""

from torch import Tensor

from ..implementation import Implementation, choose, require
from ..patches import ImageView, check_images
from . import reference

IMPLEMENTATIONS = {"reference": Implementation(reference.denoise_loss)}
TWO_LEVEL = {"reference": Implementation(reference.denoise_loss_two_level)}


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

    pred: (B, T, P) normalised patches. images, view, flip, crop, size: as in patch_pca_noise.
    level_weight: lambda, (B,). weights: (w_kept, w_rest) with basis V_d (d, P), which takes the
    exact shortcut; or one weight a component, (P,), with the full basis V (P, P).
    Returns (B,) float32 (float64 for float64 pred): lambda times the mean over the T*P weighted
    squared residues. Differentiable in pred. Raises ValueError naming a bad argument.

    >>> import torch
    >>> images = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    >>> pred = torch.ones(2, 4, 48)
    >>> denoise_loss(pred, images, torch.eye(48)[:12], torch.ones(2), view=ImageView(4))
    tensor([0.3250, 0.3250])
    """
    op = "denoise_loss"
    check_images(op, images, view, flip, crop, size)
    values = view.patch**2 * len(view.mean)
    side = images.shape[2:4] if images.is_floating_point() else images.shape[1:3]
    height, width = side if size is None else (size, size)
    tokens = (height // view.patch) * (width // view.patch)
    shape = (len(images), tokens, values)
    require(tuple(pred.shape) == shape, op, "pred", shape, tuple(pred.shape))
    require(
        basis.dim() == 2 and basis.shape[1] == values, op, "basis", f"(d, {values})", basis.shape
    )
    require(tuple(level_weight.shape) == shape[:1], op, "level_weight", shape[:1],
            tuple(level_weight.shape))  # fmt: skip
    if isinstance(weights, Tensor):
        fits = tuple(weights.shape) == (len(basis),) == (values,)
        came = (tuple(weights.shape), tuple(basis.shape))
        require(fits, op, "weights", f"({values},) with the full basis", came)
        run = choose(op, impl, IMPLEMENTATIONS, pred)
        return run(pred, images, basis, weights, level_weight, view, flip, crop, size)
    run = choose(op, impl, TWO_LEVEL, pred)
    return run(pred, images, basis, *weights, level_weight, view, flip, crop, size)
