"""The noise op's latents of bytes in bfloat16: from digits where a CPU multiplies bytes.

What is asked of them is asked of every CPU, so nothing here is skipped where there are none.
"""

import pytest
import torch
from ldae_fast.kernels import native
from ldae_fast.kernels.patch_pca_noise import patch_pca_noise
from ldae_fast.kernels.patches import ImageView

pytestmark = pytest.mark.skipif(bool(native.MISSING), reason=native.MISSING or "built")
HALF_A_UNIT = 2**-8  # of bfloat16, relative to a value just above a power of two


def latents(images, basis, scale, patch, impl, dtype, **view):
    """Clean latents of uint8 images around the basis' own mean of nothing."""
    channels, values = images.shape[3], basis.shape[1]
    made = patch_pca_noise(
        images, basis, torch.zeros(values), scale, torch.ones(len(images)),
        torch.zeros(len(images)), torch.arange(len(images)), seed=0, step=0,
        view=ImageView(patch, (0.5, 0.4, 0.3, 0.6)[:channels], (0.2, 0.25, 0.3, 0.2)[:channels]),
        outputs=("clean_latents",), dtype=dtype, impl=impl, **view,
    )  # fmt: skip
    return made["clean_latents"].double()


def orthonormal(d, values, g):
    square = torch.randn(values, values, generator=g, dtype=torch.float64)
    return torch.linalg.qr(square).Q[:d].contiguous()


@pytest.mark.parametrize(
    ("patch", "channels", "across", "d"),
    [(4, 3, 13, 16), (4, 3, 8, 33), (1, 4, 7, 3), (2, 2, 4, 8), (16, 3, 5, 64), (8, 1, 3, 64)],
)
@pytest.mark.parametrize("how", ["", "flip", "crop", "flip crop"])
def test_each_value_is_as_good_as_its_rounding(patch, channels, across, d, how):
    """Not only the largest: tiles of 8, 4 and 1 tokens, one to four vectors of latents."""
    g = torch.Generator().manual_seed(0)
    size = patch * across
    images = torch.randint(0, 256, (3, size + 3, size + 5, channels), generator=g).byte()
    view = {}
    if "crop" in how:
        view |= {"crop": torch.tensor([[0, 0], [3, 5], [2, 1]]), "size": size}
    else:
        images = images[:, :size, :size].contiguous()
    if "flip" in how:
        view["flip"] = torch.tensor([True, False, True])
    basis = orthonormal(d, patch * patch * channels, g)
    scale = 0.5 + torch.rand(d, generator=g)
    got = latents(images, basis, scale, patch, "cpp", torch.bfloat16, **view)
    exact = latents(images, basis, scale, patch, "reference", torch.float64, **view)
    assert ((got - exact).abs() <= 1.01 * HALF_A_UNIT * exact.abs() + 1e-3).all()


def test_latents_that_two_digits_cannot_tell_apart():
    """Bright patches whose differences are one pixel in a hundred: they need all of a float."""
    g = torch.Generator().manual_seed(0)
    level = torch.randint(0, 255, (8, 1, 1, 3), generator=g)
    images = (level + (torch.rand(8, 64, 64, 3, generator=g) < 0.01)).byte()
    values = 16 * 16 * 3
    flat = torch.eye(3, dtype=torch.float64).repeat(256, 1) / 16  # a constant of each channel
    basis = torch.linalg.qr(torch.cat([flat, orthonormal(values, values, g)[:, :16]], 1)).Q.T[3:19]
    scale = torch.full((16,), 0.1 / 255 / 0.25)
    got = latents(images, basis, scale, 16, "cpp", torch.bfloat16)
    exact = latents(images, basis, scale, 16, "reference", torch.float64)
    assert exact.abs().max() > 2
    assert ((got - exact).abs() <= 1.01 * HALF_A_UNIT * exact.abs() + 1e-3).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_weight_that_is_no_number_spoils_its_own_latent_alone(bad):
    g = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (2, 8, 8, 3), generator=g).byte()
    basis, scale = orthonormal(6, 48, g), torch.ones(6)
    basis[4, 7] = bad
    got = latents(images, basis, scale, 4, "cpp", torch.bfloat16)
    assert not got[..., 4].isfinite().any()
    assert got[..., [0, 1, 2, 3, 5]].isfinite().all()


def test_weights_of_zero_and_below_the_normal_ones():
    images = torch.full((1, 4, 4, 3), 255, dtype=torch.uint8)
    basis = torch.zeros(3, 48, dtype=torch.float64)
    basis[1], basis[2, 0] = 1e-310, 1
    got = latents(images, basis, torch.ones(3), 4, "cpp", torch.bfloat16)
    assert got[0, 0].tolist() == [0, 0, 2.5]
