"""Masked autoencoding: what is hidden, what the encoder sees, the loss, and a run of it."""

import json

import pytest
import torch
from conftest import TINY, assert_same_state, stopped_after
from test_export import stir
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ldae_fast.cli import main
from ldae_fast.config import SettingError
from ldae_fast.data import Loader, open_source
from ldae_fast.masked_autoencoder import MaskedAutoencoder, visible_tokens
from ldae_fast.masked_objective import MaskedObjective
from ldae_fast.recipes import build_config
from ldae_fast.tokenizers import fit_tokenizer
from ldae_fast.train.engine import Engine, flop_an_image
from ldae_fast.train.export import plain_vit
from ldae_fast.train.probe import load_subject
from ldae_fast.vit import normalise

T, VISIBLE = 16, 4  # of a 32 x 32 image in patches of 8, three quarters hidden
IDS, FLIP = torch.arange(70, 76), torch.tensor([True, False] * 3)


@pytest.fixture(scope="module")
def images():
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (6, 32, 32, 3), generator=g, dtype=torch.uint8)


def make(images, **changes) -> Engine:
    config = build_config(
        "mae", 32, "", TINY | {k.replace("__", "."): v for k, v in changes.items()}
    )
    tokenizer = fit_tokenizer("pca", images, patch=8, d=8, scale="whiten", count=500, seed=0)
    return Engine(config, tokenizer)


@pytest.fixture(scope="module")
def engine(images):
    made = make(images)
    stir(made.model)
    return made


def test_counts_of_visible_tokens():
    cases = ((256, 0.75), (64, 0.75), (4, 0.9), (4, 1e-17), (196, 0.75))
    assert [visible_tokens(*case) for case in cases] == [64, 16, 1, 3, 49]


def test_masks_are_permutations_of_the_sample_alone(engine):
    order = engine.objective.order(3, IDS, T)
    assert torch.equal(order.sort(dim=1).values, torch.arange(T).expand(6, T))
    assert torch.equal(engine.objective.order(3, IDS[2:4], T), order[2:4])  # of any batch
    assert not torch.equal(engine.objective.order(4, IDS, T), order)
    assert len({tuple(row[:VISIBLE].sort().values.tolist()) for row in order}) == 6
    many = engine.objective.order(0, torch.arange(40_000), T)[:, :VISIBLE]
    shares = torch.bincount(many.flatten(), minlength=T) / 40_000  # of the times a token is seen
    assert (shares - 0.25).abs().max() < 0.01


def test_the_seed_moves_the_masks(engine):
    other = MaskedObjective(engine.objective.config, engine.tokenizer, seed=1)
    assert not torch.equal(other.order(3, IDS, T), engine.objective.order(3, IDS, T))


def test_hidden_pixels_reach_nothing_visible_pixels_do(engine, images):
    """Of the prediction, that is: the encoder sees the visible patches alone."""
    patches = engine.tokenizer.patches(images)
    order = engine.objective.order(0, IDS, T)
    with torch.no_grad():
        pred = engine.model(patches, order)
        assert pred.shape == (6, T - VISIBLE, 192)
        hidden = patches.scatter(1, order[:, VISIBLE:, None].expand(-1, -1, 192), 7.0)
        assert torch.equal(engine.model(hidden, order), pred)
        shown = patches.clone()
        shown[1, order[1, 0]] += 1
        same = (engine.model(shown, order) == pred).flatten(1).all(dim=1)
    assert same.tolist() == [True, False, True, True, True, True]


def test_the_network_by_hand(images):
    """A second way to the prediction: unshuffled, by torch's own modules, in float64."""
    engine = make(images)
    stir(engine.model, seed=4)
    model = engine.model.double()
    order = engine.objective.order(5, IDS, T)
    patches = engine.tokenizer.patches(images).double()

    def norm(x, shift, scale):
        return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift

    def block(layer, x, six):
        shift1, scale1, gate1, shift2, scale2, gate2 = six[:, 0]
        qkv = layer.qkv(norm(x, shift1, scale1)).chunk(3, dim=-1)
        q, k, v = (y.unflatten(2, (2, -1)).transpose(1, 2) for y in qkv)  # (1, 2 heads, T, .)
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = x + gate1 * layer.proj(mixed.transpose(1, 2).flatten(2))
        return x + gate2 * layer.fc2(F.gelu(layer.fc1(norm(x, shift2, scale2))))

    enc, dec = (m(torch.zeros(1)) for m in (model.modulation, model.decoder_modulation))
    for i in range(6):
        seen = order[i, :VISIBLE].sort().values  # the order of the tokens must not matter
        positions = model.encoder.positions.double()
        x = (model.encoder.embed(patches[i]) + positions)[None, seen]
        x = block(model.encoder.blocks[0], x, enc[:6])
        full = model.mask_token.expand(1, T, -1).clone()
        full[:, seen] = model.bridge(norm(x, *enc[6:]))
        full = block(model.decoder.blocks[0], full + model.positions.double(), dec[:6])
        wanted = model.decoder.out(norm(full, *dec[6:]))[0, order[i, VISIBLE:]]
        got = model(patches[i : i + 1], order[i : i + 1])[0]
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("norm", [True, False])
def test_loss_by_hand(images, norm):
    """Float64, on hidden patches only, a patch at a time."""
    engine = make(images, objective__mask_norm=str(norm).lower())
    stir(engine.model)
    got = engine.objective.loss(engine.model, images, IDS, FLIP, 9)
    order = engine.objective.order(9, IDS, T)
    view = engine.tokenizer.view
    pixels = (images.double() / 255 - torch.tensor(view.mean)) / torch.tensor(view.std)
    for i in range(6):
        image = pixels[i].flip(1) if FLIP[i] else pixels[i]
        pred = engine.model(engine.tokenizer.patches(images[i : i + 1], FLIP[i : i + 1]),
                            order[i : i + 1])[0]  # fmt: skip
        errors = []
        for token, guess in zip(order[i, VISIBLE:].tolist(), pred.double()):
            row, column = divmod(token, 4)
            patch = image[8 * row : 8 * row + 8, 8 * column : 8 * column + 8].flatten()
            if norm:
                variance = ((patch - patch.mean()) ** 2).sum() / 191
                patch = (patch - patch.mean()) / (variance + 1e-6) ** 0.5
            errors.append(((guess - patch) ** 2).mean())
        assert float(got[i].detach()) == pytest.approx(float(sum(errors).detach() / 12), rel=1e-4)


def test_one_pass_loss_is_the_loss(engine, images):
    given = images, IDS, FLIP
    losses = engine.objective.loss(engine.model, *given, 3)
    parameters = list(engine.model.parameters())
    wanted = torch.autograd.grad(losses.sum() * 0.25, parameters)
    engine.optimizer.zero_grad(set_to_none=True)
    guess = engine.objective.guess(engine.model, *given, 3)
    assert torch.equal(engine.objective.backward(guess, images, FLIP, 0.25), losses)
    for p, w in zip(parameters, wanted):
        torch.testing.assert_close(p.grad, w)
        assert (w != 0).any()  # every parameter takes part


def curve(image_folder, steps=5, backend="", **changes):
    config_images = open_source(f"folder:{image_folder}", "train", 32)
    loader = Loader(config_images, batch_size=16, image_size=32, seed=1, workers=0)
    engine = make(loader.batch(0).images, **changes)
    if backend:
        engine.network = torch.compile(
            engine.working, fullgraph=True, dynamic=False, backend=backend
        )
    return [engine.step(loader.batch(i), i, i / steps).loss for i in range(steps)]


def test_every_switch_gives_the_same_losses(image_folder):
    """As one graph with its derivative, in two passes, recomputed: as the plain step, which learns.

    The graph is run as it was caught, since making code of it takes a minute.
    """
    plain = curve(image_folder)
    assert plain[-1] < plain[0]
    for changes in ({"backend": "aot_eager"}, {"optimizer__accumulate": "2"},
                    {"speed__recompute": "true"}):  # fmt: skip
        assert curve(image_folder, **changes) == pytest.approx(plain, rel=1e-4)
    bfloat16 = curve(image_folder, optimizer__precision="bfloat16")
    assert bfloat16 == pytest.approx(plain, rel=3e-2)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"objective.mask_ratio": "1"}, "objective.mask_ratio must be above 0 and below 1; got 1"),
        ({"model.decoder_width": "50"}, r"model.decoder_width must be a multiple of model.heads"),
        ({"objective.target": "latent"}, "masked needs objective.input and .target image"),
        ({"evaluate.input": "noisy"}, "evaluate.input noisy is for denoising"),
        ({"evaluate.cut": "4"}, "evaluate.cut must be 0 to 3, the encoder's blocks"),
        ({"optimizer.precision": "float8"}, "is for denoising; masking takes"),
        ({"model.patch": "32"}, "an image must have several patches"),
    ],
)
def test_settings_that_do_not_go_together(values, words):
    with pytest.raises(SettingError, match=words):
        build_config("mae", 32, "tiny", values)


def test_the_recipe_is_light_on_the_decoder():
    assert build_config("mae", 256, "L").model.decoder_depth == 8
    with pytest.raises(SettingError, match=r"model\.decoder_width is for objective.predict masked"):
        build_config("ldae", 32, "", {"model.decoder_width": "96"})
    ours, theirs = (build_config(name, 32) for name in ("mae", "ldae"))
    assert (ours.model.width, ours.model.depth) == (theirs.model.width, theirs.model.depth)
    assert (ours.data, ours.optimizer) == (theirs.data, theirs.optimizer)


def test_flop_is_what_torch_counts(monkeypatch):
    """Forward a third of a step; what torch counts beside is the small network of t."""
    monkeypatch.setenv("LDAE_IMPL", "reference")  # in operators that torch knows
    config = build_config("mae", 32)
    m, tokens, values = config.model, 64, 48
    model = MaskedAutoencoder(m, values, 8, config.objective.mask_ratio)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, tokens, values), torch.arange(tokens)[None])
    time = sum(2 * (256 * w // 4 + (w // 4) ** 2) for w in (m.width, m.width // 2))
    assert 3 * (counter.get_total_flops() - time) == flop_an_image(config)
    assert flop_an_image(config) < flop_an_image(build_config("ldae", 32)) / 2


# --- A whole run ----------------------------------------------------------------------------------


def words(image_folder, out):
    settings = TINY | {"report.log_every": "1", "evaluate.epochs": "2", "speed.workers": "0"}
    return ["train", "mae", "--data", f"folder:{image_folder}", "--steps", "20", "--out", str(out),
            *(f"--{name}={value}" for name, value in settings.items())]  # fmt: skip


@pytest.fixture(scope="module")
def whole(image_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("masked") / "whole"
    assert main([*words(image_folder, out), "--profile"]) == 0
    return out


def test_a_run_reports_as_any_other(whole):
    result = json.loads((whole / "result.json").read_text())
    assert {"raw_pixels", "pca", "untrained"} <= set(result["baselines"])
    assert result["recipe"] == "mae"
    assert {"linear_top1", "knn_top1", "ema_linear_top1", "verdict"} <= set(result)
    pictures = {p.name for p in (whole / "pictures").iterdir()}
    assert pictures == {"masking.png", "curves.png", "bars.png"}
    assert "Masking" in (whole / "report.html").read_text()


def test_a_profile_has_the_parts_of_a_masked_step(whole):
    table = (whole / "profile" / "table.txt").read_text()
    assert table.startswith("mae, 32 px, 1 block of width 32 and 1 block of width 16, batch 16; ")
    parts = {line.split("  ")[0] for line in table.splitlines()}
    assert {"patches and masks", "embedding, modulation, output", "attention", "loss"} <= parts
    assert "noise op" not in parts


def test_a_stopped_run_goes_on_bit_for_bit(whole, image_folder, tmp_path):
    out = tmp_path / "stopped"
    with stopped_after(5, out):
        assert main(words(image_folder, out)) == 143
    assert main(["resume", str(out)]) == 0
    assert_same_state(out, whole)


def test_probe_and_export_take_it(whole, image_folder, tmp_path, capsys):
    data = ["--data", f"folder:{image_folder}", "--method", "knn"]
    assert main(["probe", str(whole), *data, "--json", str(tmp_path / "probe.json")]) == 0
    ours, theirs = (
        json.loads(p.read_text()) for p in (tmp_path / "probe.json", whole / "result.json")
    )
    assert ours["knn_top1"] == theirs["knn_top1"]
    subject = load_subject(whole, "trained", {})
    vit, model = plain_vit(subject), subject.models["trained"]
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        wanted = model.encode(subject.objective.tokenizer.patches(images), torch.zeros(3))
        torch.testing.assert_close(vit(normalise(images, vit.config)), wanted, rtol=1e-4, atol=1e-4)
    assert main(["sample", str(whole)]) == 2
    assert "a masked autoencoder draws no samples" in capsys.readouterr().err
