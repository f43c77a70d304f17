"""Whether two arms differ by more than their seeds do: a paired t-test, exact.

Runs of one seed share the order of images, flips, noise levels, the test images, and those initial
weights that are drawn before any of another shape, so their scores are not independent: the
difference within each seed is tested (Student, 1908). That holds however alike the pairs are, which
Welch's test does not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

LEVEL = 0.05  # of each test on its own
SEEDS = 3  # from which on there is a verdict: two that are nearly alike pass the test by luck


@dataclass(frozen=True)
class Comparison:
    """a - b over the seeds that both have; p is one-sided, for a > b, None where not tested."""

    n: int
    difference: float | None
    std: float | None  # of the differences
    p: float | None


def student_tail(t: float, dof: int) -> float:
    """P(T >= t) of Student's t with dof = 1, 2, ... (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    theta = math.atan(t / math.sqrt(dof))
    cosine, sine = math.cos(theta), math.sin(theta)
    odd = dof % 2
    term = total = cosine if odd else 1.0
    for k in range(3 if odd else 2, dof - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    if dof == 1:
        total = 0.0
    inside = 2 / math.pi * (theta + sine * total) if odd else sine * total  # P(|T| < t), signed
    return (1 - inside) / 2


def compare(a: Mapping, b: Mapping) -> Comparison:
    """a, b: score by seed.

    Not tested with fewer than two pairs, or where they do not vary.
    """
    differences = [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]
    n = len(differences)
    if n < 2:
        return Comparison(n, differences[0] if n else None, None, None)
    difference, std = mean(differences), stdev(differences)
    if std <= 1e-12:  # equal to the last bit but for rounding: the test set is too small to tell
        return Comparison(n, difference, 0.0, None)
    return Comparison(n, difference, std, student_tail(difference / (std / math.sqrt(n)), n - 1))


def verdict(found: Comparison, learning: bool = True) -> str:
    """In words, on the claim that a > b; learning: whether all that is compared has learnt."""
    if found.n == 0:
        return "not tested: not run"
    if found.n == 1:
        return "not tested: one seed"
    if found.p is None:
        return "not tested: the same difference in every seed"
    if not learning:
        return "undecided: not learning yet"
    if found.n < SEEDS:
        return f"undecided: too few seeds ({found.n})"
    if found.p < LEVEL:
        return "confirmed"
    return "not confirmed: the other way round" if found.p > 1 - LEVEL else "undecided"


def spread(values: Sequence[float]) -> tuple[float | None, float | None]:
    """(mean, standard deviation with n - 1), None where there are too few."""
    return (mean(values) if values else None, stdev(values) if len(values) > 1 else None)
