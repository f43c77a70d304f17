"""The ops' definitions against independent forms: closed formulas, torch's own, known answers."""

import copy
import math
import pickle
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ldae_fast.kernels import native, triton_launch
from ldae_fast.kernels.normal.reference import philox
from scipy import stats
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ldae_fast import ops

VIEW = ops.ImageView(4, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
P, D_LATENT = 48, 10


def orthonormal(n: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))[0]


@pytest.fixture
def images():
    g = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (5, 8, 12, 3), generator=g, dtype=torch.uint8)


# --- normal ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the three vectors that the authors of Random123 publish for philox4x32-10
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    from ldae_fast.kernels.normal.reference import rounds

    words = tuple(torch.tensor([c]) for c in counter)
    assert tuple(int(w) for w in rounds(words, key)) == expected


def test_philox_counter_layout():
    """Block, low and high half of the sample id, and step are the four counter words."""
    sample = torch.tensor([(7 << 32) | 9])
    from ldae_fast.kernels.normal.reference import rounds

    direct = rounds(tuple(torch.tensor([c]) for c in (2, 9, 7, 5)), (11, 3))
    assert philox((3 << 32) | 11, 5, sample, 3)[0, 2].tolist() == [int(w) for w in direct]


def test_normal_does_not_depend_on_the_batch_around_it():
    ids = torch.arange(100, 140)
    whole = ops.normal(3, 7, ids, 50)
    halves = torch.cat([ops.normal(3, 7, ids[:11], 50), ops.normal(3, 7, ids[11:], 50)])
    assert torch.equal(whole, halves)
    assert torch.equal(whole[:, :13], ops.normal(3, 7, ids, 13))
    for other in (ops.normal(4, 7, ids, 50), ops.normal(3, 8, ids, 50)):
        assert not torch.isclose(whole, other).any(dim=1).all()


def test_normal_is_normal():
    x = ops.normal(1, 2, torch.arange(400), 1001, dtype=torch.float64)
    assert stats.kstest(x.flatten().numpy(), "norm").pvalue > 1e-3
    correlation = np.corrcoef(x[:, :6].numpy().T) - np.eye(6)
    assert abs(correlation).max() < 5 / math.sqrt(400)


def test_normal_float32_is_float64_rounded():
    ids = torch.arange(64)
    exact = ops.normal(1, 0, ids, 4096, dtype=torch.float64)
    assert (ops.normal(1, 0, ids, 4096).double() - exact).abs().max() < 3e-6


# --- patches --------------------------------------------------------------------------------------


def test_patch_is_rows_columns_channels(images):
    patches = ops.patchify(images, VIEW)
    by_hand = (images[2, 4:8, 8:12].double() / 255 - torch.tensor(VIEW.mean)) / torch.tensor(
        VIEW.std
    )
    assert patches.shape == (5, 6, 48)
    torch.testing.assert_close(patches[2, 5].double(), by_hand.flatten(), rtol=0, atol=2e-6)


def test_unpatchify_undoes_patchify(images):
    back = ops.unpatchify(ops.patchify(images, VIEW), VIEW, 8, 12)
    torch.testing.assert_close(back, images.float() / 255, rtol=0, atol=1e-6)


def test_flip_and_crop_windows(images):
    flip = torch.tensor([True, False, True, False, True])
    crop = torch.tensor([[0, 0], [0, 4], [0, 1], [0, 3], [0, 2]])
    got = ops.patchify(images, VIEW, flip=flip, crop=crop, size=8)
    for i in range(5):
        window = images[i, 0:8, crop[i, 1] : crop[i, 1] + 8]
        window = window.flip(1) if flip[i] else window
        assert torch.equal(got[i], ops.patchify(window[None], VIEW)[0])


def test_float_images_are_nchw(images):
    normalised = (images / 255).permute(0, 3, 1, 2)
    mean = torch.tensor(VIEW.mean)[:, None, None]
    std = torch.tensor(VIEW.std)[:, None, None]
    plain = ops.ImageView(4)
    got = ops.patchify((normalised - mean) / std, plain)
    torch.testing.assert_close(got, ops.patchify(images, VIEW), rtol=0, atol=2e-6)


# --- patch_pca_noise ------------------------------------------------------------------------------


def noise_arguments(batch: int = 5):
    basis = orthonormal(P)[:D_LATENT].float()
    center = torch.linspace(-0.3, 0.2, P)
    scale = torch.linspace(2, 0.5, D_LATENT)
    gamma, sigma = torch.linspace(1, 0.2, batch), torch.linspace(0, 1.4, batch)
    return basis, center, scale, gamma, sigma, torch.arange(50, 50 + batch)


def test_patch_pca_noise_by_hand(images):
    basis, center, scale, gamma, sigma, ids = noise_arguments()
    out = ops.patch_pca_noise(
        images, basis, center, scale, gamma, sigma, ids, seed=5, step=9, view=VIEW,
        outputs=("clean_latents", "noisy_latents", "noisy_patches", "noise"),
    )  # fmt: skip
    x = ops.patchify(images, VIEW, dtype=torch.float64)
    eps = ops.normal(5, 9, ids, 6 * D_LATENT, dtype=torch.float64).view(5, 6, D_LATENT)
    for b in range(5):
        for t in range(6):
            z0 = (basis.double() @ (x[b, t] - center)) / scale
            zt = gamma[b] * z0 + sigma[b] * eps[b, t]
            xt = basis.double().T @ (scale * zt) + center
            close = {"rtol": 0, "atol": 2e-5}
            torch.testing.assert_close(out["clean_latents"][b, t].double(), z0, **close)
            torch.testing.assert_close(out["noisy_latents"][b, t].double(), zt, **close)
            torch.testing.assert_close(out["noisy_patches"][b, t].double(), xt, **close)
    torch.testing.assert_close(out["noise"].double(), eps, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_noise_op_takes_a_basis_of_any_float_type_wherever_it_lies(images, dtype):
    """Bit by bit what float32 copies of the same numbers give."""
    basis, center, scale, *rest = noise_arguments()
    few = [t.bfloat16().to(torch.float16) for t in (basis, center, scale)]  # numbers that all hold
    spread = [torch.stack([t, t], -1).to(dtype)[..., 0] for t in few]
    kwargs = {"seed": 1, "step": 2, "view": VIEW, "outputs": ("noisy_latents", "noisy_patches")}
    got = ops.patch_pca_noise(images, *spread, *rest, **kwargs)
    wanted = ops.patch_pca_noise(images, *(t.float() for t in few), *rest, **kwargs)
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_splitting_a_batch_changes_nothing(images):
    basis, center, scale, gamma, sigma, ids = noise_arguments()
    kwargs = {"seed": 1, "step": 2, "view": VIEW}
    whole = ops.patch_pca_noise(images, basis, center, scale, gamma, sigma, ids, **kwargs)
    one = ops.patch_pca_noise(
        images[3:4], basis, center, scale, gamma[3:4], sigma[3:4], ids[3:4], **kwargs
    )
    torch.testing.assert_close(whole["noisy_latents"][3:4], one["noisy_latents"], rtol=0, atol=2e-6)


def test_definitions_ignore_a_callers_autocast(images):
    basis, center, scale, gamma, sigma, ids = noise_arguments()
    pred = torch.randn(5, 6, P, requires_grad=True)

    def run():
        made = ops.patch_pca_noise(
            images, basis, center, scale, gamma, sigma, ids, seed=1, step=2, view=VIEW
        )
        return made["noisy_latents"], ops.denoise_loss(pred, images, basis, gamma, view=VIEW)

    plain = run()
    with torch.autocast("cpu", torch.bfloat16):
        cast = run()
    assert all(torch.equal(a, b) for a, b in zip(plain, cast))


# --- denoise_loss ---------------------------------------------------------------------------------


def full_rotation_loss(pred, images, basis, weights, lam):
    """Equation 6 to the letter: one patch after the other, r = V (x_0 - pred)."""
    target = ops.patchify(images, VIEW, dtype=torch.float64)
    per_sample = []
    for b in range(len(images)):
        total = sum(
            (weights * (basis @ (target[b, t] - pred[b, t])).square()).sum()
            for t in range(target.shape[1])
        )
        per_sample.append(lam[b] * total / target[b].numel())
    return torch.stack(per_sample)


@pytest.mark.parametrize("d", [D_LATENT, P], ids=["some", "all"])
def test_two_level_loss_is_the_full_rotation_value_and_gradient(images, d):
    basis = orthonormal(P)
    weights = torch.full((P,), 0.1, dtype=torch.float64)
    weights[:d] = 0.9
    lam = torch.linspace(0.3, 1, 5, dtype=torch.float64)
    pred = torch.randn(5, 6, P, dtype=torch.float64, requires_grad=True)
    expected = full_rotation_loss(pred, images, basis, weights, lam)
    (wanted,) = torch.autograd.grad(expected.sum(), pred)
    two_level = ops.denoise_loss(pred, images, basis[:d], lam, view=VIEW, weights=(0.9, 0.1))
    general = ops.denoise_loss(pred, images, basis, lam, view=VIEW, weights=weights)
    for got in (two_level, general):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)
        (grad,) = torch.autograd.grad(got.sum(), pred)
        torch.testing.assert_close(grad, wanted, rtol=1e-10, atol=1e-14)


def test_a_loss_that_weighs_all_alike_takes_no_product(images):
    pred, lam, basis = torch.randn(5, 6, P), torch.ones(5), orthonormal(P).float()
    for d, none in ((P, True), (D_LATENT, False)):
        with FlopCounterMode(display=False) as counted:
            ops.denoise_loss(pred, images, basis[:d], lam, view=VIEW, impl="reference")
        assert (counted.get_total_flops() == 0) == none


# --- adaLN, attention, MLP ------------------------------------------------------------------------


def test_layernorm_modulate_against_numpy():
    g = torch.Generator().manual_seed(0)
    x, shift, scale = (torch.randn(s, generator=g).double() for s in ((2, 3, 8), (2, 8), (2, 8)))
    got = ops.layernorm_modulate(x, shift, scale, eps=1e-6)
    n = x.numpy()
    normal = (n - n.mean(-1, keepdims=True)) / np.sqrt(n.var(-1, keepdims=True) + 1e-6)
    wanted = normal * (1 + scale.numpy()[:, None]) + shift.numpy()[:, None]
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-12, atol=1e-13)


def test_gate_residual_is_the_two_steps():
    x, y = torch.randn(2, 3, 8).double(), torch.randn(2, 3, 8).double()
    gate, shift, scale = (torch.randn(2, 8).double() for _ in range(3))
    total, h = ops.gate_residual_layernorm_modulate(x, y, gate, shift, scale)
    torch.testing.assert_close(total, x + gate[:, None] * y)
    torch.testing.assert_close(h, ops.layernorm_modulate(total, shift, scale))


@pytest.mark.parametrize("impl", ["reference", "matmul", "sdpa"])
def test_attention_by_hand(impl):
    q, k, v = (torch.randn(2, 5, 3, 4).double() for _ in range(3))
    got = ops.attention(q, k, v, impl=impl)
    for b in range(2):
        for head in range(3):
            scores = q[b, :, head] @ k[b, :, head].T / 2.0
            wanted = (scores.exp() / scores.exp().sum(1, keepdim=True)) @ v[b, :, head]
            torch.testing.assert_close(got[b, :, head], wanted)


@pytest.mark.parametrize("impl", ["matmul", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_error_at_most_twice_the_definitions(impl, dtype):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 16, 2, 32, generator=g).to(dtype) for _ in range(3))
    dy = torch.randn(3, 16, 2, 32, generator=g).to(dtype)

    def run(name, to):
        leaves = [x.detach().to(to).requires_grad_() for x in (q, k, v)]
        out = ops.attention(*leaves, impl=name)
        return [out, *torch.autograd.grad(out, leaves, dy.to(to))]

    exact = run("reference", torch.float64)
    plain = [x.transpose(1, 2).detach().requires_grad_() for x in (q, k, v)]
    out = ((plain[0] @ plain[1].mT / 32**0.5).softmax(-1) @ plain[2]).transpose(1, 2)
    grads = torch.autograd.grad(out, plain, dy)
    pytorch = [out, *(x.transpose(1, 2) for x in grads)]
    for ours, theirs, truth in zip(run(impl, dtype), pytorch, exact):
        ours_error, theirs_error = ((x.double() - truth).abs().max() for x in (ours, theirs))
        assert ours_error <= 2 * theirs_error + 1e-7


def test_mlp_gelu_is_fc2_gelu_fc1():
    x, w1, b1 = torch.randn(3, 4).double(), torch.randn(8, 4).double(), torch.randn(8).double()
    w2, b2 = torch.randn(4, 8).double(), torch.randn(4).double()
    hidden = x @ w1.T + b1
    exact = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    torch.testing.assert_close(ops.mlp_gelu(x, w1, b1, w2, b2), exact @ w2.T + b2)
    tanh = F.gelu(hidden, approximate="tanh") @ w2.T + b2
    torch.testing.assert_close(ops.mlp_gelu(x, w1, b1, w2, b2, approximate="tanh"), tanh)


# --- adamw_ema ------------------------------------------------------------------------------------


def test_adamw_ema_against_torch():
    g = torch.Generator().manual_seed(0)
    start = [torch.randn(4, 3, generator=g).double(), torch.randn(5, generator=g).double()]
    ours = [x.clone().requires_grad_() for x in start]
    theirs = [x.clone().requires_grad_() for x in start]
    settings = {"lr": 3e-2, "betas": (0.8, 0.95), "weight_decay": 0.1}
    mine = ops.AdamWEMA(ours, ema=0.99, **settings)
    torchs = torch.optim.AdamW(theirs, **settings)
    averages = [x.clone() for x in start]
    for step in range(1, 8):
        for a, b in zip(ours, theirs):
            b.grad = torch.randn(b.shape, generator=g).double()
            a.grad = b.grad * 4
        mine.step(grad_scale=torch.tensor(0.25).double())
        torchs.step()
        decay = min(0.99, (1 + step) / (10 + step))
        for average, b in zip(averages, theirs):
            average.mul_(decay).add_(b.detach(), alpha=1 - decay)
    for a, b, average in zip(ours, theirs, averages):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(mine.state[a]["ema"], average, rtol=1e-12, atol=1e-14)


def pair(**settings):
    """The same small model twice, and a function that fills in both copies' gradients."""
    g = torch.Generator().manual_seed(0)
    start = [
        torch.randn(4, 3, generator=g),
        torch.randn(5, generator=g),
        torch.randn((), generator=g),
    ]
    first, second = ([x.clone().requires_grad_() for x in start] for _ in range(2))

    def gradients():
        for a, b in zip(first, second):
            a.grad = torch.randn(a.shape, generator=g)
            b.grad = a.grad.clone()

    return first, second, gradients


@pytest.mark.parametrize("into_torch", [True, False])
def test_optimizer_state_moves_to_and_from_adamw(into_torch):
    first, second, gradients = pair()
    settings = {"lr": 3e-2, "betas": (0.8, 0.95), "weight_decay": 0.1}
    ours, theirs = ops.AdamWEMA(first, ema=0.9, **settings), torch.optim.AdamW(second, **settings)
    for _ in range(3):
        gradients()
        ours.step(), theirs.step()
    if into_torch:
        fresh = torch.optim.AdamW(second, lr=1.0)
        fresh.load_state_dict(copy.deepcopy(ours.state_dict()))
        others = ours, fresh
    else:
        fresh = ops.AdamWEMA(first, lr=1.0, ema=0.9)
        fresh.load_state_dict(copy.deepcopy(theirs.state_dict()))
        assert all(torch.equal(fresh.state[p]["ema"], p) for p in first)
        others = fresh, theirs
    assert fresh.param_groups[0]["lr"] == 3e-2
    for _ in range(3):
        gradients()
        for optimizer in others:
            optimizer.step()
    for a, b in zip(first, second):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_parameters_may_come_later_and_state_may_go():
    """As with torch.optim.AdamW: what a group adds, or a cleared state lacks, begins anew."""
    first, second, gradients = pair()
    ours = ops.AdamWEMA(first[:1], lr=0.1, weight_decay=0.1)
    theirs = torch.optim.AdamW(second[:1], lr=0.1, weight_decay=0.1)
    for optimizer, params in ((ours, first), (theirs, second)):
        optimizer.add_param_group({"params": params[1:], "lr": 0.01})
    assert torch.equal(ours.state[first[1]]["ema"], first[1])
    for _ in range(2):
        gradients()
        ours.step(), theirs.step()
        for a, b in zip(first, second):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
        ours.state.clear(), theirs.state.clear()


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copied_optimizer_goes_on_as_the_first(twin):
    first, _, gradients = pair()
    ours = ops.AdamWEMA(first, lr=0.1, copy=torch.bfloat16, impl="reference")
    gradients()
    ours.step()
    gradients()
    other = twin(ours)
    assert other.impl == "reference"
    second = other.param_groups[0]["params"]
    for p, q in zip(first, second):
        q.grad = p.grad.clone()
    ours.step(), other.step()
    for p, q in zip(first, second):
        assert p is not q
        assert all(torch.equal(other.state[q][name], own) for name, own in ours.state[p].items())


@pytest.mark.parametrize("saved_by", [torch.optim.AdamW, ops.AdamWEMA])
def test_loading_keeps_what_a_group_has_for_itself(saved_by):
    """The decay of its average, where a state has none; its copies, which a network holds."""
    first, second, gradients = pair()
    own = {"ema": 0.5, "copy": torch.bfloat16, "rate": 2}
    groups = [{"params": first[:1], **own}, {"params": first[1:], "ema": 0.6}]
    ours = ops.AdamWEMA(groups, lr=0.1, ema=0.9)
    theirs = saved_by([{"params": second[:1]}, {"params": second[1:]}], lr=0.2)
    held = ours.state[first[0]]["copy"]
    gradients()
    theirs.step()
    with torch.no_grad():
        first[0].mul_(2)
    ours.load_state_dict(theirs.state_dict())
    told = [0.5, 0.6] if saved_by is torch.optim.AdamW else [0.9999, 0.9999]
    assert [g["ema"] for g in ours.param_groups] == told
    assert [g["copy"] for g in ours.param_groups] == [torch.bfloat16, None]
    assert [g["lr"] for g in ours.param_groups] == [0.2, 0.2]
    assert ours.param_groups[0]["rate"] == 2
    assert ours.state[first[0]]["copy"] is held
    assert torch.equal(held, first[0].bfloat16())
    assert all("copy" not in ours.state[p] for p in first[1:])
    ours.step()
    assert torch.equal(held, first[0].bfloat16())


def test_a_learning_rate_may_be_a_tensor():
    """As torch's optimizers, and the states that they save, may have it."""
    p = torch.nn.Parameter(torch.ones(3))
    torchs = torch.optim.AdamW([p], lr=torch.tensor(0.1), foreach=False)
    p.grad = torch.ones(3)
    torchs.step()
    ours = ops.AdamWEMA([p], lr=torch.tensor(0.3))
    ours.load_state_dict(torchs.state_dict())
    before = p.detach().clone()
    ours.step()
    torch.testing.assert_close(before - p, torch.full((3,), 0.1) + 0.1 * 0.01 * before)


@pytest.mark.parametrize("impl", ["cpp", "triton", "reference"])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_optimizer_keeps_low_precision_copies(impl, kind):
    if impl == "cpp" and native.MISSING:
        pytest.skip(native.MISSING)
    if impl == "triton" and kind == torch.bfloat16:
        pytest.skip("Triton's interpreter truncates where bfloat16 should be rounded")
    first, _, gradients = pair()
    optimizer = ops.AdamWEMA(first, lr=0.1, copy=kind, impl=impl)
    for _ in range(2):
        gradients()
        optimizer.step()
        assert all(torch.equal(optimizer.state[p]["copy"], p.to(kind)) for p in first)


@pytest.mark.parametrize("impl", ["cpp", "triton", "reference"])
def test_adamw_ema_takes_gaps_and_low_precision_gradients(impl):
    if impl == "cpp" and native.MISSING:
        pytest.skip(native.MISSING)
    options = {"step": 2, "lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1,
               "ema_decay": 0.5, "grad_scale": torch.tensor(0.5)}  # fmt: skip
    g = torch.Generator().manual_seed(0)
    lists = [[torch.rand(6, 5, generator=g)] for _ in range(5)]
    lists[1] = [lists[1][0].half()]
    wide = [[torch.stack([t, t + 7], -1)[..., 0].T for t in one] for one in lists]
    assert not wide[0][0].is_contiguous()
    exact = [[t.double() for t in one] for one in lists]
    ops.adamw_ema(*exact, **options, impl="reference")
    ops.adamw_ema(*lists, **options, impl=impl)
    ops.adamw_ema(*wide, **options, impl=impl)
    for a, b, c in zip(lists, exact, wide):
        torch.testing.assert_close(a[0].double(), b[0], rtol=2e-6, atol=1e-7)
        assert torch.equal(c[0].T, a[0])


@pytest.mark.parametrize("impl", ["cpp", "triton", "reference"])
def test_adamw_ema_tells_autograd_what_it_wrote(impl):
    """A graph that still needs the weights of before refuses to go back through new ones."""
    if impl == "cpp" and native.MISSING:
        pytest.skip(native.MISSING)
    w = torch.full((3,), 2.0, requires_grad=True)
    rest = [[torch.ones(3)] for _ in range(4)]
    options = {"step": 1, "lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1,
               "ema_decay": 0.5, "grad_scale": torch.ones(())}  # fmt: skip
    with pytest.raises(
        ValueError, match=r"params.requires_grad must be False outside torch.no_grad\(\)"
    ):
        ops.adamw_ema([w], *rest, **options, impl=impl)
    y = (w * w * w).sum()
    versions = [t._version for t in (w, rest[1][0], rest[2][0], rest[3][0])]
    with torch.no_grad():
        ops.adamw_ema([w], *rest, **options, impl=impl)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    for t, version in zip((w, rest[1][0], rest[2][0], rest[3][0]), versions):
        assert t._version > version


@pytest.mark.parametrize("impl", ["cpp", "triton", "reference"])
@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
def test_adamw_ema_is_called_off_by_a_scale_that_is_not_finite(impl, scale):
    if impl == "cpp" and native.MISSING:
        pytest.skip(native.MISSING)
    options = {"step": 1, "lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1,
               "ema_decay": 0.5, "grad_scale": torch.tensor(scale)}  # fmt: skip
    lists = [[torch.rand(2100), torch.rand(5)] for _ in range(5)]
    copies = [torch.rand(2100).half(), torch.rand(5).half()]
    before = copy.deepcopy([*lists, copies])
    ops.adamw_ema(*lists, copies=copies, **options, impl=impl)
    for one, old in zip([*lists, copies], before):
        assert all(map(torch.equal, one, old))


def test_the_optimizer_steps_on_meta():
    with torch.device("meta"):
        layer = torch.nn.Linear(3, 2)
        layer(torch.zeros(4, 3)).sum().backward()
        optimizer = ops.AdamWEMA(layer.parameters(), lr=0.1)
        optimizer.step()
    assert all(own["step"] == 1 for own in optimizer.state.values())


def test_mlp_gelu_has_a_shape_on_meta():
    far = [t.to("meta") for t in (X, *MLP[:3], torch.zeros(MLP[2].shape[0]))]
    assert ops.mlp_gelu(*far).is_meta


def test_mlp_gelu_follows_every_autocast():
    """Also to float16, which the compiled middle does not take."""
    x = torch.randn(2, 3, 8)
    parts = torch.randn(4, 8), torch.randn(4), torch.randn(8, 4), torch.randn(8)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            out, wanted = (ops.mlp_gelu(x, *parts, impl=i) for i in ("auto", "reference"))
        assert out.dtype == wanted.dtype == dtype
        torch.testing.assert_close(out, wanted, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("impl", ["cpp", "triton", "reference"])
def test_loss_weights_keep_their_digits_beside_a_16_bit_basis(images, impl):
    if impl == "cpp" and native.MISSING:
        pytest.skip(native.MISSING)
    basis, pred, lam = torch.eye(P), torch.randn(5, 6, P), torch.ones(5)
    wanted = ops.denoise_loss(pred, images, basis, lam, view=VIEW, impl="reference")
    got = ops.denoise_loss(pred, images, basis.bfloat16(), lam, view=VIEW, impl=impl)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=0)


@pytest.mark.parametrize("impl", ["cpp", "triton", "reference"])
@pytest.mark.parametrize("full", [False, True, "even"])
def test_loss_and_gradient_in_one_pass(images, impl, full):
    if impl == "cpp" and native.MISSING:
        pytest.skip(native.MISSING)
    basis = orthonormal(P).float()
    weights = torch.rand(P) if full is True else (1.0, 0.1)
    basis = basis if full else basis[:D_LATENT]
    pred = torch.randn(5, 6, P, requires_grad=True)
    lam, upstream = torch.linspace(0.3, 1, 5), torch.randn(5)
    options = {"view": VIEW, "weights": weights, "impl": impl, "flip": torch.arange(5) % 2 == 0}
    loss = ops.denoise_loss(pred, images, basis, lam, **options)
    (wanted,) = torch.autograd.grad(loss, pred, upstream)
    got = ops.denoise_loss_and_gradient(pred, images, basis, lam, upstream, **options)
    assert not got[0].requires_grad
    assert not got[1].requires_grad
    torch.testing.assert_close(got[0], loss, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(got[1], wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.skipif(not triton_launch.INTERPRETED, reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize("along_first", [False, True])
def test_the_loss_is_the_same_however_triton_lays_threads_out(images, along_first, monkeypatch):
    """The kernel reads images in one of two ways, of which the installed triton takes one."""
    from ldae_fast.kernels.denoise_loss import triton_kernel

    monkeypatch.setattr(triton_kernel, "GATHERS_ALONG_FIRST", along_first)
    given = torch.randn(5, 6, P), images, orthonormal(P).float()[:D_LATENT], torch.rand(5)
    ours, truth = (
        ops.denoise_loss_and_gradient(*given, torch.ones(5), view=VIEW, impl=impl)
        for impl in ("triton", "reference")
    )
    for a, b in zip(ours, truth):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


# --- Modules --------------------------------------------------------------------------------------


def test_the_noise_module_runs_and_shows_the_implementation_it_was_told(images):
    basis, center, scale, *rest = noise_arguments()
    make = ops.PatchPCANoise(basis, center, scale, VIEW, 3, ("noise",), impl="reference")
    wanted = ops.patch_pca_noise(
        images, basis, center, scale, *rest, seed=3, step=1, view=VIEW, outputs=("noise",),
        impl="reference",
    )  # fmt: skip
    assert torch.equal(make(images, *rest, step=1)["noise"], wanted["noise"])
    shown = "basis=(10, 48)", "patch=4", "seed=3", "('noise',)", "torch.float32", "impl='reference'"
    assert all(part in repr(make) for part in shown)


def noise_module(basis=(10, P), center=(P,), scale=(10,), view=VIEW, **settings):
    return ops.PatchPCANoise(*map(torch.ones, (basis, center, scale)), view, **settings)


def loss_module(weights=(1.0, 0.1), basis=(10, P), view=VIEW, **settings):
    return ops.DenoiseLoss(torch.ones(basis), view, weights, **settings)


@pytest.mark.parametrize(
    ("setting", "make"),
    [
        *[
            ("impl", lambda make=make: make(impl="magic"))
            for make in (
                ops.LayerNormModulate,
                ops.GateResidualLayerNormModulate,
                noise_module,
                loss_module,
                lambda impl: ops.Attention(16, 2, impl=impl),
                lambda impl: ops.MLPGelu(16, impl=impl),
                lambda impl: ops.AdamWEMA([torch.nn.Parameter(torch.ones(2))], impl=impl),
            )
        ],
        ("eps", lambda: ops.LayerNormModulate("1e-6")),
        ("eps", lambda: ops.GateResidualLayerNormModulate(-1e-6)),
        ("eps", lambda: ops.GateResidualLayerNormModulate(True)),
        ("basis", lambda: noise_module((10, P - 1), (P - 1,))),
        ("basis.dtype", lambda: ops.PatchPCANoise(*torch.ones(3, 1, 1).long(), VIEW)),
        ("center", lambda: noise_module(center=(P - 1,))),
        ("scale", lambda: noise_module(scale=(P,))),
        ("view", lambda: noise_module(view=4)),
        ("seed", lambda: noise_module(seed=-1)),
        ("outputs", lambda: noise_module(outputs=("pixels",))),
        ("dtype", lambda: noise_module(dtype="float32")),
        ("dtype", lambda: noise_module(dtype=torch.float8_e5m2)),
        ("basis", lambda: ops.DenoiseLoss(None, VIEW)),
        ("basis", lambda: loss_module(basis=(P - 1, P - 1))),
        ("basis", lambda: loss_module(basis=(P + 1, P))),
        ("basis", lambda: loss_module(basis=(0, P))),
        ("view", lambda: loss_module(view=4)),
        ("weights", lambda: loss_module(0.1)),
        ("weights", lambda: loss_module((1.0, 0.1, 0.1))),
        ("weights", lambda: loss_module(torch.ones(10))),
        ("width", lambda: ops.Attention(16.0, 2)),
        ("heads", lambda: ops.Attention(16, 2.0)),
        ("heads", lambda: ops.Attention(16, 0)),
        ("width", lambda: ops.MLPGelu("8")),
        ("hidden", lambda: ops.MLPGelu(8, 32.0)),
        ("out", lambda: ops.MLPGelu(8, 32, True)),
    ],
)
def test_a_module_refuses_a_setting_that_cannot_be_when_it_is_made(setting, make):
    with pytest.raises(ValueError, match=rf"^[A-Za-z]+: {setting} must be .*; got "):
        make()


def test_attention_takes_bias_device_and_dtype_as_a_linear_does():
    module = ops.Attention(16, 2, bias=False, device="meta", dtype=torch.bfloat16)
    assert list(module.state_dict()) == ["qkv.weight", "proj.weight"]
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.bfloat16)}
    assert module(torch.zeros(2, 4, 16, device="meta", dtype=torch.bfloat16)).shape == (2, 4, 16)


def test_attention_shows_its_heads_and_implementation():
    shown = repr(ops.Attention(16, 2, impl="sdpa"))
    assert "heads=2" in shown
    assert "impl='sdpa'" in shown


def test_the_loss_module_keeps_its_weights_with_its_basis(images):
    pred, lam, weights = torch.randn(5, 6, P), torch.ones(5), torch.rand(P)
    loss = ops.DenoiseLoss(orthonormal(P), VIEW, weights)
    other = ops.DenoiseLoss(torch.zeros(P, P), VIEW, torch.zeros(P))
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other(pred, images, lam), loss(pred, images, lam))
    assert {b.dtype for b in loss.to(torch.float64).buffers()} == {torch.float64}
    assert loss.weights.dtype == torch.float64
    assert "weights=(48,)" in repr(loss)
    assert list(ops.DenoiseLoss(torch.eye(P), VIEW).state_dict()) == ["basis"]


# --- Refusals -------------------------------------------------------------------------------------


NAMES = ("images", "basis", "center", "scale", "gamma", "sigma", "sample_ids")
X, ROW = torch.zeros(2, 3, 8), torch.zeros(2, 8)
META = torch.zeros(2, 3, 8, device="meta")
STEP = {"step": 1, "lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0,
        "ema_decay": 0.5, "grad_scale": torch.ones(())}  # fmt: skip
QKV = torch.zeros(2, 4, 3, 2, 8)
MLP = (torch.zeros(4, 8), torch.zeros(4), torch.zeros(8, 4), torch.zeros(7))


def far_arguments() -> dict:
    """Good arguments of patch_pca_noise between images and ids, where the images are not."""
    return {name: t.to("meta") for name, t in zip(NAMES[1:6], noise_arguments())}


def step_with(number=0, odd=None, whole=torch.float32, **changes):
    """adamw_ema with good arguments but for the changes: a list's dtype, what it ends with."""
    lists = [[torch.ones(3), torch.ones(2)] for _ in range(5)]
    lists[number] = [t.to(whole) for t in lists[number]]
    lists[number][1] = lists[number][1] if odd is None else odd
    ops.adamw_ema(*lists, **STEP | changes)


def noise_with(images, **changes):
    """patch_pca_noise with good arguments but for the changes."""
    good = dict(zip(NAMES, (images, *noise_arguments())))
    return ops.patch_pca_noise(**{**good, "seed": 1, "step": 0, "view": VIEW, **changes})


def loss_with(images, **changes):
    """denoise_loss with good arguments but for the changes."""
    good = {"pred": torch.zeros(5, 6, P), "basis": torch.eye(P), "level_weight": torch.ones(5)}
    return ops.denoise_loss(images=images, **good, **{"view": VIEW} | changes)


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("basis", lambda i: noise_with(i, basis=torch.zeros(10, 47))),
        ("basis", lambda i: noise_with(i, basis=torch.zeros(0, 48))),
        ("center", lambda i: noise_with(i, center=torch.zeros(47))),
        ("scale", lambda i: noise_with(i, scale=torch.zeros(9))),
        ("sigma", lambda i: noise_with(i, sigma=torch.zeros(4))),
        ("sample_ids", lambda i: noise_with(i, sample_ids=torch.arange(4))),
        ("outputs", lambda i: noise_with(i, outputs=("pixels",))),
        ("outputs", lambda i: noise_with(i, outputs=())),
        ("outputs", lambda i: noise_with(i, outputs=None)),
        ("outputs", lambda i: noise_with(i, outputs=[["noise"]])),
        ("dtype", lambda i: noise_with(i, dtype="float32")),
        ("dtype", lambda i: noise_with(i, dtype=torch.float8_e4m3fn)),
        ("dtype", lambda i: ops.normal(0, 0, torch.arange(2), 4, dtype=torch.float8_e5m2)),
        ("dtype", lambda i: ops.patchify(i, VIEW, dtype=torch.float8_e5m2)),
        ("view", lambda i: noise_with(i, view=None)),
        ("patch", lambda i: ops.ImageView(4.0)),
        ("patch", lambda i: ops.ImageView(-4)),
        ("patch", lambda i: ops.ImageView(0)),
        ("patch", lambda i: ops.ImageView(True)),
        ("std", lambda i: ops.ImageView(4, std=(1.0, 0.0, 1.0))),
        ("mean", lambda i: ops.ImageView(4, mean=(1.0, math.nan, 1.0))),
        ("mean", lambda i: ops.ImageView(4, None, (1.0,))),
        ("mean", lambda i: ops.ImageView(4, iter((1.0,)), (1.0,))),
        ("std", lambda i: ops.ImageView(4, (1.0,), 1.0)),
        ("std", lambda i: ops.ImageView(4, (0.0,), (True,))),
        ("mean", lambda i: ops.ImageView(4, (False,), (1.0,))),
        ("weights", lambda i: loss_with(i, weights=None)),
        ("weights", lambda i: loss_with(i, weights=(1.0, math.inf))),
        ("weights", lambda i: loss_with(i, weights=(True, 0.1))),
        ("eps", lambda i: ops.layernorm_modulate(X, ROW, ROW, eps=-1.0)),
        ("eps", lambda i: ops.layernorm_modulate(X, ROW, ROW, eps=10**400)),
        ("eps", lambda i: ops.layernorm_modulate(X, ROW, ROW, eps=True)),
        ("eps", lambda i: ops.gate_residual_layernorm_modulate(X, X, ROW, ROW, ROW, eps=False)),
        ("eps", lambda i: ops.gate_residual_layernorm_modulate(X, X, ROW, ROW, ROW, eps="a")),
        ("y.dtype", lambda i: ops.gate_residual_layernorm_modulate(X.half(), X, ROW, ROW, ROW)),
        ("view.patch", lambda i: noise_with(i[:, :7])),
        ("images", lambda i: noise_with(i[0])),
        ("images.dtype", lambda i: noise_with(i.int())),
        ("flip", lambda i: noise_with(i, flip=torch.zeros(4, dtype=torch.bool))),
        ("size", lambda i: noise_with(i, crop=torch.zeros(5, 2, dtype=torch.int64), size=12)),
        ("impl", lambda i: noise_with(i, impl="magic")),
        ("pred", lambda i: ops.denoise_loss(X, i, torch.eye(P), torch.ones(5), view=VIEW)),
        ("sample_ids", lambda i: ops.normal(0, 0, torch.zeros(2, 2), 4)),
        ("shift", lambda i: ops.layernorm_modulate(X, torch.zeros(3, 8), ROW)),
        ("y", lambda i: ops.gate_residual_layernorm_modulate(X, X[:, :2], ROW, ROW, ROW)),
        ("v", lambda i: ops.attention(X[..., None], X[..., None], X[:, :2, :, None])),
        ("approximate", lambda i: ops.mlp_gelu(X, *MLP, approximate="erf")),
        ("bias2", lambda i: ops.mlp_gelu(X, *MLP)),
        ("weight2.dtype", lambda i: ops.mlp_gelu(X, *MLP[:2], MLP[2].half(), MLP[3])),
        ("bias1.dtype", lambda i: ops.mlp_gelu(X, MLP[0], MLP[1].half(), *MLP[2:])),
        ("x.dtype", lambda i: ops.layernorm_modulate(X.long(), ROW, ROW)),
        ("shift", lambda i: ops.layernorm_modulate(X, None, ROW)),
        ("gate", lambda i: ops.gate_residual_layernorm_modulate(X, X, 1.0, ROW, ROW)),
        ("y.device", lambda i: ops.gate_residual_layernorm_modulate(X, META, ROW, ROW, ROW)),
        ("weight1", lambda i: ops.mlp_gelu(X, None, *MLP[1:])),
        ("qkv", lambda i: ops.attention_packed(None)),
        ("qkv.dtype", lambda i: ops.attention_packed(QKV.to(torch.float8_e5m2))),
        ("k", lambda i: ops.attention(QKV[:, :, 0], QKV[:, :, 1].to_sparse(), QKV[:, :, 2])),
        ("x.dtype", lambda i: ops.layernorm_modulate(X.to(torch.float8_e5m2), ROW, ROW)),
        ("images.dtype", lambda i: ops.patchify(i.mT.to(torch.float8_e5m2), VIEW)),
        ("images", lambda i: ops.patchify(i.to_sparse(), VIEW)),
        ("images", lambda i: noise_with(i.numpy())),
        ("images", lambda i: ops.patchify(None, VIEW)),
        ("mean and std", lambda i: ops.ImageView(4, (0.5, 0.5))),
        ("mean and std", lambda i: ops.ImageView(4, (), ())),
        ("view.mean and view.std", lambda i: ops.patchify(i.permute(0, 3, 1, 2), VIEW)),
        ("crop", lambda i: noise_with(i, crop=torch.full((5, 2), 5), size=4)),
        ("crop", lambda i: ops.patchify(i, VIEW, crop=torch.full((5, 2), -1), size=4)),
        ("size", lambda i: noise_with(i, crop=torch.zeros(5, 2, dtype=torch.int64), size=4.0)),
        ("size", lambda i: ops.patchify(i, VIEW, crop=torch.full((5, 2), 0), size=True)),
        ("crop", lambda i: ops.patchify(i, VIEW, crop=torch.full((5, 2), False), size=4)),
        ("crop", lambda i: ops.patchify(i, VIEW, crop=torch.full((5, 2), 0j), size=4)),
        ("patches", lambda i: ops.unpatchify(torch.zeros(2, 6, 47), VIEW, 8, 12)),
        ("view.patch", lambda i: ops.unpatchify(torch.zeros(2, 6, 48), VIEW, 9, 12)),
        ("height", lambda i: ops.unpatchify(torch.zeros(2, 6, 48), VIEW, "8", 12)),
        ("height", lambda i: ops.unpatchify(torch.zeros(2, 6, 48), VIEW, 8.0, 12)),
        ("width", lambda i: ops.unpatchify(torch.zeros(2, 6, 48), VIEW, 8, -12)),
        ("width", lambda i: ops.unpatchify(torch.zeros(2, 6, 48), VIEW, 8, torch.tensor(12))),
        ("view", lambda i: ops.unpatchify(torch.zeros(2, 6, 48), None, 8, 12)),
        (
            "crop.device",
            lambda i: noise_with(
                i, crop=torch.zeros(5, 2, dtype=torch.int64, device="meta"), size=4
            ),
        ),
        ("basis.device", lambda i: noise_with(i, **far_arguments())),
        (
            "sample_ids.device",
            lambda i: noise_with(i, sample_ids=torch.zeros(5, dtype=torch.int64, device="meta")),
        ),
        (
            "images.device",
            lambda i: ops.denoise_loss(
                torch.zeros(5, 6, P), i.to("meta"), torch.eye(P), torch.ones(5), view=VIEW
            ),
        ),
        ("grad_scale", lambda i: step_with(grad_scale=1.0)),
        ("grad_scale.device", lambda i: step_with(grad_scale=torch.ones((), device="meta"))),
        ("lr", lambda i: step_with(lr=-1.0)),
        ("lr", lambda i: step_with(lr="a")),
        ("lr", lambda i: step_with(lr=math.inf)),
        ("lr", lambda i: step_with(lr=10**400)),
        ("lr", lambda i: step_with(lr=True)),
        ("ema_decay", lambda i: step_with(ema_decay=True)),
        ("betas", lambda i: step_with(betas=(False, 0.99))),
        ("betas", lambda i: step_with(betas=0.9)),
        ("step", lambda i: step_with(step=1.5)),
        ("step", lambda i: step_with(step=10**400)),
        ("copies", lambda i: step_with(copies=[torch.ones(3), torch.ones(2)])),
        ("grads", lambda i: step_with(1, torch.ones(2).double(), whole=torch.float64)),
        ("exp_avgs", lambda i: step_with(2, whole=torch.float16)),
        ("params", lambda i: step_with(0, whole=torch.float8_e5m2)),
        ("grads", lambda i: step_with(1, whole=torch.int64)),
        ("emas", lambda i: step_with(4, torch.ones(2).double())),
        ("grads", lambda i: step_with(1, torch.ones(2, dtype=torch.int32))),
        ("grads", lambda i: step_with(1, torch.ones(2, device="meta"))),
        ("exp_avg_sqs", lambda i: step_with(3, torch.ones(3))),
        ("grads", lambda i: step_with(1, np.ones(2, "f"))),
        ("grads", lambda i: step_with(1, torch.ones(2).to_sparse())),
        ("params", lambda i: ops.adamw_ema(iter([ROW]), *[[ROW]] * 4, **STEP)),
        ("params", lambda i: ops.adamw_ema(ROW, *[[*ROW]] * 4, **STEP)),
        ("grads", lambda i: ops.adamw_ema([ROW], [None], *[[ROW]] * 3, **STEP)),
        ("copies", lambda i: step_with(copies=None)),
        ("seed", lambda i: ops.normal(0.5, 0, torch.arange(2), 4)),
        ("sample_ids", lambda i: ops.normal(0, 0, [1, 2], 4)),
        ("elements", lambda i: ops.normal(0, 0, torch.arange(2), 4.0)),
        ("elements", lambda i: ops.normal(0, 0, torch.arange(2), 2**63)),
    ],
)
def test_every_bad_argument_is_named(images, argument, call):
    with pytest.raises(ValueError, match=rf": {argument}[a-z ]* must be "):
        call(images)


@pytest.mark.parametrize(
    ("came", "call"),
    [
        ("a tensor () of torch.int64", lambda: ops.normal(torch.tensor(3), 0, torch.arange(2), 4)),
        ("a tensor () of torch.float32", lambda: step_with(lr=torch.tensor(0.1))),
        ("a tensor (2,) of torch.int64",
         lambda: ops.patchify(torch.zeros(2, 3, 4, 4), VIEW, flip=torch.arange(2))),
        ("'8'", lambda: ops.unpatchify(X, VIEW, "8", 8)),
        ("'1e-6'", lambda: ops.layernorm_modulate(X, ROW, ROW, eps="1e-6")),
        ("'float32'", lambda: ops.normal(0, 0, torch.arange(2), 4, dtype="float32")),
        ("'noise'", lambda: ops.patchify(torch.zeros(2, 3, 4, 4), "noise")),
        ("'erf'", lambda: ops.mlp_gelu(X, *MLP, approximate="erf")),
        ("'erf'", lambda: ops.MLPGelu(8, approximate="erf")),
        ("list", lambda: ops.normal(0, 0, [1, 2], 4)),
        ("ndarray", lambda: ops.patchify(np.zeros((2, 4, 4, 3)), VIEW)),
        ("str", lambda: ops.layernorm_modulate(X, "row", ROW)),
        ("NoneType", lambda: ops.adamw_ema([ROW], [None], *[[ROW]] * 3, **STEP)),
        ("(3,)", lambda: step_with(3, torch.ones(3))),
        ("1", lambda: ops.adamw_ema([ROW, ROW], [ROW], *[[ROW, ROW]] * 3, **STEP)),
    ],
)  # fmt: skip
def test_a_refusal_tells_a_tensor_a_text_or_a_type_from_a_number(came, call):
    with pytest.raises(ValueError, match=r"must be .*; got ") as caught:
        call()
    assert str(caught.value).endswith(f"; got {came}")


def test_images_laid_out_as_another_type_are_told_how_theirs_lie(images):
    with pytest.raises(ValueError, match=r"a channel \(12, as uint8 images are \(B, H, W, C\)\)"):
        ops.patchify(images.permute(0, 3, 1, 2), VIEW)
    with pytest.raises(ValueError, match=r"a channel \(8, as float images are \(B, C, H, W\)\)"):
        ops.patchify(images.float(), VIEW)


def test_an_output_named_twice_is_made_once(images):
    (name, noise), *more = noise_with(images, outputs=iter(("noise", "noise"))).items()
    assert (name, more) == ("noise", [])
    assert torch.equal(noise, noise_with(images, outputs=("noise",))["noise"])


def test_numpys_integers_and_small_corners_are_taken(images):
    ids = torch.arange(3)
    high = 2**63 + 1
    assert torch.equal(ops.normal(np.uint64(high), 2, ids, 6), ops.normal(high, 2, ids, 6))
    assert torch.equal(
        ops.normal(np.int64(5), np.int32(2), ids, np.int64(6)), ops.normal(5, 2, ids, 6)
    )
    corners = torch.tensor([[0, 3]] * 5)
    wanted = ops.patchify(images, VIEW, crop=corners, size=8)
    assert torch.equal(
        ops.patchify(images, VIEW, crop=corners.to(torch.uint8), size=np.int64(8)), wanted
    )


def test_tensors_lie_where_the_arguments_do_not_on_a_default_device(images):
    corners, p = torch.tensor([[0, 3]] * 5), torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    with torch.device("meta"):
        patches = ops.patchify(images, VIEW, crop=corners, size=8)
        ops.AdamWEMA([p], lr=0.1, weight_decay=0.0).step()
    assert torch.equal(patches, ops.patchify(images, VIEW, crop=corners, size=8))
    torch.testing.assert_close(p.detach(), torch.full((2,), 0.9))


@pytest.mark.parametrize(
    "change",
    [{"lr": -1e-3}, {"betas": (0.9, 1.5)}, {"betas": (0.9,)}, {"eps": -1.0}, {"weight_decay": -0.1},
     {"ema": 2.0}, {"ema": 1.0}, {"ema": "a"}, {"ema": False}, {"copy": torch.float32}],
)  # fmt: skip
def test_the_optimizer_refuses_numbers_that_cannot_be(change):
    p = torch.nn.Parameter(torch.zeros(2))
    (name,) = change
    with pytest.raises(ValueError, match=rf"AdamWEMA: {name} must be "):
        ops.AdamWEMA([p], **change)
    with pytest.raises(ValueError, match=rf"AdamWEMA: {name} must be "):
        ops.AdamWEMA([{"params": [p], **change}])


def test_the_optimizer_begins_as_torchs_and_counts_no_step_that_it_refuses():
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    ours, theirs = ops.AdamWEMA([p]), torch.optim.AdamW([p])
    for name in ("lr", "betas", "eps", "weight_decay"):
        assert ours.defaults[name] == theirs.defaults[name]
    with pytest.raises(ValueError, match="grad_scale must be a tensor"):
        ours.step(grad_scale=0.5)
    assert ours.state[p]["step"] == 0
    ours.step()
    assert ours.state[p]["step"] == 1


@pytest.mark.parametrize("kind", [torch.complex64, torch.float8_e5m2])
def test_the_optimizer_refuses_parameters_that_it_could_not_step(kind):
    odd = torch.nn.Parameter(torch.zeros(2, dtype=kind))
    ours = ops.AdamWEMA([torch.nn.Parameter(torch.ones(2))])
    before = repr(ours)
    with pytest.raises(
        ValueError, match=f"AdamWEMA: params must be of a float type of .*; got {kind}"
    ):
        ours.add_param_group({"params": iter([torch.nn.Parameter(torch.ones(2)), odd])})
    assert (repr(ours), len(ours.state)) == (before, 1)


@pytest.mark.parametrize(
    ("name", "options"),
    [("amsgrad", {"amsgrad": True}), ("maximize", {"maximize": True}),
     ("decoupled_weight_decay", {"decoupled_weight_decay": False, "weight_decay": 0.1})],
)  # fmt: skip
def test_the_optimizer_refuses_options_that_it_would_ignore(name, options):
    p = torch.nn.Parameter(torch.zeros(2))
    state, ours = torch.optim.Adam([p], **options).state_dict(), ops.AdamWEMA([p])
    with pytest.raises(ValueError, match=rf"^AdamWEMA: {name} must be .*; got "):
        ours.load_state_dict(state)
    with pytest.raises(ValueError, match=rf"^AdamWEMA: {name} must be .*; got "):
        ops.AdamWEMA([{"params": [p], **options}])
    with pytest.raises(ValueError, match=rf"^AdamWEMA: {name} must be .*; got "):
        ours.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))], **options})
    ours.load_state_dict(torch.optim.Adam([p]).state_dict())  # without decay both are one


def test_reference_can_be_forced(monkeypatch):
    monkeypatch.setenv("LDAE_IMPL", "reference")
    q = torch.randn(1, 4, 2, 8).bfloat16()
    assert torch.equal(
        ops.attention(q, q, q, impl="sdpa"), ops.attention(q, q, q, impl="reference")
    )


def test_reference_can_be_forced_for_some_ops(monkeypatch):
    q = torch.randn(1, 4, 2, 8).bfloat16()
    reference = ops.attention(q, q, q, impl="reference")
    sdpa = ops.attention(q, q, q, impl="sdpa")
    assert not torch.equal(sdpa, reference)
    monkeypatch.setenv("LDAE_IMPL", "normal=reference,attention=reference")
    assert torch.equal(ops.attention(q, q, q, impl="sdpa"), reference)
    monkeypatch.setenv("LDAE_IMPL", "normal=reference")
    assert torch.equal(ops.attention(q, q, q, impl="sdpa"), sdpa)
    for setting, said in (
        ("atention=sdpa", "LDAE_IMPL: there is no op 'atention'"),
        ("attention=quick", "LDAE_IMPL: attention: impl must be one of auto"),
        ("attention=flash3", "LDAE_IMPL: attention: impl 'flash3' cannot run here"),
    ):
        monkeypatch.setenv("LDAE_IMPL", setting)
        with pytest.raises(ValueError, match=said):
            ops.attention(q, q, q)
    monkeypatch.setenv("LDAE_IMPL", "attention")
    with pytest.raises(ValueError, match="LDAE_IMPL must be reference, or op=impl by comma"):
        ops.attention(q, q, q)


@pytest.mark.skipif(bool(triton_launch.MISSING), reason=triton_launch.MISSING or "triton is there")
def test_triton_launches_where_the_tensors_are(monkeypatch):
    current, launched = [0], []

    @contextmanager
    def device(index):
        current.append(index)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1])
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(triton_launch, "JITFunction", str)
    grid = {(1,): lambda *args: launched.append(current[-1])}
    monkeypatch.setattr(torch.library, "wrap_triton", lambda kernel: grid)
    with FakeTensorMode():
        for index in (0, 1):
            triton_launch.launch("kernel", (1,), 7, torch.empty(1, device=f"cuda:{index}"))
    assert launched == [0, 1]
    assert current == [0]
