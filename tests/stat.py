"""Assertions about random samples with a stated false-alarm rate and a stated power.

Every bound holds at every sample size (no central limit theorem): if the hypothesis is true, an assertion fails with
probability at most `alarm` (default 1e-6). `resolution` is the power: the caller says which deviation must be seen, and
the assertion refuses to run on a sample too small to see it with probability 1 - alarm.
"""

from math import log, sqrt

import torch
from torch import Tensor

ALARM = 1e-6


def kl_bernoulli(q: Tensor, p: Tensor) -> Tensor:
    """KL(Bernoulli(q) || Bernoulli(p)) in nats."""
    return torch.special.xlogy(q, q / p) + torch.special.xlogy(1 - q, (1 - q) / (1 - p))


def law_resolution(samples: int, cells: int, alarm: float = ALARM) -> float:
    """The deviation of one cell's probability that `assert_law` reports with probability at least 1 - alarm.

    The acceptance region lies within Hoeffding's width w of the hypothesis (Pinsker), and the observed frequency lies
    within w of the truth; so 2 w.
    """
    return 2 * sqrt(log(2 * cells / alarm) / (2 * samples))


def assert_law(counts: Tensor, probabilities: Tensor, *, resolution: float, alarm: float = ALARM) -> None:
    """Independent samples with these counts per cell come from this discrete law.

    Chernoff's bound P(KL(frequency || p) >= x) <= 2 exp(-n x) in each cell, and a union bound over cells. A cell of
    probability 0 must be empty, one of probability 1 must hold everything.
    """
    counts, p = counts.double().flatten(), probabilities.double().flatten()
    assert abs(float(p.sum()) - 1) < 1e-6, "the hypothesis is not a law"
    p = p / p.sum()
    n = int(counts.sum())
    smallest = law_resolution(n, len(p), alarm)
    assert smallest <= resolution, f"{n} samples resolve {smallest:.2e}, not {resolution:.2e}: the test is too weak"
    assert bool((counts[p == 0] == 0).all()), "an impossible outcome has occurred"
    inside = (p > 0) & (p < 1)
    evidence = n * kl_bernoulli(counts[inside] / n, p[inside])
    limit = log(2 * len(p) / alarm)
    assert bool((evidence <= limit).all()), f"frequencies {(counts / n).tolist()} against {p.tolist()}"


def mean_width(samples: Tensor, low: float, high: float, alarm: float = ALARM) -> float:
    """Half-width around the sample mean that holds the true mean with probability 1 - alarm, for values in [low, high].

    Empirical Bernstein (Maurer and Pontil 2009, Theorem 4), two-sided.
    """
    samples = samples.double()
    assert float(samples.min()) >= low, "a sample lies below its stated bound"
    assert float(samples.max()) <= high, "a sample lies above its stated bound"
    n, x = len(samples), log(4 / alarm)
    return sqrt(2 * float(samples.var()) * x / n) + 7 * (high - low) * x / (3 * (n - 1))


def assert_mean(
    samples: Tensor, mean: float, low: float, high: float, *, resolution: float, alarm: float = ALARM
) -> None:
    """Independent samples in [low, high] have this mean; one off by `resolution` fails with probability 1 - alarm."""
    width = mean_width(samples, low, high, alarm)
    assert 2 * width <= resolution, f"resolution {2 * width:.3e}, not {resolution:.3e}: the test is too weak"
    error = abs(float(samples.double().mean()) - mean)
    assert error <= width, f"the mean is off by {error:.3e}, more than {width:.3e}"
