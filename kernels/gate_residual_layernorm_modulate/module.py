"""gate_residual_layernorm_modulate as a module."""

from torch import Tensor, nn

from ..implementation import require_impl, require_number
from . import IMPLEMENTATIONS, gate_residual_layernorm_modulate


class GateResidualLayerNormModulate(nn.Module):
    """h = x + gate y and LayerNorm(h) (1 + scale) + shift; no parameters.

    eps: under the root, 0 or more. Raises ValueError naming a bad setting, and in forward a bad
    argument. Source: adaLN-Zero (Peebles and Xie, 2023).

    >>> import torch
    >>> step = GateResidualLayerNormModulate()
    >>> x, y = torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    >>> h, out = step(x, y, *torch.randn(2, 24).chunk(3, dim=1))
    >>> h.shape, out.shape
    (torch.Size([2, 4, 8]), torch.Size([2, 4, 8]))
    """

    def __init__(self, eps: float = 1e-6, impl: str = "auto") -> None:
        super().__init__()
        require_number("GateResidualLayerNormModulate", "eps", eps)
        require_impl("GateResidualLayerNormModulate", impl, IMPLEMENTATIONS)
        self.eps, self.impl = eps, impl

    def forward(
        self, x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x, y: (B, T, D); gate, shift, scale: (B, D). Returns (h, normalised h) in x's dtype."""
        return gate_residual_layernorm_modulate(
            x, y, gate, shift, scale, eps=self.eps, impl=self.impl
        )

    def extra_repr(self) -> str:
        return f"eps={self.eps}, impl={self.impl!r}"
