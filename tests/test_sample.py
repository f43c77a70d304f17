"""Samplers against Gaussians, whose best denoiser and whose whole way down are known exactly."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ldae_fast.config import SettingError
from ldae_fast.evaluate.sample import (
    Sampling,
    descend,
    guided,
    levels_down,
    sample,
    step_weights,
)
from ldae_fast.noise import make_schedule
from ldae_fast.ops import normal

SCHEDULES = ("ddpm", "linear", "unscaled")
TOKENS = 2
MEAN = torch.tensor([1.0, -0.5, 0.3, 0.0], dtype=torch.float64)
ROOT = torch.tensor(
    [[1.0, 0, 0, 0], [0.5, 0.8, 0, 0], [-0.3, 0.2, 0.6, 0], [0.1, 0.4, -0.5, 0.9]],
    dtype=torch.float64,
)
COVARIANCE = ROOT @ ROOT.T  # of 2 tokens of 2 values
EYE = torch.eye(4, dtype=torch.float64)

every = pytest.mark.parametrize(
    ("name", "predicts"), [(name, p) for name in SCHEDULES for p in ("noise", "clean")]
)


def marginal(schedule, level: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of z_t."""
    g, s = float(schedule.gamma[level]), float(schedule.sigma[level])
    return g * MEAN, g**2 * COVARIANCE + s**2 * EYE


def best_denoiser(predicts: str, schedule):
    """E[z_0 | z_t] = m + g C (g^2 C + s^2 I)^-1 (z_t - g m), or E[eps | z_t], of N(m, C)."""

    def predict(z_t, t, labels):
        mean, covariance = marginal(schedule, t[0])
        g, s = float(schedule.gamma[t[0]]), float(schedule.sigma[t[0]])
        solved = (z_t.flatten(1) - mean) @ torch.linalg.inv(covariance)
        found = s * solved if predicts == "noise" else MEAN + g * solved @ COVARIANCE
        return found.view_as(z_t)

    return predict


def root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.sqrt() @ vectors.T


def go_down(name, predicts, steps, eta, start, noise):
    """z_0 (N, 4) of the best denoiser from start (N, 4); noise: place on the way -> (N, 4)."""
    schedule = make_schedule(name)
    levels = levels_down(schedule, steps)
    z = descend(
        best_denoiser(predicts, schedule), predicts, schedule, start.view(-1, TOKENS, 2), levels,
        eta, lambda level: noise(levels.index(level)).view(-1, TOKENS, 2),
    )  # fmt: skip
    return z.flatten(1)


def exact_moments(name, predicts, steps, eta) -> tuple[Tensor, Tensor]:
    """Mean and covariance of all samples, without sampling: the way down is affine.

    Row 0 goes down from nothing, rows 1 to 4 from a unit vector each, and four rows a step get a
    unit of noise there and nowhere else.
    """
    schedule = make_schedule(name)
    mean, covariance = marginal(schedule, levels_down(schedule, steps)[0])
    rows = torch.zeros(5 + 4 * steps, 4, dtype=torch.float64)
    start, nothing = rows.clone(), torch.zeros_like(rows)
    start[1:5] = EYE

    def noise(place):
        made = nothing.clone()
        made[1 + 4 * place : 5 + 4 * place] = EYE
        return made

    z = go_down(name, predicts, steps, eta, start, noise)
    response = z[1:] - z[0]
    carried, added = response[:4], response[4:]
    return z[0] + mean @ carried, carried.T @ covariance @ carried + added.T @ added


@every
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_moments_go_to_the_datas_as_steps_go_on(name, predicts, eta):
    """The mean is right at any number of steps; the covariance's error falls as 1 / steps, so two
    numbers of steps tell where it goes: to the data's.
    """
    mean, coarse = exact_moments(name, predicts, 100, eta)
    torch.testing.assert_close(mean, MEAN, rtol=0, atol=1e-12)
    _, fine = exact_moments(name, predicts, 200, eta)
    assert (fine - COVARIANCE).abs().max() < 0.6 * (coarse - COVARIANCE).abs().max()
    torch.testing.assert_close(2 * fine - coarse, COVARIANCE, rtol=0, atol=8e-3)


@every
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_have_the_datas_moments(name, predicts, eta):
    """2,500 samples: mean and covariance within 4.5 standard errors of so many draws, and 0.04 for
    the 250 steps (exact_moments tells at most 0.037).
    """
    count, schedule = 2500, make_schedule(name)
    mean, covariance = marginal(schedule, levels_down(schedule, 250)[0])

    def noise(place):
        return normal(7, place, torch.arange(count), 4, dtype=torch.float64)

    start = mean + noise(0) @ root(covariance)
    z = go_down(name, predicts, 250, eta, start, noise)
    variance = COVARIANCE.diag()
    assert ((z.mean(0) - MEAN).abs() < 4.5 * (variance / count).sqrt()).all()
    spread = ((variance[:, None] * variance + COVARIANCE**2) / count).sqrt()
    assert ((z.T.cov() - COVARIANCE).abs() < 4.5 * spread + 0.04).all()


@every
def test_ddim_carries_each_start_where_the_exact_flow_does(name, predicts):
    """z_0 = m + C^1/2 (g^2 C + s^2 I)^-1/2 (z_T - g m), the solution of the flow's equation."""
    schedule = make_schedule(name)
    mean, covariance = marginal(schedule, levels_down(schedule, 500)[0])
    start = 2 * normal(0, 0, torch.arange(50), 4, dtype=torch.float64)
    exact = MEAN + (start - mean) @ torch.linalg.inv(root(covariance)) @ root(COVARIANCE)
    ends = [
        go_down(name, predicts, steps, 0.0, start, lambda place: torch.zeros(4))
        for steps in (250, 500)
    ]
    torch.testing.assert_close(2 * ends[1] - ends[0], exact, rtol=0, atol=4e-3)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("t", "s"), [(999, 998), (700, 300), (50, 1)])
def test_ancestral_step_is_bayes_rule(name, t, s):
    """p(z_s | z_t, z_0) from precisions: prior N(g_s z_0, s_s^2), likelihood N(a z_s, rest)."""
    schedule = make_schedule(name)
    (g_t, g_s), (s_t, s_s) = schedule.gamma[[t, s]].tolist(), schedule.sigma[[t, s]].tolist()
    a = g_t / g_s
    prior, likelihood = 1 / s_s**2, 1 / (s_t**2 - a**2 * s_s**2)
    variance = 1 / (prior + a**2 * likelihood)
    wanted = (variance * prior * g_s, variance * a * likelihood, variance**0.5)
    assert step_weights(schedule, t, s, 1.0) == pytest.approx(wanted, rel=1e-8)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("t", "s"), [(999, 998), (700, 300), (50, 1), (400, 0)])
def test_every_eta_keeps_the_levels_own_signal_and_noise(name, eta, t, s):
    """Given z_0, z_t has the mean gamma_t z_0 and the variance sigma_t^2; so has z_s with its."""
    schedule = make_schedule(name)
    of_clean, of_noisy, of_noise = step_weights(schedule, t, s, eta)
    signal = of_clean + of_noisy * schedule.gamma[t]
    variance = (of_noisy * schedule.sigma[t]) ** 2 + of_noise**2
    torch.testing.assert_close(signal, schedule.gamma[s])
    torch.testing.assert_close(variance, schedule.sigma[s] ** 2)


VARIANCE = torch.tensor([4.0, 0.25], dtype=torch.float64)


def draw(predict, ids, *, name="unscaled", predicts="clean", labels=None, **how):
    """`sample` of 2 tokens whose values have the data's variances VARIANCE."""
    return sample(
        predict, predicts, make_schedule(name), VARIANCE, ids, TOKENS, Sampling(**how), labels
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_from_its_own_start_with_fresh_noise_a_level(name):
    """Data of independent values: 2 x 3,000 draws have their variance within 5 standard errors, and
    2 % for 200 steps. The start is exact, so each schedule must get there.
    """
    schedule = make_schedule(name)

    def predict(z_t, t, labels):
        g, s = float(schedule.gamma[t[0]]), float(schedule.sigma[t[0]])
        return g * VARIANCE / (g**2 * VARIANCE + s**2) * z_t

    z = draw(predict, torch.arange(3000), name=name, steps=200).flatten(0, 1)
    torch.testing.assert_close(
        z.square().mean(0), VARIANCE, rtol=5 * (2 / 6000) ** 0.5 + 0.02, atol=0
    )
    assert (z.mean(0).abs() < 5 * (VARIANCE / 6000).sqrt()).all()
    assert abs(float(torch.corrcoef(z.T)[0, 1])) < 5 / 6000**0.5


def soft(z_t, t, labels):
    """A denoiser that is no straight line and whose rows do not see each other."""
    return torch.tanh(z_t) * (1 + t[:, None, None] / 1000)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_sample_does_not_depend_on_its_batch(eta):
    whole = draw(soft, torch.arange(10), steps=20, eta=eta)
    parts = [draw(soft, ids, steps=20, eta=eta) for ids in torch.arange(10).split([3, 1, 6])]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(whole[4:5], draw(soft, torch.tensor([4]), steps=20, eta=eta))
    assert len(whole.flatten(1).unique(dim=0)) == 10
    assert not torch.equal(whole, draw(soft, torch.arange(10), steps=20, eta=eta, seed=1))


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_start_has_the_spread_of_noisy_data(name):
    """gamma_T^2 variance + sigma_T^2 a component, within 5 standard errors of 2 x 4,000 draws."""
    first = {}

    def note(z_t, t, labels):
        return first.setdefault(int(t[0]), z_t)

    draw(note, torch.arange(4000), name=name, steps=2)
    schedule, top = make_schedule(name), max(first)
    assert top == (999 if name == "linear" else 1000)  # at 1000 linear's gamma is 0
    wanted = schedule.gamma[top] ** 2 * VARIANCE + schedule.sigma[top] ** 2
    found = first[top].flatten(0, 1).square().mean(0)
    torch.testing.assert_close(found, wanted, rtol=5 * (2 / 8000) ** 0.5, atol=0)


def test_guidance_goes_beyond_the_condition():
    """(1 + w) conditional - w unconditional; without weight the network runs once a step."""
    asked = []

    def predict(z_t, t, labels):
        asked.append(labels)
        offset = 0.5 if labels is None else 1 + labels[:, None, None]
        return 0 * z_t + offset

    labels = torch.tensor([0, 2])
    z, t = torch.zeros(2, TOKENS, 2), torch.zeros(2)
    got = guided(predict, 3.0)(z, t, labels)
    torch.testing.assert_close(got[:, 0, 0], 4 * torch.tensor([1.0, 3.0]) - 3 * 0.5)
    assert asked[0] is labels
    assert asked[1] is None
    asked.clear()
    z_0 = draw(predict, torch.arange(2), labels=labels, steps=5)
    assert len(asked) == 5
    torch.testing.assert_close(z_0[:, 0, 0], torch.tensor([1.0, 3.0]).double())
    z_0 = draw(predict, torch.arange(2), labels=labels, steps=5, guidance=1.0)
    torch.testing.assert_close(z_0[:, 0, 0], torch.tensor([1.5, 5.5]).double())


def test_guidance_means_the_same_under_both_predictions():
    """Noise and z_0 are one affine map apart, so the weights 1 + w and -w carry over."""
    schedule = make_schedule("ddpm")

    def clean(z_t, t, labels):
        return torch.tanh(z_t) + (0.0 if labels is None else 0.3)

    def noise(z_t, t, labels):
        gamma, sigma = schedule.gamma[t[0]], schedule.sigma[t[0]]
        return (z_t - gamma * clean(z_t, t, labels)) / sigma

    ids, labels = torch.arange(3), torch.zeros(3, dtype=torch.int64)
    wanted, got = (
        draw(f, ids, name="ddpm", predicts=p, labels=labels, steps=10, guidance=2.0)
        for f, p in ((clean, "clean"), (noise, "noise"))
    )
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "steps", "said"),
    [
        ("single", 10, "one noise level cannot be sampled from"),
        ("ddpm", 0, "--steps must be 1 to 1000, the run's noise levels; got 0"),
        ("linear", 1000, "--steps must be 1 to 999, the run's noise levels; got 1000"),
    ],
)
def test_what_cannot_be_sampled_is_refused(name, steps, said):
    with pytest.raises(SettingError, match=said):
        levels_down(make_schedule(name), steps)


def test_levels_are_evenly_spaced_down_to_the_clean_one():
    assert levels_down(make_schedule("ddpm"), 5) == [1000, 800, 600, 400, 200, 0]
    levels = levels_down(make_schedule("linear"), 7)
    assert levels[0] == 999
    assert levels[-1] == 0
    assert {a - b for a, b in pairwise(levels)} <= {142, 143}
    assert levels_down(make_schedule("unscaled"), 1000) == list(range(1000, -1, -1))
