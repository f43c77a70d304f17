"""Each row's inputs and targets by hand, and what training on them must do."""

import pytest
import torch
from conftest import quick_tokenizer

from ldae_fast import ops
from ldae_fast.noise import draw_levels
from ldae_fast.objective import Objective, token_widths
from ldae_fast.recipes import ROWS, build_config

SIZE = {
    "tokenizer.channels": 8,
    "model.width": 32,
    "model.depth": 1,
    "model.decoder_depth": 1,
    "model.heads": 2,
}


@pytest.fixture(scope="module")
def images():
    g = torch.Generator().manual_seed(0)
    smooth = torch.rand(6, 3, 4, 4, generator=g)
    large = torch.nn.functional.interpolate(smooth, 32, mode="bicubic").clamp(0, 1)
    noisy = (large + 0.05 * torch.randn(large.shape, generator=g)).clamp(0, 1)
    return (255 * noisy).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def make(row: str, images, **changes):
    config = build_config(row, 32, "", SIZE | changes)
    tokenizer = quick_tokenizer(config, images)
    return config, Objective(config.objective, config.noise, tokenizer, config.seed)


class Constant(torch.nn.Module):
    """Stands where the network stands and gives back what it is told to, noting its input."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def fold_embedding(self, basis, scale, center):
        return None

    def forward(self, tokens, t, fold=None):
        self.tokens, self.t = tokens, t
        return self.output


def expected(config, objective, images, ids, flip, step):
    """z_0, z_t, eps, t, gamma, sigma and the image's patches, float64, straight from equation 1."""
    tokenizer = objective.tokenizer
    t = draw_levels(config.seed, step, ids, objective.schedule.levels)
    gamma = objective.schedule.gamma[t][:, None, None]
    sigma = objective.schedule.sigma[t][:, None, None]
    x0 = ops.patchify(images, tokenizer.view, flip=flip, dtype=torch.float64)
    if tokenizer.kind == "conv-vae":
        z0 = tokenizer.encode(x0.float()).double()
    else:
        z0 = (x0 - tokenizer.center) @ tokenizer.encoder.double().T / tokenizer.scale
    eps = ops.normal(objective.noise_seed, step, ids, z0[0].numel(), dtype=torch.float64)
    eps = eps.view(z0.shape)
    return x0, z0, gamma * z0 + sigma * eps, eps, gamma, sigma


@pytest.mark.parametrize("row", [r for r in ROWS if r.startswith("row")])
def test_each_row_by_hand(row, images):
    config, objective = make(row, images)
    tokenizer, objective.fold = objective.tokenizer, False
    ids, flip, step = torch.arange(70, 76), torch.tensor([True, False] * 3), 4
    x0, z0, zt, eps, gamma, sigma = expected(config, objective, images, ids, flip, step)
    _, out = token_widths(config.objective, tokenizer)
    pred = torch.randn(6, 64, out, generator=torch.Generator().manual_seed(3))
    model = Constant(pred)
    got = objective.loss(model, images, ids, flip, step).double()

    number = int(row.removeprefix("row"))
    basis, scale, center = None, tokenizer.scale, tokenizer.center
    if number >= 7:
        basis = tokenizer.encoder.double()
    given = zt if number <= 9 else (zt * scale) @ basis + center
    torch.testing.assert_close(model.tokens.double(), given, rtol=1e-4, atol=1e-4)

    error = pred.double() - (eps if number <= 7 else z0) if number <= 10 else None
    if number == 11:
        error = pred.double() - ((z0 * scale) @ basis + center)
    if error is not None:
        loss = error.square().mean((1, 2))
    else:
        residue = (x0 - pred.double()) @ tokenizer.basis.double().T
        weights = torch.cat([torch.ones(tokenizer.d), torch.full((48 - tokenizer.d,), 0.1)])
        loss = (residue.square() * weights).mean((1, 2))
    lam = {8: gamma**2}.get(number, 1 / (1 + sigma**2) if number > 8 else torch.ones_like(gamma))
    torch.testing.assert_close(got, lam[:, 0, 0] * loss, rtol=1e-4, atol=1e-5)


def test_row11_target_is_the_inverse_pca_of_the_clean_latent(images):
    """The loss is zero exactly there, and not at the original image."""
    _, objective = make("row11", images)
    tokenizer = objective.tokenizer
    ids, flip = torch.arange(6), torch.zeros(6, dtype=torch.bool)
    patches = tokenizer.patches(images)
    by_hand = torch.zeros_like(patches)
    for k in range(tokenizer.d):
        coordinate = ((patches - tokenizer.center) * tokenizer.basis[k]).sum(-1, keepdim=True)
        by_hand += coordinate * tokenizer.basis[k]
    by_hand += tokenizer.center
    assert objective.loss(Constant(by_hand), images, ids, flip, 0).max() < 1e-9
    assert objective.loss(Constant(patches), images, ids, flip, 0).min() > 1e-5


def test_perfect_predictions_cost_nothing(images):
    ids, flip = torch.arange(6), torch.tensor([False, True] * 3)
    _, objective = make("row12", images)
    clean = objective.tokenizer.patches(images, flip)
    assert objective.loss(Constant(clean), images, ids, flip, 0).max() < 1e-10
    config, objective = make("row7", images)
    *_, eps, _, _ = expected(config, objective, images, ids, flip, 0)
    assert objective.loss(Constant(eps.float()), images, ids, flip, 0).max() < 1e-9


@pytest.mark.parametrize("row", ["row10", "row11", "row12", "row13"])
def test_folding_changes_neither_loss_nor_gradient(row, images):
    from ldae_fast.train.engine import build_model

    config, objective = make(row, images)
    model = build_model(config, objective.tokenizer)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.05 * torch.randn(p.shape, generator=g)
    ids, flip = torch.arange(6), torch.tensor([False, True] * 3)

    def run(fold):
        objective.fold = fold
        loss = objective.loss(model, images, ids, flip, 0)
        return [loss, *torch.autograd.grad(loss.sum(), list(model.parameters()))]

    for a, b in zip(run(True), run(False)):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-4)


def test_denoise_returns_pixels_for_every_row(images):
    from ldae_fast.train.engine import build_model

    for row in ("row7", "row9", "row11", "row12"):
        config, objective = make(row, images)
        model = build_model(config, objective.tokenizer)
        t = torch.full((6,), objective.schedule.levels // 2)
        out = objective.denoise(model, images, t, torch.arange(6))
        assert out["noisy"].shape == out["denoised"].shape == (6, 64, 48)
    clean = objective.denoise(model, images, torch.zeros_like(t), torch.arange(6))["noisy"]
    tokenizer = objective.tokenizer
    projected = tokenizer.decode(tokenizer.encode(tokenizer.patches(images)))
    torch.testing.assert_close(clean, projected, rtol=0, atol=1e-4)


def test_noise_prediction_recovers_the_clean_latent(images):
    """denoise() with a perfect noise prediction gives back the PCA round trip of the image."""
    _, objective = make("row7", images)
    tokenizer, ids = objective.tokenizer, torch.arange(6)
    t = torch.full((6,), 600)
    eps = objective.add_noise(images, t, ids, 0, ("noise",))["noise"]
    out = objective.denoise(Constant(eps), images, t, ids)["denoised"]
    wanted = tokenizer.decode(tokenizer.encode(tokenizer.patches(images)))
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-3)


def test_pixel_tokenizer_takes_the_same_way(images):
    config, objective = make(
        "row12", images, **{"tokenizer.kind": "pixel", "tokenizer.scale": "none"}
    )
    assert token_widths(config.objective, objective.tokenizer) == (48, 48)
    clean = objective.tokenizer.patches(images)
    ids, flip = torch.arange(6), torch.zeros(6, dtype=torch.bool)
    assert objective.loss(Constant(clean), images, ids, flip, 0).max() < 1e-10


def test_the_schedule_lies_with_the_tokenizer(images):
    """A table on the host would make every step on a GPU wait for its upload."""
    config = build_config("row12", 16, "tiny")
    tokenizer = quick_tokenizer(config, images).to("meta")
    schedule = Objective(config.objective, config.noise, tokenizer, seed=0).schedule
    gamma, sigma = schedule.at(torch.zeros(3, dtype=torch.int64, device="meta"))
    assert gamma.device == sigma.device == schedule.gamma.device == torch.device("meta")


def test_recipe_seed_moves_noise_and_levels(images):
    config, objective = make("row12", images)
    other = Objective(config.objective, config.noise, objective.tokenizer, seed=1)
    ids, flip = torch.arange(6), torch.zeros(6, dtype=torch.bool)
    zero = Constant(torch.zeros(6, 64, 48))
    objective.loss(zero, images, ids, flip, 0)
    first = (zero.tokens, zero.t)
    other.loss(zero, images, ids, flip, 0)
    assert not torch.equal(first[0], zero.tokens)
    assert not torch.equal(first[1], zero.t)
