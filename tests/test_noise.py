"""Schedules against their closed forms, levels against their distribution."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from ldae_fast.noise import SCHEDULES, draw_levels, make_schedule, stream


def test_ddpm_is_the_running_product():
    schedule = make_schedule("ddpm")
    product = 1.0
    for t in range(1, 1001):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * (t - 1) / 999)
        assert math.isclose(schedule.gamma[t] ** 2, product, rel_tol=1e-12)
    assert math.isclose(schedule.gamma[1000] ** 2, 4.0358e-5, rel_tol=1e-4)  # DDPM, section 4


def test_linear_gamma_squared_falls_linearly_to_zero():
    schedule = make_schedule("linear")
    np.testing.assert_allclose(schedule.gamma**2, 1 - np.arange(1001) / 1000, atol=1e-15)


@pytest.mark.parametrize("name", ["ddpm", "linear"])
def test_variance_is_preserved(name):
    schedule = make_schedule(name)
    np.testing.assert_allclose(schedule.gamma**2 + schedule.sigma**2, 1, atol=1e-15)


def test_unscaled_keeps_the_signal_and_ends_at_root_two():
    schedule = make_schedule("unscaled")
    assert (schedule.gamma == 1).all()
    np.testing.assert_allclose(schedule.sigma, math.sqrt(2) * np.arange(1001) / 1000, atol=1e-15)


def test_single_level_is_root_a_third():
    schedule = make_schedule("single")
    assert schedule.levels == 1
    assert math.isclose(schedule.sigma[1] ** 2, 1 / 3)


@pytest.mark.parametrize("name", SCHEDULES)
def test_level_zero_is_clean_and_noise_only_rises(name):
    schedule = make_schedule(name)
    assert (schedule.gamma[0], schedule.sigma[0]) == (1, 0)
    assert (schedule.sigma.diff() > 0).all()
    assert (schedule.gamma.diff() <= 0).all()


def test_level_weights():
    schedule = make_schedule("unscaled")
    t = torch.tensor([0, 500, 1000])
    np.testing.assert_allclose(
        schedule.level_weight("inverse_variance", t), [1, 2 / 3, 1 / 3], rtol=1e-6
    )
    linear = make_schedule("linear")
    np.testing.assert_allclose(linear.level_weight("gamma_squared", t), [1, 0.5, 0], atol=1e-7)
    assert (linear.level_weight("one", t) == 1).all()


def test_levels_are_uniform_and_belong_to_the_sample():
    ids = torch.arange(20000)
    t = draw_levels(0, 3, ids, 1000)
    assert t.min() == 1
    assert t.max() == 1000
    assert stats.chisquare(torch.bincount(t, minlength=1001)[1:].numpy()).pvalue > 1e-3
    assert torch.equal(t[500:600], draw_levels(0, 3, ids[500:600], 1000))
    assert not torch.equal(t, draw_levels(0, 4, ids, 1000))
    assert (draw_levels(0, 3, ids, 1) == 1).all()


def test_purposes_have_seeds_of_their_own():
    assert len({stream(s, p) for s in range(50) for p in ("noise", "levels", "data")}) == 150


def test_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="schedule must be one of ddpm"):
        make_schedule("cosine")
