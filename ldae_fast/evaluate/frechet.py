"""The Frechet distance between two sets of features, each taken for a Gaussian, in float64."""

import hashlib
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class FeatureNetwork(Protocol):
    """A module from images (B, H, W, 3) uint8 to features (B, F). name: what a distance of them is
    called."""

    name: str

    def __call__(self, images: Tensor) -> Tensor: ...

    def state_dict(self) -> dict[str, Tensor]: ...


def digest(network: FeatureNetwork) -> str:
    """Of the network's weights: distances of one name and digest can be compared, and no others."""
    weights = network.state_dict()
    content = hashlib.sha256()
    for name in sorted(weights):
        content.update(weights[name].cpu().contiguous().numpy())
    return content.hexdigest()[:12]


@dataclass(frozen=True)
class Gaussian:
    """mean (F,), covariance (F, F), float64; count: the samples that they were found from."""

    mean: Tensor
    covariance: Tensor
    count: int

    @property
    def caution(self) -> str:
        """What to keep in mind of so few samples, or nothing."""
        width = len(self.mean)
        if self.count > width:
            return ""
        return (
            f"{self.count} samples of {width} features: their covariance is singular, which makes "
            f"the distance too large; take more than {width}"
        )


class Moments:
    """Mean and covariance of features that come in batches, none of which is kept."""

    def __init__(self):
        self.count, self.mean, self.scatter = 0, 0.0, 0.0

    def add(self, features: Tensor) -> None:
        """features: (B, F). Two sets' moments make those of both (Chan et al., 1983)."""
        x = features.double()
        count, mean = len(x), x.mean(0)
        apart, total = mean - self.mean, self.count + count
        x = x - mean
        between = torch.outer(apart, apart) * (self.count * count / total)
        self.scatter = self.scatter + x.T @ x + between
        self.mean = self.mean + apart * (count / total)
        self.count = total

    def gaussian(self) -> Gaussian:
        """ValueError for fewer than 2 samples, or where a feature was not finite."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples; got {self.count}")
        if not self.scatter.isfinite().all():
            raise ValueError("a feature is not a finite number; look at the images")
        return Gaussian(self.mean, self.scatter / (self.count - 1), self.count)


def root(covariance: Tensor) -> Tensor:
    """The symmetric root of a symmetric matrix, whose eigenvalues below 0 are rounding."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|^2 + tr(A + B - 2 (A B)^1/2) (Dowson and Landau, 1982; FID: Heusel et al., 2017).

    tr (A B)^1/2 is the sum of the singular values of A^1/2 B^1/2, which lose nothing where the
    covariances are singular; a root of the product A B would.
    """
    shared = torch.linalg.svdvals(root(a.covariance) @ root(b.covariance)).sum()
    apart = (a.mean - b.mean).square().sum()
    return float(apart + a.covariance.trace() + b.covariance.trace() - 2 * shared)
