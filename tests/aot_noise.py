"""The noise op's kernels over numbers of latents, for test_noise_kernels.py to compile."""

import aot
import torch
from ldae_fast.kernels.patch_pca_noise.reference import OUTPUTS
from ldae_fast.kernels.patch_pca_noise.triton_kernel import FUSED
from ldae_fast.kernels.patches import ImageView

from ldae_fast import ops

LATENTS = (5, 64, 128, 768)  # besides those of the benchmark cases
WAYS = {  # name: (images, patch, options)
    "bytes": ((128, 256, 256, 3), 16, {}),
    "crop": ((128, 260, 260, 3), 16, {"size": 256}),
    "small": ((512, 32, 32, 3), 4, {}),
    "float": ((128, 3, 256, 256), 16, {}),
}


def main(launch) -> None:
    def meta(*shape, dtype=torch.float32):
        return torch.empty(shape, dtype=dtype, device="meta")

    with aot.patched("patch_pca_noise", lambda kernel, _, *a, **k: launch(kernel, *a, **k)):
        for name, (shape, patch, more) in WAYS.items():
            images = meta(*shape, dtype=torch.float32 if name == "float" else torch.uint8)
            values, batch = 3 * patch**2, shape[0]
            if "size" in more:
                more = more | {"crop": meta(batch, 2, dtype=torch.int64)}
            for d in LATENTS if name == "bytes" else (16,):
                for dtype in (torch.bfloat16, torch.float32)[: 1 + (d == 64)]:
                    for outputs in (("noisy_latents",), OUTPUTS)[: 1 + (d <= FUSED)]:
                        ops.patch_pca_noise(
                            images, meta(d, values), meta(values), meta(d), meta(batch),
                            meta(batch), meta(batch, dtype=torch.int64), seed=0, step=0,
                            view=ImageView(patch), flip=meta(batch, dtype=torch.bool),
                            outputs=outputs, dtype=dtype, impl="triton", **more,
                        )  # fmt: skip
