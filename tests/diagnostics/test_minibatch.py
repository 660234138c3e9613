"""Draws or pairs: the decomposition is unbiased over all samples of pairs and draws; the advice follows from it."""

import math
from itertools import product

import pytest
import torch

from tests.diagnostics.laws import with_gradients
from vrpo.diagnostics.minibatch import Range, advice, curves, draws_for, minibatch, pooled
from vrpo.diagnostics.statistics import Interval, Noise, noise

KINDS = torch.tensor([[[1.0, 0.0], [3.0, 2.0]], [[-1.0, 1.0], [0.0, 5.0]]], dtype=torch.float64)  # [pair, draw, D]
BETA = 2.0  # so that the loss gradient is minus the given one


def of(gradient: torch.Tensor) -> Noise:
    return noise(with_gradients(gradient), BETA)


def test_the_decomposition_is_unbiased() -> None:
    """Over all samples of two pairs, each of two kinds, with two draws each of two gradients.

    Kills: V_between with the noise of the draws in it, or with the inner product of a pair with itself taken for that
    of different ones; V_mc divided by the draws.
    """
    one = [of(KINDS[kind][list(draws)]) for kind in (0, 1) for draws in product((0, 1), repeat=2)]
    found = [pooled(pairs) for pairs in product(one, repeat=2)]
    mean = KINDS.mean(1)
    assert sum(part.draws for part in found) / len(found) == pytest.approx(
        float((KINDS - mean[:, None]).square().sum(-1).mean())
    )
    assert sum(part.pairs for part in found) / len(found) == pytest.approx(
        float((mean - mean.mean(0)).square().sum(-1).mean())
    )


def test_the_signal_is_that_of_the_given_pairs() -> None:
    """Unbiased for |mean of the true gradients|^2 where scores have no noise. Kills: plug-in means, other weights."""
    draws = list(product((0, 1), repeat=2))
    by_kind = [[of(KINDS[kind][list(places)]) for places in draws] for kind in (0, 1)]
    found = [pooled(pairs).signal for pairs in product(*by_kind)]
    assert sum(found) / len(found) == pytest.approx(float(KINDS.mean((0, 1)).square().sum()))


def scaled(factor: float, count: int = 3) -> list[Noise]:
    """Pairs whose gradients have a noise of this size about means that no budget moves."""
    centre = torch.tensor([[1.0, 0.0], [2.0, 3.0], [0.0, -1.0], [1.0, 1.0]], dtype=torch.float64)[:count, None]
    step = factor * torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    return [of(part) for part in centre + step]


def test_shares_and_efficiency() -> None:
    """Kills: efficiency without the pair's cost, or per pair instead of per pass; a share of standard deviations."""
    by_budget = {1: scaled(2.0), 4: scaled(1.0)}
    found = curves(by_budget, 5.0)
    first, second = (pooled(by_budget[n]) for n in (1, 4))
    assert first.draws == pytest.approx(4 * second.draws)
    assert found["share"][4] == pytest.approx(second.draws / (second.draws + second.pairs))
    gain = (second.signal / first.signal) ** 2
    expected = gain * 6 * (first.draws + first.pairs) / (9 * (second.draws + second.pairs))
    assert found["efficiency"][4] == pytest.approx(expected)
    assert found["efficiency"][1] == 1
    assert found["bias_squared"][1] == pytest.approx(0, abs=1e-12)


def test_intervals_are_over_pairs() -> None:
    """Kills: budgets jackknifed apart; fewer pairs than a jackknife of different ones needs."""
    found = minibatch({1: scaled(2.0, 4), 2: scaled(1.0, 4)}, 0.0)
    assert found["draws"][1].low == pytest.approx(found["draws"][1].value)  # all pairs have the same noise
    assert found["share"][2].low < found["share"][2].value < found["share"][2].high
    with pytest.raises(ValueError, match="at least 3 pairs, not 2"):
        minibatch({1: scaled(1.0, 2)}, 0.0)


def test_where_draws_stop_paying() -> None:
    """Kills: interpolation where a budget was measured; 1/n from the smallest budget; a bound on V_mc without pairs."""
    share = {1: 0.9, 2: 0.5, 4: 0.3}
    assert draws_for(share, 0.5) == 2
    assert draws_for(share, 1 / 3) == 4
    assert draws_for(share, 0.1) == math.ceil(4 * 0.3 / 0.7 * 9)
    assert draws_for({1: 0.5, 2: 0.25}, 0.2) == math.ceil(2 / 3 * 4)
    assert draws_for({1: 1.01}, 0.1) is None


def test_advice() -> None:
    """Kills: a budget recommended whose gain is within its noise; the formula without its root or below 1."""

    def curve(*values: tuple[float, float, float]) -> dict[int, Interval]:
        return {n: Interval(*map(float, value)) for n, value in zip((1, 4), values, strict=True)}

    found = {
        "draws": curve((12, 10, 14), (3, 2, 4)),
        "pairs": curve((3, 2, 4), (3, 2, 4)),
        "share": curve((0.8, 0.7, 1.1), (0.5, 0.3, 1.0)),
        "efficiency": curve((1, 1, 1), (1.5, 0.9, 2.1)),
    }
    said = advice(found, 7, 4.0)
    assert said.plenty == 1
    assert said.formula == pytest.approx(4.0)
    assert said.given == Range(8, 4, None)
    assert said.enough.value == 36
    text = said.sentences()
    assert text[0] == "With plenty of pairs (making a pair costs 4 draws): n = 1 (two-stage formula: 4)."
    assert "With only these 7 pairs: n = 8 (95 %: 4 to any number)" in text[1]
    better = advice({**found, "efficiency": curve((1, 1, 1), (1.5, 1.1, 1.9))}, 7, 0.0)
    assert better.plenty == 4
    assert better.formula == 1
    assert "pairs cost nothing to make" in better.sentences()[0]
