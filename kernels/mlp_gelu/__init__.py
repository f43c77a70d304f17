"""mlp_gelu: the two-layer perceptron of a transformer block."""

from torch import Tensor

from .. import native
from ..implementation import Implementation, choose, require
from . import cpp, reference

IMPLEMENTATIONS = {
    "cpp": Implementation(cpp.mlp_gelu, native.refusal),
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

    x: (..., D). weight1: (hidden, D), bias1: (hidden,), weight2: (out, hidden), bias2: (out,).
    approximate: "none" (exact, as in ViT) or "tanh" (as in DiT). Returns (..., out).
    Raises ValueError naming a bad argument.
    """
    op = "mlp_gelu"
    require(approximate in ("none", "tanh"), op, "approximate", "'none' or 'tanh'", approximate)
    hidden, width = weight1.shape
    require(x.shape[-1:] == (width,), op, "x", f"(..., {width})", tuple(x.shape))
    require(tuple(bias1.shape) == (hidden,), op, "bias1", f"({hidden},)", tuple(bias1.shape))
    require(weight2.shape[1:] == (hidden,), op, "weight2", f"(out, {hidden})", tuple(weight2.shape))
    out = weight2.shape[:1]
    require(bias2.shape == out, op, "bias2", tuple(out), tuple(bias2.shape))
    run = choose(op, impl, IMPLEMENTATIONS, x)
    return run(x, weight1, bias1, weight2, bias2, approximate)
