"""The probes against independent implementations and against features whose worth is known."""

import json
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import TINY
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch.utils._python_dispatch import TorchDispatchMode

from ldae_fast.config import EvaluateConfig, set_values
from ldae_fast.data import Batch, open_source
from ldae_fast.evaluate.features import (
    FeatureSet,
    baseline_encoders,
    colour_histogram,
    extract,
    raw_pixels,
)
from ldae_fast.evaluate.gallery import nearest_levels
from ldae_fast.evaluate.knn import knn_top1
from ldae_fast.evaluate.linear import fit_heads, gradient, linear_probe, logits
from ldae_fast.evaluate.probe_cache import cached_linear_probe, kept_at
from ldae_fast.evaluate.protocol import Subject, pca_beside
from ldae_fast.evaluate.spectrum import effective_rank, verdict
from ldae_fast.noise import make_schedule
from ldae_fast.objective import Objective
from ldae_fast.recipes import build_config
from ldae_fast.tokenizers import fit_tokenizer
from ldae_fast.train.tokenizer import find_tokenizer

FAST = EvaluateConfig(epochs=30)
CPU = torch.device("cpu")


def feature_set(values, labels) -> FeatureSet:
    return FeatureSet(values.float(), labels, torch.arange(len(labels)))


def blobs(
    count: int, seed: int, noise: float = 1.0, classes: int = 4, width: int = 12
) -> FeatureSet:
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=g)
    return feature_set(centres[labels] + noise * torch.randn(count, width, generator=g), labels)


def test_gradient_is_autograds():
    features = blobs(50, 0)
    heads = torch.randn(3, 4, 13, requires_grad=True)
    loss = sum(
        torch.nn.functional.cross_entropy(logits(heads, features.values)[i].T, features.labels)
        for i in range(3)
    )
    (wanted,) = torch.autograd.grad(loss, heads)
    got = gradient(heads.detach(), features.values, features.labels)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_heads_do_not_see_each_other():
    """Many learning rates in one pass give what each gives alone."""
    features, lrs = blobs(200, 0), torch.tensor([1e-3, 1e-2, 1e-1])
    together = fit_heads(features, torch.arange(200), 4, lrs, FAST, 0, lambda s: None)
    for i, lr in enumerate(lrs):
        alone = fit_heads(features, torch.arange(200), 4, lr[None], FAST, 0, lambda s: None)
        torch.testing.assert_close(together[i], alone[0], rtol=1e-3, atol=1e-4)


def test_linear_probe_reaches_logistic_regression():
    train, test = blobs(3000, 1, 2.5), blobs(2000, 2, 2.5)
    sklearn = LogisticRegression(C=1e4, max_iter=1000).fit(train.values, train.labels)
    theirs = sklearn.score(test.values, test.labels)
    assert 0.4 < theirs < 0.95
    assert linear_probe(train, test, 4, FAST).top1 == pytest.approx(theirs, abs=0.012)


def probed(train, test, config=FAST, seed=0):
    """The cached probe's result, and whether it had to be fitted."""
    ticks = []
    kept = cached_linear_probe(train, test, 4, config, seed, ticks.append, CPU)
    return kept, bool(ticks)


def test_the_same_features_are_probed_once(tmp_path, monkeypatch):
    monkeypatch.setenv("LDAE_CACHE", str(tmp_path))
    train, test = blobs(300, 1), blobs(100, 2)
    wanted = linear_probe(train, test, 4, FAST)
    assert probed(train, test) == (wanted, True)
    assert probed(train, test) == (wanted, False)
    changed = FeatureSet(train.values.clone(), train.labels, train.images)
    changed.values[7, 3] += 1e-6
    relabelled = FeatureSet(train.values, train.labels.clone(), train.images)
    relabelled.labels[0] = (relabelled.labels[0] + 1) % 4
    assert probed(changed, test)[1]
    assert probed(relabelled, test)[1]
    assert probed(train, changed)[1]
    assert probed(train, test, seed=1)[1]
    assert probed(train, test, EvaluateConfig(epochs=31))[1]
    assert probed(train, test) == (wanted, False)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"top1": 0.9}', b'{"held_out": 3}'])
def test_a_damaged_kept_probe_is_fitted_again(tmp_path, monkeypatch, content):
    monkeypatch.setenv("LDAE_CACHE", str(tmp_path))
    train, test = blobs(300, 1), blobs(100, 2)
    wanted, _ = probed(train, test)
    kept_at(train, test, 4, FAST, 0, CPU).write_bytes(content)
    assert probed(train, test) == (wanted, True)
    assert probed(train, test) == (wanted, False)


def test_a_probe_that_cannot_be_kept_is_no_failure(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LDAE_CACHE", str(tmp_path / "file"))
    train, test = blobs(300, 1), blobs(100, 2)
    assert probed(train, test) == probed(train, test) == (linear_probe(train, test, 4, FAST), True)


def test_scale_and_offset_of_features_do_not_matter():
    train, test = blobs(1000, 1), blobs(500, 2)
    moved = [FeatureSet(f.values * 1e3 + 50, f.labels, f.images) for f in (train, test)]
    plain = linear_probe(train, test, 4, FAST).top1
    assert linear_probe(*moved, 4, FAST).top1 == pytest.approx(plain, abs=0.005)


def test_noise_scores_chance():
    g = torch.Generator().manual_seed(0)
    sets = [
        feature_set(torch.randn(n, 12, generator=g), torch.randint(0, 4, (n,), generator=g))
        for n in (2000, 4000)
    ]
    assert linear_probe(*sets, 4, FAST).top1 == pytest.approx(0.25, abs=0.03)
    assert knn_top1(*sets, 4, 20, 0.07) == pytest.approx(0.25, abs=0.03)


def test_learning_rate_is_chosen_without_the_test_set():
    """Whatever the test labels are, choice and held-out scores stay the same."""
    train, test = blobs(1000, 1, 2.0), blobs(500, 2, 2.0)
    shuffled = FeatureSet(test.values, test.labels.roll(1), test.images)
    a, b = linear_probe(train, test, 4, FAST), linear_probe(train, shuffled, 4, FAST)
    assert (a.lr, a.held_out) == (b.lr, b.held_out)
    assert a.top1 != b.top1


def test_knn_is_scikit_learns():
    bank, asked = blobs(600, 1, 1.5), blobs(400, 2, 1.5)
    mean = bank.values.mean(0)
    a, b = (torch.nn.functional.normalize(f.values - mean, dim=1).double() for f in (bank, asked))

    def weights(distance):
        return np.exp((-(distance**2) / 2) / 0.07)  # cosine = 1 - distance^2 / 2 on the sphere

    theirs = KNeighborsClassifier(15, weights=weights).fit(a, bank.labels).score(b, asked.labels)
    assert knn_top1(bank, asked, 4, 15, 0.07) == pytest.approx(theirs, abs=1e-9)


def test_effective_rank_of_known_spectra():
    g = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(400, 10, generator=g).double())[0]
    q = torch.linalg.qr(q - q.mean(0))[0]
    assert effective_rank(q[:, :7]) == pytest.approx(7, rel=1e-4)
    assert effective_rank(q[:, :1].repeat(1, 9)) == pytest.approx(1, abs=1e-2)
    spectrum = torch.tensor([3.0, 1.0])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(q[:, :2] * spectrum) == pytest.approx(math.exp(entropy), rel=1e-4)


def test_verdicts():
    assert verdict(1.2, 192, 0.5, 0.2, 0.1, 1000).startswith("collapsed")
    lost = effective_rank(torch.tensor([[1.0, torch.nan], [0.0, 1.0]]))
    assert verdict(lost, 2, 0.5, 0.2, 0.1, 1000).startswith("diverged")
    assert verdict(60, 192, 0.5, 0.2, 0.1, 1000).startswith("learning: 30.0 points")
    for top1, untrained, what in (
        (0.2, 0.3, "the untrained encoder"), (0.12, 0.1, "chance"),
        (0.1, 0.1, "the untrained encoder or chance"),
    ):  # fmt: skip
        said = verdict(60, 192, top1, untrained, 0.1, 1000)
        assert said.startswith(f"not learning: no better than {what}, the features use")
    said = "one class: nothing to tell apart, the probe says nothing"
    assert {verdict(rank, 192, 1.0, 1.0, 1.0, 40) for rank in (1.2, 60)} == {said}


def test_few_images_have_no_rank_to_collapse():
    """Three have two directions at most, whatever the encoder."""
    assert verdict(1.2, 192, 0.5, 0.2, 0.1, 3).startswith("undecided")
    assert verdict(9.5, 1024, 0.5, 0.2, 0.1, 11).startswith("undecided")
    assert verdict(9.5, 1024, 0.5, 0.2, 0.1, 1000).startswith("collapsed")


def test_a_gain_that_luck_may_make_is_no_learning():
    """Two standard errors of the difference of two shares: 0.5 and 0.2 of n images are 0.3 apart,
    and 2 sqrt((0.25 + 0.16) / n) is that for n = 18.2."""
    assert verdict(60, 192, 0.5, 0.2, 0.1, 18) == (
        "undecided: 30.0 points above the untrained encoder, which luck may do on 18 test images, "
        "the features use 60 of 192 directions"
    )
    assert verdict(60, 192, 0.5, 0.2, 0.1, 19).startswith("learning: 30.0 points")


def test_colour_histogram_counts_colours():
    images = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    images[0, :2] = torch.tensor([255, 0, 40], dtype=torch.uint8)
    histogram = colour_histogram(images, None) ** 2
    assert histogram[0, 7 * 64 + 0 * 8 + 1] == pytest.approx(0.5)
    assert histogram[0, 0] == pytest.approx(0.5)
    assert histogram[1, 0] == pytest.approx(1)


def test_raw_pixels_shrink_large_images_only():
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    assert torch.equal(
        raw_pixels(images, None).view(2, 3, 32, 32)[1, 2, 3, 4], images[1, 3, 4, 2] / 255
    )
    large = images.repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(raw_pixels(large, None), raw_pixels(images, None))


class NoIntegerProducts(TorchDispatchMode):
    """CUDA multiplies no matrices of integers; a CPU does."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("mv", "mm", "bmm", "addmv", "addmm", "dot", "baddbmm"):
            assert args[0].is_floating_point(), f"{name} of integers"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["pca", "pixel", "patch-ae"])
def test_baselines_are_what_a_gpu_computes_too(kind):
    images = torch.randint(0, 256, (6, 32, 32, 3), dtype=torch.uint8)
    tokenizer, pca = (
        fit_tokenizer(k, images, patch=2, d=4, scale="whiten", count=500, seed=0)
        for k in (kind, "pca")
    )
    batch = Batch(images, torch.arange(6), torch.arange(6), torch.zeros(6, dtype=torch.bool))
    with NoIntegerProducts():
        made = extract(baseline_encoders(tokenizer, pca), [batch, batch], CPU)
    fitted = {"pca": pca} | ({"patch_ae": tokenizer} if kind == "patch-ae" else {})
    assert set(made) == {"raw_pixels", "colour_histogram"} | set(fitted)
    for name, its in fitted.items():  # 16 x 16 tokens, averaged by fours
        z = its.encode(its.patches(images))
        corner = z[0, [0, 1, 16, 17]].mean(0)
        assert made[name].values.shape == (12, 64 * 4)
        torch.testing.assert_close(made[name].values[0, :4], corner)


@pytest.mark.parametrize("kind", ["pca", "pixel", "patch-ae"])
def test_the_pca_beside_a_run_is_the_one_that_its_settings_fit(kind, image_folder):
    config = build_config("ldae", 32, "", TINY | {"tokenizer.kind": kind})
    source = open_source(f"folder:{image_folder}", "train", 32)
    plain = set_values(config, {"tokenizer.kind": "pca"})
    wanted = find_tokenizer(plain, source, "cpu", print)
    own = find_tokenizer(config, source, "cpu", print)
    objective = Objective(config.objective, config.noise, own, seed=0)
    got = pca_beside(Subject(config, objective, {}, nullcontext, CPU), source, lambda *_: None)
    assert (got.kind, got.d) == ("pca", wanted.d)
    for name in ("basis", "center", "scale", "variance"):
        assert torch.equal(getattr(got, name), getattr(wanted, name)), name


def test_held_out_scores_are_json():
    result = linear_probe(blobs(200, 1), blobs(100, 2), 4, FAST)
    assert json.loads(json.dumps(result.held_out))


def test_shown_levels_go_by_noise_to_signal():
    """Without input scaling these are sigmas; with it, half and half is a ratio of one."""
    assert nearest_levels(make_schedule("unscaled"), (0.35, 1.4)) == [247, 990]
    assert nearest_levels(make_schedule("linear"), (1.0, 3.0)) == [500, 900]
    assert nearest_levels(make_schedule("single"), (0.35, 1.4)) == [1]
