"""The Frechet distance against closed forms and scipy; its moments against numpy's."""

import numpy as np
import pytest
import scipy.linalg
import torch

from ldae_fast.evaluate.frechet import Gaussian, Moments, frechet_distance


def gaussian(mean, covariance) -> Gaussian:
    return Gaussian(torch.as_tensor(mean).double(), torch.as_tensor(covariance).double(), 10**6)


def drawn(seed: int, width: int, rank: int) -> Gaussian:
    g = torch.Generator().manual_seed(seed)
    factor = torch.randn(width, rank, generator=g, dtype=torch.float64)
    return gaussian(torch.randn(width, generator=g), factor @ factor.T / rank)


def test_in_one_dimension():
    """(m_a - m_b)^2 + (s_a - s_b)^2."""
    got = frechet_distance(gaussian([1.0], [[9.0]]), gaussian([-1.0], [[0.25]]))
    assert got == pytest.approx(4 + 2.5**2, rel=1e-14)


def test_covariances_that_commute():
    """In their common eigenvectors, the one-dimensional distances add up."""
    q = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)).double()).Q
    a, b = torch.tensor([4.0, 1, 9, 0, 2, 0.5]), torch.tensor([1.0, 1, 0, 0, 5, 2])
    got = frechet_distance(
        *(gaussian(torch.zeros(6), q * spread.double() @ q.T) for spread in (a, b))
    )
    assert got == pytest.approx(float((a.sqrt() - b.sqrt()).square().sum()), rel=1e-6)


@pytest.mark.parametrize("width", [1, 5, 64])
def test_against_scipys_root(width):
    a, b = drawn(0, width, 2 * width), drawn(1, width, 2 * width)
    product = scipy.linalg.sqrtm((a.covariance @ b.covariance).numpy())
    wanted = (a.mean - b.mean).square().sum() + (a.covariance + b.covariance).trace()
    wanted = float(wanted) - 2 * np.trace(product).real
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("rank", [1, 20, 300])
def test_no_distance_to_itself_however_singular(rank):
    a = drawn(0, 200, rank)
    assert abs(frechet_distance(a, a)) < 1e-11 * float(a.covariance.trace())


def test_singular_covariances_lose_nothing():
    """Rank 1 each: the root's trace is |u . v|, the covariances' are |u|^2 and |v|^2."""
    g = torch.Generator().manual_seed(0)
    u, v = torch.randn(2, 50, generator=g, dtype=torch.float64)
    zero = torch.zeros(50)
    got = frechet_distance(gaussian(zero, torch.outer(u, u)), gaussian(zero, torch.outer(v, v)))
    assert got == pytest.approx(float(u @ u + v @ v - 2 * (u @ v).abs()), rel=1e-7)


@pytest.mark.parametrize("sizes", [[1000], [1, 2, 997], [400, 600]])
def test_moments_are_numpys_however_batched(sizes):
    """A mean of 1e4 beside a spread of 1, in float64: sums of squares would lose eight digits."""
    g = torch.Generator().manual_seed(0)
    x = 1e4 + torch.randn(1000, 7, generator=g, dtype=torch.float64)
    moments = Moments()
    for part in x.split(sizes):
        moments.add(part)
    found = moments.gaussian()
    np.testing.assert_allclose(found.mean, x.numpy().mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.covariance, np.cov(x.numpy(), rowvar=False), atol=1e-10)
    assert found.count == 1000


def test_too_few_samples_are_refused_or_marked():
    moments = Moments()
    with pytest.raises(ValueError, match="at least 2 samples; got 0"):
        moments.gaussian()
    moments.add(torch.randn(1, 3))
    with pytest.raises(ValueError, match="at least 2 samples; got 1"):
        moments.gaussian()
    moments.add(torch.randn(2, 3))
    assert "3 samples of 3 features" in moments.gaussian().caution
    moments.add(torch.randn(1, 3))
    assert moments.gaussian().caution == ""
    moments.add(torch.tensor([[1.0, torch.nan, 0]]))
    with pytest.raises(ValueError, match="not a finite number"):
        moments.gaussian()
