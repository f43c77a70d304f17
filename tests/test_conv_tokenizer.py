"""The convolutional tokenizer: its network, the four terms of its loss, its files."""

import os
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributions import Normal, kl_divergence

from ldae_fast.config import SettingError, TokenizerConfig
from ldae_fast.ops import ImageView
from ldae_fast.tokenizers import TokenizerError, load_tokenizer
from ldae_fast.tokenizers.conv_loss import ConvLoss
from ldae_fast.tokenizers.conv_net import ConvAutoencoder, Posterior, group, ungroup
from ldae_fast.tokenizers.conv_vae import measure
from ldae_fast.tokenizers.patch_gan import PatchGan, adaptive_weight, hinge
from ldae_fast.tokenizers.perceptual import VGG16, load_vgg16, perceptual_distance

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def images():
    g = torch.Generator().manual_seed(0)
    small = torch.rand(20, 3, 4, 4, generator=g)
    large = nn.functional.interpolate(small, 16, mode="bicubic").clamp(0, 1)
    return (255 * large).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@pytest.fixture(scope="module")
def tokenizer(images):
    torch.manual_seed(0)
    net = ConvAutoencoder(4, 8, 4)
    return measure(net, images, ImageView(4, MEAN, STD), "whiten", {"perceptual": "none"})


# --- The network ----------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [2, 4, 8, 16])
def test_a_token_is_a_patch(patch):
    """Stride patch / 2, multipliers 1-2-4-4 cut to the downsamplings, 2 x 2 latents a token."""
    net = ConvAutoencoder(4, 16, patch)
    x = torch.randn(2, 3, 32, 32)
    posterior = net.posterior(x)
    assert posterior.mean.shape == (2, 4, 64 // patch, 64 // patch)
    assert group(posterior.mean).shape == (2, (32 // patch) ** 2, 16)
    assert net.decoder(posterior.mean).shape == x.shape
    last = {2: 4, 4: 8, 8: 16, 16: 16}[patch]
    assert net.encoder[-2].in_channels == last


def test_the_papers_network_has_the_families_size():
    """128 channels, stride 8 and 4 latents: the 83.65 M parameters of kl-f8's first stage."""
    with torch.device("meta"):
        net = ConvAutoencoder(128, 16, 16)
    assert sum(p.numel() for p in net.parameters()) == 83_653_863


def test_tokens_are_groups_of_two_by_two():
    latents = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    tokens = group(latents)
    wanted = latents[1, :, 2:4, 0:2].permute(1, 2, 0).flatten()  # third token: below the first
    assert torch.equal(tokens[1, 2], wanted)
    assert torch.equal(ungroup(tokens), latents)


def test_kl_is_torchs():
    m, logs = torch.randn(2, 3, 4, 4).double(), torch.randn(2, 3, 4, 4).double()
    wanted = kl_divergence(Normal(m, (0.5 * logs).exp()), Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(Posterior(m, logs).kl(), wanted)


def test_latents_have_zero_mean_and_unit_variance(tokenizer, images):
    latents = tokenizer.encode(tokenizer.patches(images)).flatten(0, 1)
    torch.testing.assert_close(latents.mean(0), torch.zeros(8), rtol=0, atol=1e-4)
    torch.testing.assert_close(latents.var(0), torch.ones(8), rtol=1e-3, atol=0)


def test_decode_undoes_the_scale(tokenizer, images):
    """Patches of the network's own answer to the posterior's mean, no more and no less."""
    patches = tokenizer.patches(images)
    x = (images.permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[
        :, None, None
    ]
    with torch.no_grad():
        wanted = tokenizer.net.decoder(tokenizer.net.posterior(x).mean)
    decoded = tokenizer.images(tokenizer.decode(tokenizer.encode(patches)), 16)
    wanted = wanted.permute(0, 2, 3, 1) * torch.tensor(STD) + torch.tensor(MEAN)
    torch.testing.assert_close(decoded, wanted, rtol=1e-4, atol=1e-4)


def test_pieces_and_autocast_leave_the_latents_as_they_are(tokenizer, images, monkeypatch):
    patches = tokenizer.patches(images)
    z = tokenizer.encode(patches)
    back = tokenizer.decode(z)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.encode(patches), z)
        assert torch.equal(tokenizer.decode(z), back)
    monkeypatch.setattr("ldae_fast.tokenizers.conv_vae.at_once", lambda side: 3)
    torch.testing.assert_close(tokenizer.encode(patches), z, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokenizer.decode(z), back, rtol=1e-4, atol=1e-5)


def test_the_mirror_image_is_encoded(tokenizer, images):
    flip = torch.tensor([True] + [False] * 19)
    one, zero = torch.ones(20), torch.zeros(20)
    made = tokenizer.add_noise(
        images, one, zero, torch.arange(20), seed=0, step=0, outputs=("clean_latents",), flip=flip,
        impl="auto",
    )["clean_latents"]  # fmt: skip
    mirrored = torch.cat([images[:1].flip(2), images[1:]])
    wanted = tokenizer.encode(tokenizer.patches(mirrored))
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)
    assert not made.requires_grad


def test_file_round_trip(tokenizer, images, tmp_path):
    path = tmp_path / "t.safetensors"
    path.write_bytes(tokenizer.to_bytes())
    back = load_tokenizer(path)
    patches = tokenizer.patches(images)
    assert torch.equal(back.encode(patches), tokenizer.encode(patches))
    assert (back.about, back.image_size, back.view) == (tokenizer.about, 16, tokenizer.view)
    assert not any(p.requires_grad for p in back.net.parameters())
    assert back.to_bytes() == path.read_bytes()


@pytest.mark.parametrize("content", ["torn", "other", "pickle"])
def test_what_is_no_tokenizer_is_refused_by_name(tokenizer, tmp_path, content):
    path = tmp_path / "wrong.safetensors"
    if content == "torn":
        path.write_bytes(tokenizer.to_bytes()[:-100])
    elif content == "other":
        save_file({"x": torch.zeros(3)}, path)
    else:
        path.write_bytes(pickle.dumps([1]))
    with pytest.raises(TokenizerError, match=r"wrong\.safetensors holds no tokenizer") as caught:
        load_tokenizer(path)
    assert "\n" not in str(caught.value)


# --- The adversarial term -------------------------------------------------------------------------


def test_adaptive_weight_by_hand():
    """Gradients (3, 4) and (0, 2.5): 5 / (2.5 + 1e-4); none for the adversary: at most 1e4."""
    w = torch.tensor([2.0, -1.0], dtype=torch.float64, requires_grad=True)
    reconstruction = (w * torch.tensor([3.0, 4.0])).sum()
    weight = adaptive_weight(reconstruction, 2.5 * w[1], w)
    assert float(weight) == pytest.approx(5 / (2.5 + 1e-4), rel=1e-12)
    assert not weight.requires_grad
    assert float(adaptive_weight(reconstruction, 0 * w[1], w)) == 1e4


def test_hinge_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 1.0])
    assert float(hinge(real, fake)) == pytest.approx(((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3) / 2)


@pytest.mark.parametrize(("side", "grid"), [(8, 2), (16, 2), (32, 2), (64, 6), (256, 30)])
def test_the_critic_judges_patches_at_any_size(side, grid):
    with torch.device("meta"):
        critic = PatchGan(64, side)
        assert critic(torch.empty(2, 3, side, side)).shape == (2, 1, grid, grid)
    if side == 256:  # the family's: 4 x 4 convolutions of 64, 128, 256, 512 and 1 channels
        convs = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 1) + 64 + 1
        assert sum(p.numel() for p in critic.parameters()) == convs + 2 * (128 + 256 + 512)


# --- The perceptual term --------------------------------------------------------------------------


class Halves:
    """Feature maps that are simple to count with: the image, and every second pixel of it."""

    def stages(self, x):
        return [x, x[..., ::2, ::2]]


def test_perceptual_distance_by_hand():
    x = torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    x[:, 0] = 2.0  # unit vector (1, 0, 0)
    y = torch.zeros_like(x)
    y[:, 0], y[:, 1] = 3.0, 4.0  # unit vector (0.6, 0.8, 0): squared distance 0.16 + 0.64
    y[1] = 7 * x[1]  # the same direction
    found = perceptual_distance(Halves(), x, y)
    torch.testing.assert_close(found, torch.tensor([2 * 0.8, 0.0]).double(), rtol=1e-6, atol=1e-9)


def torchvision_layout() -> dict[str, torch.Tensor]:
    """Names and shapes of torchvision's vgg16, its layers counted by hand; small random values."""
    g, before, tensors = torch.Generator().manual_seed(0), 3, {}
    indices = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    for index, after in zip(indices, sum(VGG16, ())):
        shape = (after, before, 3, 3)
        tensors[f"features.{index}.weight"] = 0.05 * torch.randn(shape, generator=g).half()
        tensors[f"features.{index}.bias"] = torch.zeros(after).half()
        before = after
    tensors["classifier.6.bias"] = torch.zeros(1000).half()
    return tensors


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_vgg16_comes_from_a_local_file(tmp_path, suffix):
    path, tensors = tmp_path / f"vgg16.{suffix}", torchvision_layout()
    torch.save(tensors, path) if suffix == "pth" else save_file(tensors, path)
    network = load_vgg16(path)
    x = torch.rand(1, 3, 32, 32)
    maps = network.stages(x)
    assert [m.shape[1:] for m in maps] == [
        (64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2),
    ]  # fmt: skip
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    h = (x - mean[:, None, None]) / std[:, None, None]
    for index in (0, 2):  # relu1_2
        weight = tensors[f"features.{index}.weight"].float()
        h = nn.functional.conv2d(h, weight, padding=1).relu()
    torch.testing.assert_close(maps[0], h, rtol=1e-4, atol=1e-4)


class Attack:
    """A pickle that would make a file as it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("content", ["shape", "names", "list", "text", "missing", "hostile"])
def test_what_is_no_vgg16_is_refused_by_name(tmp_path, content):
    path, trace = tmp_path / "net.pth", tmp_path / "ran"
    if content == "shape":
        torch.save(torchvision_layout() | {"features.0.weight": torch.zeros(8, 3, 3, 3)}, path)
    elif content == "names":
        torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    elif content == "list":
        torch.save([1, 2], path)
    elif content == "text":
        path.write_text("not weights")
    elif content == "hostile":
        path.write_bytes(pickle.dumps(Attack(trace), protocol=2))
    with pytest.raises(SettingError, match=r"--tokenizer\.vgg .*net\.pth") as caught:
        load_vgg16(path)
    assert "\n" not in str(caught.value)
    assert not trace.exists()
    if content == "hostile":  # and the same bytes do run where pickles are believed
        pickle.loads(path.read_bytes())
        assert trace.exists()


# --- The loss -------------------------------------------------------------------------------------

ALL = TokenizerConfig(channels=4, reconstruction=0.9, kl=0.3, perceptual=0.7, adversarial=0.5)


def losses(config: TokenizerConfig, adversarial: bool = True):
    """ConvLoss of a small network in float64, with what it is made of."""
    torch.manual_seed(0)
    net = ConvAutoencoder(4, 8, 4).double()
    loss_of = ConvLoss(config, 16, Halves(), MEAN, STD).double()
    with torch.no_grad():
        loss_of.log_variance.fill_(0.4)
    x, noise = torch.randn(2, 3, 16, 16).double(), torch.randn(2, 2, 8, 8).double()
    return net, loss_of, x, *loss_of(net, x, noise, adversarial)


def test_loss_by_hand():
    net, loss_of, x, loss, terms, back = losses(ALL)
    pixels = [v * loss_of.std + loss_of.mean for v in (x, back)]
    distance = perceptual_distance(Halves(), *pixels)[:, None, None, None]
    error = (0.9 * (x - back).abs() + 0.7 * distance) / torch.tensor(0.4).double().exp() + 0.4
    reconstruction = error.sum() / 2
    kl = net.posterior(x).kl().mean()
    fooled = -loss_of.critic(back).mean()
    weight = adaptive_weight(reconstruction, fooled, net.decoder[-1].weight)
    torch.testing.assert_close(
        loss, reconstruction + 0.3 * kl + 0.5 * weight * fooled, rtol=1e-6, atol=0
    )
    assert set(terms) == {"l1", "perceptual", "kl", "adversarial", "adversarial_weight"}
    assert float(terms["l1"]) == pytest.approx((x - back).abs().mean().item())


@pytest.mark.parametrize("name", ["reconstruction", "kl", "perceptual", "adversarial"])
def test_each_term_is_removable_by_its_weight(name):
    """Without it the loss is that of the other terms, and what it needs is never asked for."""
    _, _, _, _, whole, _ = losses(ALL)
    net, loss_of, x, loss, terms, back = losses(replace(ALL, **{name: 0.0}))
    gone = {"adversarial": {"adversarial", "adversarial_weight"}, "reconstruction": set()}
    assert set(terms) == set(whole) - gone.get(name, {name})  # L1 is logged all the same
    if name == "adversarial":
        assert loss_of.critic is None
    if name == "perceptual":
        loss_of.network = None
        loss_of(net, x, torch.zeros(2, 2, 8, 8).double(), True)
    rest = sum({"kl": 0.3}.get(n, 0) * float(v) for n, v in terms.items())
    if "adversarial" in terms:
        rest += 0.5 * float(terms["adversarial_weight"] * terms["adversarial"])
    error = 0.9 * (name != "reconstruction") * (x - back).abs().sum() / 2
    if "perceptual" in terms:
        error = error + 0.7 * terms["perceptual"] * x[0].numel()
    wanted = error / torch.tensor(0.4).double().exp() + 0.4 * x[0].numel() + rest
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)


def test_the_adversary_waits_for_its_start():
    assert "adversarial" not in losses(ALL, adversarial=False)[4]
