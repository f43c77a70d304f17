"""The loss over the most components that "auto" gives its kernel, for test_aot.py to compile."""

import aot
import torch
from ldae_fast.kernels.denoise_loss.triton_kernel import FITS
from ldae_fast.kernels.patches import ImageView

from ldae_fast import ops


def main(launch) -> None:
    def meta(*shape, dtype=torch.float32):
        return torch.empty(shape, dtype=dtype, device="meta")

    with aot.patched("denoise_loss", lambda kernel, _, *a, **k: launch(kernel, *a, **k)):
        ops.denoise_loss_and_gradient(
            meta(128, 256, 768, dtype=torch.bfloat16), meta(128, 256, 256, 3, dtype=torch.uint8),
            meta(FITS, 768), meta(128), meta(128), view=ImageView(16), impl="triton",
        )  # fmt: skip
