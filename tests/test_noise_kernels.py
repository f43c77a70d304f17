"""The GPU kernels of normal and patch_pca_noise in Triton's interpreter, against the reference."""

import os
import subprocess
import sys

import pytest

CHECK = """
import torch
from ldae_fast.kernels.normal import normal
from ldae_fast.kernels.patch_pca_noise import patch_pca_noise
from ldae_fast.kernels.patches import ImageView

ids = torch.tensor([0, 7, 2**40 + 3, -1])
for elements in (0, 1, 4, 1023, 4100):
    for seed, step in ((0, 0), (2**63 + 5, 1), (3, 2**32 - 1)):
        a = normal(seed, step, ids, elements, impl="triton")
        b = normal(seed, step, ids, elements, dtype=torch.float64, impl="reference")
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=2e-5)
assert normal(0, 0, ids[:0], 8, impl="triton").shape == (0, 8)

NAMES = ("clean_latents", "noisy_latents", "noisy_patches", "noise")
g = torch.Generator().manual_seed(0)
for p, c, d, batch, uint8, dtype, cut in (
    (4, 3, 16, 2, True, torch.float32, True), (4, 3, 48, 2, True, torch.float16, False),
    (3, 1, 1, 3, True, torch.float32, True), (2, 3, 5, 2, False, torch.float32, True),
    (4, 3, 70 - 22, 2, False, torch.float16, False), (4, 3, 16, 0, True, torch.float32, True),
):
    h, w, size, P = 6 * p, 7 * p, 5 * p, p * p * c
    shape = (batch, h, w, c) if uint8 else (batch, c, h, w)
    images = torch.randint(0, 256, shape, generator=g).byte() if uint8 else torch.rand(shape)
    basis = torch.linalg.qr(torch.randn(P, P, generator=g))[0][:d].contiguous()
    center, scale = torch.randn(P, generator=g) * 0.1, torch.rand(d, generator=g) + 0.5
    gamma, sigma = torch.rand(batch, generator=g), torch.rand(batch, generator=g)
    view = ImageView(p, (0.5, 0.4, 0.3)[:c], (0.2, 0.25, 0.3)[:c])
    more = {}
    if cut:
        more = {"crop": torch.tensor([[1, 2], [0, p], [p, 0]])[:batch], "size": size,
                "flip": torch.tensor([True, False, True])[:batch]}
    def run(impl, kind):
        return patch_pca_noise(images, basis, center, scale, gamma, sigma, ids[:batch], seed=5,
                               step=9, view=view, outputs=NAMES, dtype=kind, impl=impl, **more)
    got, plain = run("triton", dtype), run("reference", dtype)
    true = run("reference", torch.float64)
    for name in NAMES:
        assert got[name].shape == true[name].shape and got[name].dtype == dtype
        if batch:
            e, f = ((x[name].double() - true[name]).abs().max() for x in (got, plain))
            assert e <= 2 * f + 1e-7, (p, c, d, uint8, dtype, name, e, f)
print("ok")
"""


def test_kernels_match_the_reference_in_the_interpreter():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "ok" in done.stdout
