"""Multi-head self-attention as a module, under timm's parameter names."""

from torch import Tensor, nn

from ..implementation import refuse, require_impl, require_whole
from . import PACKED, attention_packed


class Attention(nn.Module):
    """Projects x to q, k, v, attends, projects back.

    width: D; heads: a divisor of D. bias (of both projections), device, dtype: as in nn.Linear.
    State: qkv.weight, qkv.bias, proj.weight, proj.bias. Raises ValueError naming a bad setting.
    Source: Vaswani et al., 2017, section 3.2.2.

    >>> import torch
    >>> Attention(384, heads=6)(torch.randn(2, 256, 384)).shape
    torch.Size([2, 256, 384])
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        bias: bool = True,
        impl: str = "auto",
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        require_whole("Attention", "width", width, 1)
        require_whole("Attention", "heads", heads, 1)
        if width % heads:
            refuse("Attention", "heads", f"a divisor of width {width}", heads)
        require_impl("Attention", impl, PACKED)
        self.heads, self.impl = heads, impl
        self.qkv = nn.Linear(width, 3 * width, bias=bias, device=device, dtype=dtype)
        self.proj = nn.Linear(width, width, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, D), in the parameters' dtype or under autocast. Returns the same shape."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, x.shape[-1] // self.heads))
        return self.proj(attention_packed(qkv, impl=self.impl).flatten(2))

    def extra_repr(self) -> str:
        return f"heads={self.heads}, impl={self.impl!r}"
