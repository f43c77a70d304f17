"""The network: sizes against the paper's, identity at the start, the folded embedding."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ldae_fast.config import ModelConfig
from ldae_fast.model import LatentDAE, sincos_positions, training_flop
from ldae_fast.rates import peak
from ldae_fast.recipes import SIZES, build_config, recipe_config


def small(**changes) -> LatentDAE:
    config = replace(ModelConfig(patch=4, width=32, depth=2, decoder_depth=2, heads=2), **changes)
    torch.manual_seed(0)
    return LatentDAE(config, 48, 48, 2)


def stir(model: LatentDAE) -> LatentDAE:
    """Moves every weight off its start, so that nothing is zero."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn(p.shape, generator=g)
    return model


@pytest.mark.parametrize(("size", "millions"), [("B", 86), ("L", 304)])
def test_encoder_has_the_papers_parameter_count(size, millions):
    """With t fixed, modulation folds into the linears, so the encoder is a plain ViT. Its usual
    count, which the paper gives, has the classifier of 1,000 classes in it.
    """
    config = recipe_config("ldae", 256, size)
    with torch.device("meta"):
        model = LatentDAE(config.model, 768, 768, 16)
        classifier = torch.nn.Linear(config.model.width, 1000)
    parameters = [*model.encoder.parameters(), *classifier.parameters()]
    assert round(sum(p.numel() for p in parameters) / 1e6) == millions


def test_half_l_is_the_papers_dit_l():
    config = recipe_config("ldae", 256).model
    assert (config.depth + config.decoder_depth, config.width, config.heads) == (24, 1024, 16)
    assert config.patch == 16
    assert set(SIZES) >= {"S", "B", "half-L", "L"}


def test_every_block_is_the_identity_at_the_start():
    model, x, t = small(), torch.randn(3, 4, 48), torch.tensor([1, 500, 1000])
    start = model.encoder.embed(x) + model.encoder.positions
    for cut in range(1, 5):
        torch.testing.assert_close(model.encode(x, t, cut), start, rtol=0, atol=0)
    assert (model(x, t) == 0).all()


def test_without_gates_blocks_act_from_the_start():
    model, x, t = small(gates=False), torch.randn(3, 4, 48), torch.tensor([1, 500, 1000])
    start = model.encoder.embed(x) + model.encoder.positions
    assert (model.encode(x, t, 1) - start).abs().mean() > 0.1


def test_encoder_output_feeds_the_decoder():
    """encode(cut = all) is what the head reads: the two paths through the blocks agree."""
    model, x, t = stir(small()), torch.randn(3, 4, 48), torch.tensor([1, 500, 1000])
    *_, (shift, scale) = model.vectors(t)
    h = torch.nn.functional.layer_norm(model.encode(x, t, 4), (32,), eps=1e-6)
    wanted = model.decoder.out(h * (1 + scale[:, None]) + shift[:, None])
    torch.testing.assert_close(model(x, t), wanted, rtol=1e-4, atol=1e-5)


def test_a_block_by_hand():
    model, x, t = stir(small(depth=1, decoder_depth=1)), torch.randn(2, 4, 48), torch.tensor([3, 9])
    block, (six, *_) = model.blocks[0], model.vectors(t)
    shift1, scale1, gate1, shift2, scale2, gate2 = (v[:, None] for v in six)

    def norm(h):
        return (h - h.mean(-1, keepdim=True)) / (
            h.var(-1, keepdim=True, correction=0) + 1e-6
        ).sqrt()

    h = model.encoder.embed(x) + model.encoder.positions
    q, k, v = block.qkv(norm(h) * (1 + scale1) + shift1).view(2, 4, 3, 2, 16).permute(2, 0, 3, 1, 4)
    mixed = torch.softmax(q @ k.mT / 4, -1) @ v
    h = h + gate1 * block.proj(mixed.transpose(1, 2).reshape(2, 4, 32))
    inner = torch.nn.functional.gelu(block.fc1(norm(h) * (1 + scale2) + shift2))
    h = h + gate2 * block.fc2(inner)
    torch.testing.assert_close(model.encode(x, t, 1), h, rtol=1e-5, atol=1e-5)


def test_output_depends_on_the_level():
    model, x = stir(small()), torch.randn(1, 4, 48)
    assert not torch.allclose(model(x, torch.tensor([10])), model(x, torch.tensor([900])))


def test_folded_embedding_is_the_unfolded_one():
    model = stir(small()).double()
    basis = torch.linalg.qr(torch.randn(48, 48, dtype=torch.float64))[0][:10]
    scale, center = torch.rand(10).double() + 0.5, torch.randn(48).double()
    z, t = torch.randn(3, 4, 10).double(), torch.tensor([1, 500, 1000])
    fold = model.fold_embedding(basis, scale, center)
    unfolded, folded = model((z * scale) @ basis + center, t), model(z, t, fold)
    torch.testing.assert_close(folded, unfolded, rtol=1e-10, atol=1e-12)
    weight = model.encoder.embed.weight
    (a,) = torch.autograd.grad(unfolded.square().sum(), weight, retain_graph=True)
    (b,) = torch.autograd.grad(folded.square().sum(), weight)
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_positions_are_unique_and_follow_the_closed_form():
    table = sincos_positions(16, 3)
    assert len({tuple(row.tolist()) for row in table}) == 9
    omega = 10000 ** (-np.arange(4) / 4)
    row, column = 2, 1
    wanted = np.concatenate([f(k * omega) for k in (row, column) for f in (np.sin, np.cos)])
    np.testing.assert_allclose(table[row * 3 + column], wanted, atol=1e-6)


def test_a_sample_does_not_see_its_batch():
    model, x = stir(small()), torch.randn(5, 4, 48)
    t = torch.tensor([1, 20, 300, 400, 1000])
    torch.testing.assert_close(model(x, t)[2:3], model(x[2:3], t[2:3]), rtol=1e-4, atol=1e-5)


def test_training_flop_is_the_papers():
    """DiT-L of 12 + 12 blocks at 256 tokens: 486.6 GFLOP an image, twice the blocks 970.7."""
    for size, gigaflop in (("half-L", 486.6), ("L", 970.7)):
        config = build_config("ldae", 256, size).model
        assert training_flop(config, 768, 256) / 1e9 == pytest.approx(gigaflop, rel=2e-3)


def test_peak_is_known_by_the_devices_name():
    assert peak("NVIDIA H100 80GB HBM3") == 989e12
    assert peak("Some other accelerator") is None
