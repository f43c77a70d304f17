"""attention: full attention over short sequences, by the fastest back end for the device."""

from torch import Tensor

from ..implementation import Implementation, choose, require
from . import matmul, reference, sdpa

MATMUL, SDPA = Implementation(matmul.attention), Implementation(sdpa.attention)
REFERENCE = Implementation(reference.attention)
ON_CPU = {"matmul": MATMUL, "sdpa": SDPA, "reference": REFERENCE}
ON_GPU = {"sdpa": SDPA, "matmul": MATMUL, "reference": REFERENCE}


def attention(q: Tensor, k: Tensor, v: Tensor, *, impl: str = "auto") -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v, without mask or dropout.

    q, k, v: (B, T, heads, head_dim), views of a packed projection welcome. Returns the same shape
    in q's dtype. impl: auto, matmul, sdpa or reference. Raises ValueError naming a bad argument.
    """
    require(q.dim() == 4, "attention", "q", "(B, T, heads, head_dim)", tuple(q.shape))
    for name, value in (("k", k), ("v", v)):
        require(value.shape == q.shape, "attention", name, tuple(q.shape), tuple(value.shape))
    table = ON_GPU if q.is_cuda else ON_CPU
    return choose("attention", impl, table, q)(q, k, v)
