"""What the fused optimizer steps share: tensors with gaps are updated by way of a copy."""

import contextlib
from collections.abc import Iterator

from torch import Tensor


@contextlib.contextmanager
def contiguous(params, grads, *written: list[Tensor]) -> Iterator[list[list[Tensor]]]:
    """The same lists without gaps; what is written to a copy comes back at the end."""
    lists = [params, grads, *written]
    dense = [[t if t.is_contiguous() else t.contiguous() for t in one] for one in lists]
    yield dense
    for own, used in zip((params, *written), (dense[0], *dense[2:]), strict=True):
        for mine, theirs in zip(own, used, strict=True):
            if mine is not theirs:
                mine.copy_(theirs)
