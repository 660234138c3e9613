"""Are two models different, judged on the same items? Intervals of one model, tests and intervals of two.

Nothing here assumes normality: Wilson's interval and McNemar's exact test for verdicts that are 0 or 1, the bootstrap
for other values (scipy.stats). An interval is a function of the values and a seed.
What deliberately does not live here: where values come from (own.py, harness.py), and tables of them (report.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest
from scipy.stats import bootstrap as resampled

RESAMPLES = 9999
Number = float | int  # verdicts may be bools
_AT_ONCE = 500  # resamples in memory


@dataclass(frozen=True)
class Interval:
    """A mean over n items and its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Comparison:
    """The second model minus the first, item by item.

    `only_first`, `only_second`: items that one of them has right and the other wrong; `p_value` of McNemar's exact test
    that both kinds are equally likely. All three are None for values that are no verdicts of 0 or 1.
    """

    difference: Interval
    only_first: int | None
    only_second: int | None
    p_value: float | None


def binary(values: Sequence[Number]) -> bool:
    """Whether all values are 0 or 1."""
    return all(value in (0, 1) for value in values)


def wilson(right: Sequence[Number]) -> Interval:
    """Share of right answers with its 95 % interval (Wilson 1927)."""
    found = binomtest(int(sum(right)), len(right)).proportion_ci(method="wilson")
    return Interval(sum(right) / len(right), float(found.low), float(found.high), len(right))


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's test in its exact form: of the n = b + c items on which two models disagree, b
    follows Binomial(n, 1/2) if they are equally good. Not to be confused with the chi-squared approximation."""
    disagreeing = only_first + only_second
    return float(binomtest(only_first, disagreeing).pvalue) if disagreeing else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for making several tests (Holm 1979): rejecting those below a keeps the chance of any false
    rejection below a, however the tests depend on each other."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def bootstrap(values: Sequence[Number], seed: int, resamples: int = RESAMPLES) -> Interval:
    """The mean and its 95 % percentile bootstrap interval (Efron 1979). Of differences of two models on the same items
    it is the paired bootstrap.

    The trap: it knows no values but these. Where all are equal it is a point, and with few or skewed values it is too
    narrow: at n = 50 it covers 93.9 % for differences of verdicts and 92.0 % for skewed values, exactly, by
    tests/evals/test_compare.py's enumeration of all data sets (there with 199 resamples, here with 1,999).

    Raises:
        ValueError: a value is not finite.
    """
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError("an interval needs finite values, at least one")
    mean = math.fsum(values) / len(values)
    if len(set(values)) == 1:
        return Interval(mean, mean, mean, len(values))
    given = (np.asarray(values, dtype=float),)
    found = resampled(given, np.mean, n_resamples=resamples, method="percentile", rng=seed, batch=_AT_ONCE)
    return Interval(mean, float(found.confidence_interval.low), float(found.confidence_interval.high), len(values))


def interval(values: Sequence[Number], seed: int, resamples: int = RESAMPLES) -> Interval:
    """Wilson's for verdicts of 0 or 1, the bootstrap's for other values."""
    return wilson(values) if binary(values) else bootstrap(values, seed, resamples)


def compare(first: Sequence[Number], second: Sequence[Number], seed: int, resamples: int = RESAMPLES) -> Comparison:
    """Two models' values on the same items, in the same order.

    Raises:
        ValueError: they are not equally many, or not finite.
    """
    if len(first) != len(second):
        raise ValueError(f"a paired comparison needs the same items: {len(first)} values and {len(second)}")
    difference = bootstrap([b - a for a, b in zip(first, second, strict=True)], seed, resamples)
    if not (binary(first) and binary(second)):
        return Comparison(difference, None, None, None)
    only_first = sum(a > b for a, b in zip(first, second, strict=True))
    only_second = sum(a < b for a, b in zip(first, second, strict=True))
    return Comparison(difference, only_first, only_second, mcnemar(only_first, only_second))
