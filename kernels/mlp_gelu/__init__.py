"""mlp_gelu: the two-layer perceptron of a transformer block."""

from torch import Tensor

from .. import triton_launch
from ..implementation import Implementation, choose, refuse, require_floats, under_autocast
from . import cpp, reference, triton_kernel

IMPLEMENTATIONS = {
    "cpp": Implementation(cpp.mlp_gelu, cpp.refusal),
    "triton": Implementation(triton_kernel.mlp_gelu, triton_launch.refusal),
    "reference": Implementation(reference.mlp_gelu),
}


def mlp_gelu(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    *,
    approximate: str = "none",
    impl: str = "auto",
) -> Tensor:
    """gelu(x weight1^T + bias1) weight2^T + bias2, follows autocast.

    x: (..., D). weight1: (hidden, D), bias1: (hidden,), weight2: (out, hidden), bias2: (out,), all
    of x's float type but under autocast. approximate: "none" (exact, as in ViT) or "tanh" (as in
    DiT). Returns (..., out) in x's dtype, or autocast's. Raises ValueError naming a bad argument.
    Source: GELU, Hendrycks and Gimpel, 2016, in place of the ReLU in the transformer's perceptron,
    Vaswani et al., 2017, section 3.3.

    >>> import torch
    >>> fc1, fc2 = torch.nn.Linear(8, 32), torch.nn.Linear(32, 8)
    >>> mlp_gelu(torch.randn(2, 4, 8), fc1.weight, fc1.bias, fc2.weight, fc2.bias).shape
    torch.Size([2, 4, 8])
    """
    op = "mlp_gelu"
    if approximate not in ("none", "tanh"):
        refuse(op, "approximate", "'none' or 'tanh'", approximate)
    tensors = {"weight1": weight1, "bias1": bias1, "weight2": weight2, "bias2": bias2}
    require_floats(op, x=x, **tensors)
    if not under_autocast(x):
        for name, tensor in tensors.items():
            if tensor.dtype != x.dtype:
                refuse(op, f"{name}.dtype", f"x's, {x.dtype}", tensor.dtype)
    for name, weight in (("weight1", weight1), ("weight2", weight2)):
        if weight.dim() != 2:
            refuse(op, name, "(out, in)", weight.shape)
    hidden, width = weight1.shape
    if x.shape[-1:] != (width,):
        refuse(op, "x", f"(..., {width})", x.shape)
    if bias1.shape != (hidden,):
        refuse(op, "bias1", f"({hidden},)", bias1.shape)
    if weight2.shape[1:] != (hidden,):
        refuse(op, "weight2", f"(out, {hidden})", weight2.shape)
    out = weight2.shape[:1]
    if bias2.shape != out:
        refuse(op, "bias2", out, bias2.shape)
    run = choose(op, impl, IMPLEMENTATIONS, x)
    return run(x, weight1, bias1, weight2, bias2, approximate)
