"""layernorm_modulate as a module."""

from torch import Tensor, nn

from ..implementation import require_impl, require_number
from . import IMPLEMENTATIONS, layernorm_modulate


class LayerNormModulate(nn.Module):
    """LayerNorm(x) (1 + scale) + shift; no parameters, shift and scale come per sample.

    eps: under the root, 0 or more. Raises ValueError naming a bad setting, and in forward a bad
    argument. Source: adaLN (Peebles and Xie, 2023).

    >>> import torch
    >>> norm = LayerNormModulate()
    >>> x, shift, scale = torch.randn(2, 4, 8), torch.randn(2, 8), torch.randn(2, 8)
    >>> norm(x, shift, scale).shape
    torch.Size([2, 4, 8])
    """

    def __init__(self, eps: float = 1e-6, impl: str = "auto") -> None:
        super().__init__()
        require_number("LayerNormModulate", "eps", eps)
        require_impl("LayerNormModulate", impl, IMPLEMENTATIONS)
        self.eps, self.impl = eps, impl

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """x: (B, T, D); shift, scale: (B, D); any float dtypes. Returns (B, T, D) in x's dtype."""
        return layernorm_modulate(x, shift, scale, eps=self.eps, impl=self.impl)

    def extra_repr(self) -> str:
        return f"eps={self.eps}, impl={self.impl!r}"
