"""denoise_loss as a module."""

from torch import Tensor, nn

from ..implementation import require_floats, require_impl
from ..patches import ImageView
from . import IMPLEMENTATIONS, check_components, denoise_loss


class DenoiseLoss(nn.Module):
    """The l-DAE loss of one tokenizer: its tensors are buffers, not parameters.

    Raises ValueError naming a bad setting, and in forward a bad argument. Source: arXiv 2401.14404,
    equation 6.

    >>> import torch
    >>> loss = DenoiseLoss(torch.eye(48)[:12], ImageView(4))
    >>> images = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    >>> loss(torch.ones(2, 4, 48), images, torch.ones(2))
    tensor([0.3250, 0.3250])
    """

    def __init__(
        self,
        basis: Tensor,
        view: ImageView,
        weights: Tensor | tuple[float, float] = (1.0, 0.1),
        impl: str = "auto",
    ) -> None:
        """basis: V_d (d, P), over values in patchify's order. weights: of its components, and of
        all others; or (P,), one each. impl: as in denoise_loss."""
        super().__init__()
        given = {"weights": weights} if isinstance(weights, Tensor) else {}
        require_floats("DenoiseLoss", basis=basis, **given)
        check_components("DenoiseLoss", basis, view, weights)
        require_impl("DenoiseLoss", impl, IMPLEMENTATIONS)
        self.register_buffer("basis", basis)
        self.view, self.impl = view, impl
        if isinstance(weights, Tensor):
            self.register_buffer("weights", weights)
        else:
            self.weights = weights

    def forward(
        self,
        pred: Tensor,
        images: Tensor,
        level_weight: Tensor,
        flip: Tensor | None = None,
        crop: Tensor | None = None,
        size: int | None = None,
    ) -> Tensor:
        """pred: (B, T, P), images: uint8 (B, H, W, C) or float (B, C, H, W), level_weight: (B,);
        flip, crop, size: as in denoise_loss. Returns (B,), float32 (float64 for float64 pred)."""
        return denoise_loss(
            pred, images, self.basis, level_weight, view=self.view, weights=self.weights,
            flip=flip, crop=crop, size=size, impl=self.impl,
        )  # fmt: skip

    def extra_repr(self) -> str:
        weights = tuple(self.weights.shape) if isinstance(self.weights, Tensor) else self.weights
        return f"basis={tuple(self.basis.shape)}, weights={weights}, impl={self.impl!r}"
