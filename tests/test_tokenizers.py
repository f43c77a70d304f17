"""PCA against an independent implementation, scales against their definition."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.decomposition import PCA

from ldae_fast.ops import ImageView, patchify
from ldae_fast.tokenizers import (
    TokenizerError,
    channel_statistics,
    fit_tokenizer,
    load_tokenizer,
    random_patches,
)
from ldae_fast.tokenizers.pca import fit_pca

VIEW = ImageView(2)


@pytest.fixture
def patches():
    g = torch.Generator().manual_seed(0)
    mix = torch.randn(12, 12, generator=g)
    return torch.randn(4000, 12, generator=g) @ mix + torch.arange(12)


def test_pca_is_scikit_learns(patches):
    tokenizer = fit_pca(patches, 5, "none", VIEW)
    theirs = PCA(svd_solver="full").fit(patches.double().numpy())
    np.testing.assert_allclose(tokenizer.variance, theirs.explained_variance_, rtol=1e-5)
    np.testing.assert_allclose(tokenizer.center, theirs.mean_, atol=1e-5)
    cosines = (tokenizer.basis.numpy() * theirs.components_).sum(1)
    np.testing.assert_allclose(abs(cosines), 1, atol=1e-5)
    share = theirs.explained_variance_ratio_[:5].sum()
    assert tokenizer.explained == pytest.approx(share, rel=1e-5)


def test_basis_is_orthonormal_and_its_sign_fixed(patches):
    basis = fit_pca(patches, 5, "none", VIEW).basis
    torch.testing.assert_close(basis @ basis.T, torch.eye(12), rtol=0, atol=1e-6)
    largest = basis.gather(1, basis.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()


@pytest.mark.parametrize("scale", ["global", "whiten", "none"])
def test_scales_and_their_inverse(patches, scale):
    tokenizer = fit_pca(patches, 5, scale, VIEW)
    variance = tokenizer.encode(patches).var(0)
    if scale == "whiten":
        torch.testing.assert_close(variance, torch.ones(5), rtol=1e-3, atol=0)
    if scale == "global":
        assert variance.mean() == pytest.approx(1, rel=1e-3)
        ratio = tokenizer.variance[0] / tokenizer.variance[4]
        assert variance[0] / variance[4] == pytest.approx(float(ratio), rel=1e-3)
    if scale == "none":
        torch.testing.assert_close(variance, tokenizer.variance[:5], rtol=1e-3, atol=0)
    whole = fit_pca(patches, 12, scale, VIEW)
    torch.testing.assert_close(whole.decode(whole.encode(patches)), patches, rtol=0, atol=1e-4)


def test_reconstruction_error_is_the_dropped_variance(patches):
    tokenizer = fit_pca(patches, 5, "whiten", VIEW)
    error = (patches - tokenizer.decode(tokenizer.encode(patches))).square().sum(1).mean()
    assert float(error) == pytest.approx(float(tokenizer.variance[5:].sum()), rel=1e-3)


def test_a_constant_component_does_not_blow_up(patches):
    patches[:, 3:] = 0.5
    tokenizer = fit_pca(patches, 6, "whiten", VIEW)
    assert torch.isfinite(tokenizer.encode(patches)).all()
    assert tokenizer.encode(patches).abs().max() < 20


def test_fit_normalises_pixels_and_depends_on_the_seed_alone():
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 200, (50, 8, 8, 3), generator=g, dtype=torch.uint8)
    settings = {"patch": 4, "d": 6, "scale": "whiten", "count": 60}
    a, b = (fit_tokenizer("pca", images, **settings, seed=1) for _ in range(2))
    assert torch.equal(a.basis, b.basis)
    assert not torch.equal(a.basis, fit_tokenizer("pca", images, **settings, seed=2).basis)
    x = a.patches(images).view(50, 4, 16, 3)
    torch.testing.assert_close(x.mean((0, 1, 2)), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(x.std((0, 1, 2)), torch.ones(3), rtol=0, atol=1e-3)


def test_random_patches_are_distinct_patches_of_the_images():
    images = torch.arange(2 * 4 * 4 * 3, dtype=torch.uint8).view(2, 4, 4, 3)
    chosen = random_patches(images, VIEW, 5, seed=0)
    everything = random_patches(images, VIEW, 100, seed=0)
    assert everything.shape == (8, 12)
    assert len({tuple(p.tolist()) for p in chosen} & {tuple(p.tolist()) for p in everything}) == 5


def test_many_images_are_read_in_pieces(monkeypatch):
    """The statistics are the whole's, and the patches the same ones in the same order."""
    images = torch.randint(0, 256, (23, 8, 8, 3), dtype=torch.uint8)
    view = ImageView(4, (0.4, 0.5, 0.6), (0.2, 0.3, 0.2))
    whole = random_patches(images, view, 30, 0), random_patches(images, view, 1000, 0)
    monkeypatch.setattr("ldae_fast.tokenizers.AT_ONCE", 5)
    pieces = random_patches(images, view, 30, 0), random_patches(images, view, 1000, 0)
    assert all(torch.equal(a, b) for a, b in zip(whole, pieces))
    assert torch.equal(whole[1], patchify(images, view).flatten(0, 1))
    x = images.double().flatten(0, 2) / 255
    mean, std = channel_statistics(images)
    assert mean == pytest.approx(x.mean(0).tolist(), rel=1e-12)
    assert std == pytest.approx(x.std(0).tolist(), rel=1e-12)


def test_autocast_does_not_reach_the_latents(patches):
    """Else the targets of training would be other ones than evaluation's."""
    tokenizer = fit_pca(patches, 5, "whiten", ImageView(2))
    z = tokenizer.encode(patches)
    back = tokenizer.decode(z)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.encode(patches), z)
        assert torch.equal(tokenizer.decode(z), back)


def test_pixel_tokenizer_is_the_identity():
    images = torch.randint(0, 256, (9, 8, 8, 3), dtype=torch.uint8)
    t = fit_tokenizer("pixel", images, patch=4, d=3, scale="none", count=99, seed=0)
    patches = t.patches(images)
    assert t.d == 48
    assert torch.equal(t.encode(patches), patches)
    assert torch.equal(t.decode(patches), patches)


def test_file_round_trip(patches, tmp_path):
    tokenizer = fit_pca(patches, 5, "whiten", ImageView(2, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    path = tmp_path / "t.safetensors"
    path.write_bytes(tokenizer.to_bytes())
    back = load_tokenizer(path)
    assert back.view == tokenizer.view
    for name in ("basis", "center", "scale", "variance"):
        assert torch.equal(getattr(back, name), getattr(tokenizer, name))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"basis": torch.eye(12)[:9]}, r"its basis must be \(12, 12\); got \(9, 12\)"),
        ({"basis": torch.eye(12) / 0}, "its basis has values that are not finite"),
        ({"center": torch.zeros(5)}, r"its center must be \(12,\); got \(5,\)"),
        ({"encoder": torch.ones(5, 9), "decoder": torch.ones(5, 12)},
         r"its encoder must be \(5, 12\); got \(5, 9\)"),
        ([], "its metadata are no JSON object"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_by_name(patches, tmp_path, changes, said):
    path, tokenizer = tmp_path / "t.safetensors", fit_pca(patches, 5, "whiten", ImageView(2))
    path.write_bytes(tokenizer.to_bytes())
    tensors, about = load_file(path), {"kind": "pca", "patch": 2, "image_size": 8}
    if isinstance(changes, dict):
        tensors |= changes
    else:
        about = changes
    save_file(tensors, path, {"tokenizer": json.dumps(about)})
    with pytest.raises(TokenizerError, match=rf"t\.safetensors holds no tokenizer \({said}\)"):
        load_tokenizer(path)


def test_d_larger_than_the_patch_is_refused(patches):
    with pytest.raises(ValueError, match=r"tokenizer.d must be 1 to 12.*got 13"):
        fit_pca(patches, 13, "whiten", VIEW)
