"""mlp_gelu as a module with its parameters."""

from torch import Tensor, nn

from ..implementation import refuse, require_impl, require_whole
from . import IMPLEMENTATIONS, mlp_gelu


class MLPGelu(nn.Module):
    """fc2(gelu(fc1(x))), with the state-dict names of timm's Mlp: fc1.weight, fc1.bias, ...

    width: of the input. hidden: default 4 width. out: default width. approximate: "none" (exact, as
    in ViT) or "tanh" (as in DiT). The op reads the parameters of fc1 and fc2 and calls neither: a
    hook on one, or an adapter put in its place, would be bypassed. device, dtype: as in nn.Linear.
    Raises ValueError naming a bad setting, and in forward a bad argument. Source: as mlp_gelu
    (Hendrycks and Gimpel, 2016; Vaswani et al., 2017).

    >>> import torch
    >>> mlp = MLPGelu(8, hidden=32, approximate="tanh")
    >>> mlp(torch.randn(2, 4, 8)).shape
    torch.Size([2, 4, 8])
    >>> list(mlp.state_dict())
    ['fc1.weight', 'fc1.bias', 'fc2.weight', 'fc2.bias']
    """

    def __init__(
        self,
        width: int,
        hidden: int | None = None,
        out: int | None = None,
        *,
        approximate: str = "none",
        impl: str = "auto",
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        if approximate not in ("none", "tanh"):
            refuse("MLPGelu", "approximate", "'none' or 'tanh'", approximate)
        require_impl("MLPGelu", impl, IMPLEMENTATIONS)
        require_whole("MLPGelu", "width", width, 1)
        hidden = 4 * width if hidden is None else hidden
        out = width if out is None else out
        require_whole("MLPGelu", "hidden", hidden, 1)
        require_whole("MLPGelu", "out", out, 1)
        self.fc1 = nn.Linear(width, hidden, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden, out, device=device, dtype=dtype)
        self.approximate, self.impl = approximate, impl

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., width). Returns (..., out)."""
        return mlp_gelu(
            x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias,
            approximate=self.approximate, impl=self.impl,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}, impl={self.impl!r}"
