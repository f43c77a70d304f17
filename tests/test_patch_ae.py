"""Patch-wise AE and VAE against their definitions, PCA and probabilistic PCA."""

import math

import pytest
import torch
from safetensors.torch import save
from torch.distributions import Normal, kl_divergence

from ldae_fast.ops import ImageView
from ldae_fast.tokenizers import fit_tokenizer, load_tokenizer
from ldae_fast.tokenizers.patch_ae import fit_patch_ae, kl_to_standard_normal, patch_loss
from ldae_fast.tokenizers.pca import fit_pca

VIEW = ImageView(2)
D = 4


@pytest.fixture(scope="module")
def patches():
    g = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=g)).Q
    spread = torch.linspace(3, 0.5, 12)
    return (torch.randn(3000, 12, generator=g) * spread) @ turn + torch.arange(12) / 4


@pytest.fixture(scope="module")
def fitted(patches):
    return {
        variational: fit_patch_ae(patches, D, "whiten", VIEW, variational=variational, seed=0)
        for variational in (False, True)
    }


def random_maps():
    g = torch.Generator().manual_seed(1)
    return (torch.randn(D, 12, generator=g, dtype=torch.float64) for _ in range(2))


def test_kl_is_torchs():
    m, s = torch.tensor([0.3, -2.0, 0.0]).double(), torch.tensor([1.4, 0.2, 1.0]).double()
    wanted = kl_divergence(Normal(m, s), Normal(0.0, 1.0))
    torch.testing.assert_close(kl_to_standard_normal(m**2, 2 * s.log()), wanted)


def test_ae_loss_is_the_mean_squared_error_of_patches():
    g = torch.Generator().manual_seed(2)
    x = torch.randn(500, 12, generator=g, dtype=torch.float64)
    x = torch.linalg.qr(x - x.mean(0)).Q * math.sqrt(500) * torch.arange(1, 13)  # C is diagonal
    v, u = random_maps()
    wanted = (x - x @ v.T @ u).square().sum(1).mean()
    variance = torch.arange(1, 13, dtype=torch.float64) ** 2
    torch.testing.assert_close(patch_loss(v, u, None, variance), wanted)


def test_vae_loss_is_its_expectation_over_the_code():
    """The mean over the 2 d points of a cubature that is exact for squares, and torch's own KL."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(400, 12, generator=g, dtype=torch.float64)
    x = torch.linalg.qr(x - x.mean(0)).Q * math.sqrt(400) * torch.arange(1, 13)
    v, u = random_maps()
    s = torch.tensor([0.5, 1.0, 2.0, 0.1], dtype=torch.float64)
    points = math.sqrt(D) * torch.cat([torch.diag(s), -torch.diag(s)])  # (2 d, d)
    code = (x @ v.T)[:, None] + points
    error = (x[:, None] - code @ u).square().sum(2).mean()
    kl = kl_divergence(Normal(x @ v.T, s.expand(400, D)), Normal(0.0, 1.0)).sum(1).mean()
    variance = torch.arange(1, 13, dtype=torch.float64) ** 2
    torch.testing.assert_close(patch_loss(v, u, 2 * s.log(), variance), error + kl)


def test_the_best_ae_spans_the_pca_subspace(patches, fitted):
    basis = fit_pca(patches, D, "none", VIEW).encoder.double()
    v, u = (x.double() for x in fitted[False].trained)
    torch.testing.assert_close(u.T @ v, basis.T @ basis, rtol=0, atol=1e-3)
    assert (u @ u.T - torch.eye(D)).abs().max() > 0.1  # another basis of that subspace
    pca = fit_pca(patches, D, "none", VIEW)
    assert fitted[False].explained == pytest.approx(pca.explained, abs=1e-6)


def test_the_best_vae_is_probabilistic_pca(patches, fitted):
    """Decoder U^T U = sum (C_i - 1/2) e_i e_i^T, encoder (U U^T + I / 2)^-1 U: Tipping and Bishop
    (1999), equations 6 and 7, with noise of variance 1/2."""
    pca = fit_pca(patches, D, "none", VIEW)
    basis, variance = pca.encoder.double(), pca.variance[:D].double()
    v, u = (x.double() for x in fitted[True].trained)
    wanted = (basis.T * (variance - 0.5)) @ basis
    torch.testing.assert_close(u.T @ u, wanted, rtol=0, atol=5e-3)
    posterior = torch.linalg.solve(u @ u.T + 0.5 * torch.eye(D).double(), u)
    torch.testing.assert_close(v, posterior, rtol=0, atol=5e-3)


def test_a_vae_leaves_out_what_is_below_its_noise():
    """Components of variance below 1/2 cost more than they give: their code tells nothing."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 12, generator=g) * torch.tensor([2.0, 1.5] + [0.3] * 10)
    u = fit_patch_ae(x, D, "whiten", VIEW, variational=True, seed=0).trained[1]
    lengths = torch.linalg.svdvals(u.double())
    assert lengths[1] > 1
    assert lengths[2] < 1e-2


@pytest.mark.parametrize("variational", [False, True])
def test_latents_are_scaled_and_explained_is_the_share_given_back(patches, fitted, variational):
    tokenizer = fitted[variational]
    latents = tokenizer.encode(patches)
    torch.testing.assert_close(latents.var(0), torch.ones(D), rtol=2e-3, atol=0)
    error = (patches - tokenizer.decode(latents)).double().square().sum()
    total = (patches - patches.mean(0)).double().square().sum()
    assert tokenizer.explained == pytest.approx(float(1 - error / total), abs=1e-4)


def test_the_fused_op_serves_them(fitted):
    """Its latents are V (x - m) / s plus noise; its noisy patches are decoded by U, not by V."""
    tokenizer = fitted[False]
    images = torch.randint(0, 256, (3, 6, 6, 3), dtype=torch.uint8)
    gamma, sigma = torch.full((3,), 0.8), torch.full((3,), 0.6)
    names = ("clean_latents", "noisy_latents", "noisy_patches", "noise")
    made = tokenizer.add_noise(
        images, gamma, sigma, torch.arange(3), seed=1, step=2, outputs=names, flip=None, impl="auto"
    )
    assert set(made) == set(names)
    v, u = (x.double() for x in tokenizer.trained)
    x = tokenizer.patches(images).double()
    clean = (x - tokenizer.center) @ v.T / tokenizer.scale
    noisy = 0.8 * clean + 0.6 * made["noise"].double()
    torch.testing.assert_close(made["clean_latents"].double(), clean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(made["noisy_latents"].double(), noisy, rtol=1e-4, atol=1e-4)
    back = (noisy * tokenizer.scale) @ u + tokenizer.center
    torch.testing.assert_close(made["noisy_patches"].double(), back, rtol=1e-4, atol=1e-4)
    alone = tokenizer.add_noise(
        images, gamma, sigma, torch.arange(3), seed=1, step=2, outputs=("noisy_patches",),
        flip=None, impl="auto",
    )  # fmt: skip
    assert set(alone) == {"noisy_patches"}
    assert torch.equal(alone["noisy_patches"], made["noisy_patches"])


def test_the_seed_alone_decides():
    images = torch.randint(0, 256, (20, 8, 8, 3), dtype=torch.uint8)
    settings = {"patch": 4, "d": 6, "scale": "whiten", "count": 60}
    a, b, c = (fit_tokenizer("patch-ae", images, **settings, seed=s) for s in (1, 1, 2))
    assert a.to_bytes() == b.to_bytes()
    assert not torch.equal(a.encoder, c.encoder)
    assert a.image_size == 8


@pytest.mark.parametrize("variational", [False, True])
def test_file_round_trip(fitted, tmp_path, variational):
    path = tmp_path / "t.safetensors"
    path.write_bytes(fitted[variational].to_bytes())
    back = load_tokenizer(path)
    assert back.kind == ("patch-vae" if variational else "patch-ae")
    assert torch.equal(back.encoder, fitted[variational].encoder)
    assert torch.equal(back.decoder, fitted[variational].decoder)
    assert back.to_bytes() == path.read_bytes()


def test_files_of_before_there_were_autoencoders_are_read(patches, tmp_path):
    pca = fit_pca(patches, D, "whiten", VIEW)
    tensors = {n: getattr(pca, n) for n in ("basis", "center", "scale", "variance")}
    tensors |= {"pixel_mean": torch.zeros(3).double(), "pixel_std": torch.ones(3).double()}
    (tmp_path / "old.safetensors").write_bytes(save(tensors, {"patch": "2"}))
    back = load_tokenizer(tmp_path / "old.safetensors")
    assert (back.kind, back.trained, back.view.patch) == ("pca", None, 2)
    assert torch.equal(back.decode(torch.ones(D)), pca.decode(torch.ones(D)))
