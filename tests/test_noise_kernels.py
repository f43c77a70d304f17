"""The GPU kernels of normal and patch_pca_noise in Triton's interpreter, against the reference."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ldae_fast.kernels.normal import reference, triton_kernel
from ldae_fast.kernels.triton_launch import MISSING
from test_aot import compile_all, complaints

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING or "triton is there")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


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


def errors(p, c, d, batch, uint8, dtype, cut, dark=False, spike=False, tall=6):
    # (this, plain torch's) largest error of every output
    h, w, size, P = tall * p, 7 * p, 5 * p, p * p * c
    shape = (batch, h, w, c) if uint8 else (batch, c, h, w)
    images = torch.rand(shape, generator=g)
    if uint8:
        images = ((20 if dark else 256) * images).byte()
    basis = torch.linalg.qr(torch.randn(P, P, generator=g))[0][:d].contiguous()
    center, scale = torch.randn(P, generator=g) * 0.1, torch.rand(d, generator=g) + 0.5
    if dark:  # what a constant patch adds is large and cancels
        center, basis[0] = center - 2.3, P**-0.5
    if spike:
        basis[0] = 1e-4 * basis[0]
        basis[0, 0] = 1
    gamma, sigma = torch.rand(batch, generator=g), torch.rand(batch, generator=g)
    view = ImageView(p, (0.5, 0.4, 0.3, 0.2, 0.1)[:c], (0.2, 0.25, 0.3, 0.2, 0.3)[:c])
    more = {}
    if "flip" in cut:
        more["flip"] = torch.tensor([True, False, True])[:batch]
    if "crop" in cut:
        more |= {"crop": torch.tensor([[1, 2], [0, p], [p, 0]])[:batch], "size": size}

    def run(impl, kind):
        return patch_pca_noise(images, basis, center, scale, gamma, sigma, ids[:batch], seed=5,
                               step=9, view=view, outputs=NAMES, dtype=kind, impl=impl, **more)

    got, plain = run("triton", dtype), run("reference", dtype)
    true = run("reference", torch.float64)
    pairs = []
    for name in NAMES:
        assert got[name].shape == true[name].shape and got[name].dtype == dtype
        if batch:
            e, f = ((x[name].double() - true[name]).abs().max() for x in (got, plain))
            if name == "noisy_patches" and uint8 and dtype == half and d <= 48:
                # Three products of halves leave float16's own rounding alone to be seen.
                mean, own = ((x[name].double() - true[name]).abs().mean() for x in (got, plain))
                assert mean <= 1.05 * own, (p, c, d, mean, own)
            # Below half a unit in the last place there is nothing to compare.
            f = max(f, torch.finfo(dtype).eps / 2 * max(1, true[name].abs().max()))
            pairs.append((float(e), float(f)))
    return pairs


def check(p, c, *case, **more):
    # Worst of some draws on either side: with few values a single maximum is a lottery.
    draws = [errors(p, c, *case, **more) for _ in range(3 if p * p * c < 100 else 1)]
    for index, each in enumerate(zip(*draws)):
        e, f = (max(side) for side in zip(*each))
        assert e <= 2 * f, (p, c, case, more, NAMES[index], e, f)


one, half = torch.float32, torch.float16
check(4, 3, 16, 2, True, one, "flip crop")
check(4, 3, 48, 2, True, half, "")
check(3, 1, 1, 3, True, one, "flip crop")
check(2, 3, 5, 2, False, one, "flip crop")
check(4, 3, 48, 2, False, half, "")
check(4, 3, 16, 0, True, one, "flip crop")
for dtype in (one, half):
    check(16, 3, 24, 2, True, dtype, "flip")  # 16 bytes at once, whole groups of 8
    check(16, 3, 16, 2, True, dtype, "flip", tall=10)  # more than one tile of 64, noise first
    check(8, 5, 20, 2, True, dtype, "flip")  # 8 bytes, groups of 4, five channels
    check(4, 4, 7, 3, True, dtype, "")
    check(8, 3, 130, 2, True, dtype, "flip")  # more latents than one program holds
    check(8, 3, 33, 2, True, dtype, "", dark=True)
    check(8, 3, 9, 2, False, dtype, "flip")
    check(8, 3, 12, 2, False, dtype, "flip crop")
check(8, 3, 16, 2, True, one, "", spike=True)

# What is not a number stays with its latent.
basis = torch.eye(48)[:4].contiguous()
basis[1, 5], scale = torch.nan, torch.tensor([1.0, 1.0, torch.inf, 1.0])
images = torch.randint(0, 256, (1, 8, 8, 3), generator=g).byte()
z = patch_pca_noise(images, basis, torch.zeros(48), scale, torch.ones(1), torch.ones(1), ids[:1],
                    seed=0, step=0, view=ImageView(4), outputs=("clean_latents",), impl="triton")
z = z["clean_latents"]
assert z[..., 1].isnan().all() and (z[..., 2] == 0).all() and z[..., ::3].isfinite().all()
print("ok")
"""


def test_kernels_match_the_reference_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "ok" in done.stdout


@pytest.mark.parametrize(("seed", "step"), [(0, 0), (2**63 + 5, 1), (2**64 - 1, 2**32 - 1)])
def test_integers_are_those_of_the_definition(seed, step):
    ids = torch.tensor([0, 7, 2**40 + 3, -1], device=DEVICE)
    for blocks in (0, 1, 64, 77):
        words = triton_kernel.philox(seed, step, ids, blocks)
        assert torch.equal(words, reference.philox(seed, step, ids, blocks))


@pytest.mark.slow
def test_numbers_of_latents_compile_without_spills(tmp_path):
    _, rows = compile_all(tmp_path, Path(__file__).with_name("aot_noise.py"))
    assert {row["kernel"] for row in rows} == {"noise_fold_kernel", "noise_project_kernel"}
    wrong = complaints(rows, "patch_pca_noise", fast=False)
    assert not wrong, "\n".join(wrong)
    # With latents by the eight, every access of an aligned image and its results is wide.
    wide = [r for r in rows if r["constants"].get("CHUNK") == "16"]
    wide = [r for r in wide if r["constants"]["GROUP"] == "8"]
    assert wide
    wrong = complaints(wide, "patch_pca_noise", fast=True)
    assert not wrong, "\n".join(wrong)
