"""The passes that find a largest value, for test_aot.py to compile: GELU's, and a gradient's."""

import aot
import torch
from ldae_fast.kernels.mlp_gelu import middle
from ldae_fast.kernels.quantise_float8 import triton_kernel


def main(launch) -> None:
    def meta(*shape, dtype=torch.bfloat16):
        return torch.empty(shape, dtype=dtype, device="meta")

    def recorder(kernel, _, *arguments, **constants):
        launch(kernel, *arguments, **constants)

    u, bias = meta(32768, 4096), meta(4096, dtype=torch.float32)
    with aot.patched("quantise_float8", recorder):
        triton_kernel.largest_and_sums(u)
        for approximate in ("none", "tanh"):
            middle.triton_kernel.bias_gelu(u, bias, approximate)
            middle.triton_kernel.bias_gelu_backward(u, u, bias, approximate)
