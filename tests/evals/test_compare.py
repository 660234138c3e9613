"""Statistics of models: against enumeration, formulas solved the other way round, and exact coverage."""

import math
from itertools import combinations, product

import pytest

from tests.loops import each
from vrpo.evals.compare import binary, bootstrap, compare, holm, interval, mcnemar, wilson


@each(("right", "n"), [(0, 7), (3, 7), (7, 7), (1, 1319), (1000, 1319)])
def test_wilson_solves_its_equation(right: int, n: int) -> None:
    """Both ends p satisfy (share - p)^2 = z^2 p (1 - p) / n. Kills: Wald's interval, z of another level."""
    value = wilson([1] * right + [0] * (n - right))
    assert value.mean == right / n
    for end in (value.low, value.high):
        if end not in (0.0, 1.0):
            assert (value.mean - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / n, rel=1e-7)
    assert value.low <= value.mean <= value.high


@each("n", range(9))
def test_mcnemar_is_the_law_of_coin_flips(n: int) -> None:
    """Over all 2^n outcomes: the share that is at least as uneven. Kills: one-sided, mid-p, a tail without its end."""
    counts = [sum(flips) for flips in product((0, 1), repeat=n)]
    for b in range(n + 1):
        uneven = sum(abs(2 * x - n) >= abs(2 * b - n) for x in counts)
        assert mcnemar(b, n - b) == pytest.approx(uneven / 2**n, rel=1e-12)


@each("n", [5, 12, 40])
def test_mcnemar_keeps_its_level(n: int) -> None:
    """P(p <= a) <= a under the null, exactly. Kills: the chi-squared approximation."""
    law = [math.comb(n, b) / 2**n for b in range(n + 1)]
    for level in (0.001, 0.01, 0.05, 0.3):
        assert sum(law[b] for b in range(n + 1) if mcnemar(b, n - b) <= level) <= level


def test_mcnemar_of_many_items_is_a_number() -> None:
    """Where 2^n is no float. Near the normal tail with a continuity correction."""
    p = mcnemar(2000, 2150)
    assert p == pytest.approx(math.erfc(149 / math.sqrt(4150) / math.sqrt(2)), rel=0.01)
    assert mcnemar(0, 0) == 1.0


def test_holm_is_closed_testing_by_bonferroni() -> None:
    """Adjusted p of i = max over sets S that hold i of |S| min_S p. Kills: plain Bonferroni, Hochberg's step up, no
    running maximum, results in sorted order."""
    p = [0.04, 0.011, 0.3, 0.012, 0.9]
    sets = [chosen for size in range(1, 6) for chosen in combinations(range(5), size)]
    expected = [min(1, max(len(s) * min(p[j] for j in s) for s in sets if i in s)) for i in range(5)]
    assert holm(p) == pytest.approx(expected, abs=1e-15)
    assert holm([]) == []


def test_the_interval_is_that_of_the_enumerated_bootstrap() -> None:
    """Of 256 equally likely resamples of four items: the ends are its 2.5 % quantiles, up to 0.006 in probability (DKW
    at 200,000 resamples, false alarm 1e-6). Kills: another level, one end for both, quantiles off by an order statistic
    of many."""
    values = [0.3, -1.2, 2.0, 0.9]
    means = [sum(chosen) / 4 for chosen in product(values, repeat=4)]
    found = bootstrap(values, seed=1, resamples=199_999)
    for end, level in ((found.low, 0.025), (found.high, 0.975)):
        below = sum(mean < end - 1e-9 for mean in means) / 256
        up_to = sum(mean <= end + 1e-9 for mean in means) / 256
        assert below <= level + 0.006
        assert up_to >= level - 0.006
    assert found.mean == pytest.approx(0.5)


@each(
    ("values", "law", "least", "most"),
    [((-1.0, 0.0, 1.0), (0.1, 0.6, 0.3), 0.93, 0.96), ((0.0, 1.0, 6.0), (0.6, 0.3, 0.1), 0.89, 0.95)],
)
def test_coverage_at_fifty_items(values: tuple[float, ...], law: tuple[float, ...], least: float, most: float) -> None:
    """Exactly: over all 1,326 data sets of 50 items with three values, weighted by their probability; so there is no
    false alarm. The second law is skewed, and its interval too narrow: that is the bootstrap's, and what we say of it.
    Kills: 90 % intervals, standard errors of the resampled instead of the mean."""
    n, mean, covered = 50, sum(v * p for v, p in zip(values, law, strict=True)), 0.0
    for a in range(n + 1):
        for b in range(n + 1 - a):
            c = n - a - b
            weight = math.comb(n, a) * math.comb(n - a, b) * law[0] ** a * law[1] ** b * law[2] ** c
            if weight < 1e-7:
                continue
            found = bootstrap([values[0]] * a + [values[1]] * b + [values[2]] * c, seed=2, resamples=199)
            covered += weight * (found.low <= mean <= found.high)
    assert least <= covered <= most, covered


def test_a_comparison_is_paired() -> None:
    """Kills: an unpaired bootstrap (its interval here is wide), first minus second, ties counted."""
    first = [float(i) for i in range(40)]
    found = compare(first, [value + 1 for value in first], seed=0)
    assert (found.difference.mean, found.difference.low, found.difference.high) == (1.0, 1.0, 1.0)
    assert found.p_value is None
    verdicts = compare([1, 1, 0, 0, 0, 0], [1, 0, 1, 1, 1, 0], seed=0)
    assert (verdicts.only_first, verdicts.only_second) == (1, 3)
    assert verdicts.p_value == mcnemar(1, 3)
    assert verdicts.difference.mean == pytest.approx(2 / 6)


def test_verdicts_and_other_values_have_their_intervals() -> None:
    assert interval([1, 0, 1, True], seed=0) == wilson([1, 0, 1, 1])
    assert interval([1, 0.5, 0], seed=0) == bootstrap([1, 0.5, 0], seed=0)
    assert binary([0.0, 1, False])
    assert not binary([0.0, 0.99])


def test_what_cannot_be_compared_is_said() -> None:
    with pytest.raises(ValueError, match="same items: 2 values and 3"):
        compare([1, 0], [1, 0, 1], seed=0)
    with pytest.raises(ValueError, match="finite"):
        bootstrap([1.0, math.nan], seed=0)
