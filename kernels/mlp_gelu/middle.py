"""The perceptron's middle for products of another kind: bias and GELU, with their largest values.

Whoever makes the products in float8 scales by the largest value of what goes into each. Here it
comes from the pass that writes it.
"""

from torch import Tensor

from .. import native, triton_launch
from ..implementation import Implementation, choose
from . import cpp, reference, triton_kernel

VALUES = {
    "cpp": Implementation(cpp.bias_gelu, native.refusal),
    "triton": Implementation(triton_kernel.bias_gelu, triton_launch.refusal),
    "reference": Implementation(reference.bias_gelu),
}
GRADIENTS = {
    "cpp": Implementation(cpp.bias_gelu_backward, native.refusal),
    "triton": Implementation(triton_kernel.bias_gelu_backward, triton_launch.refusal),
    "reference": Implementation(reference.bias_gelu_backward),
}


def bias_gelu(
    u: Tensor, bias: Tensor, approximate: str, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """(gelu(u + bias) in u's dtype, its largest |value| (), float32), for u (T, K), not empty.

    bias: (K,), of any float dtype; what is between is float32. approximate: as in mlp_gelu. Not
    finite where u or bias is not.
    """
    return choose("mlp_gelu", impl, VALUES, u)(u, bias, approximate)


def bias_gelu_backward(
    dout: Tensor, u: Tensor, bias: Tensor, approximate: str, impl: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """(du in u's dtype, dbias in bias's, largest |du| (), float32) for the gradient of bias_gelu.

    dout and u: (T, K), of one dtype.
    """
    return choose("mlp_gelu", impl, GRADIENTS, u)(dout, u, bias, approximate)
