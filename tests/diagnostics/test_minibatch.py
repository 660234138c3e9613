"""Draws or pairs: the decomposition is unbiased over all samples of pairs and draws; the advice follows from it."""

import math
from itertools import product

import pytest
import torch

from tests.diagnostics.laws import with_gradients
from vrpo.diagnostics.advice import Measured, Range, advice, draws_for, measured_best, two_stage
from vrpo.diagnostics.minibatch import curves, minibatch, pooled
from vrpo.diagnostics.report import interval, root
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


def test_the_signal_is_that_of_the_population() -> None:
    """Mean over all samples of two pairs, each of two kinds, with three draws each: |mean of all gradients|^2, scores
    having no noise. Kills: a pair's own |true|^2 in the signal, which plenty of pairs have not; plug-in means.
    """
    one = [of(KINDS[kind][list(draws)]) for kind in (0, 1) for draws in product((0, 1), repeat=3)]
    found = [pooled(pairs).signal for pairs in product(one, repeat=2)]
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


def curve(*values: tuple[float, float, float]) -> dict[int, Interval]:
    return {n: Interval(*map(float, value)) for n, value in zip((1, 4), values, strict=True)}


NAN = float("nan")
FOUND = {
    "ratio": curve((1 / 4, 1 / 5, 1 / 3), (1 / 4, 1 / 5, 1 / 3)),
    "share": curve((0.8, 0.7, 1.1), (0.5, 0.3, 1.0)),
    "efficiency": curve((1, 1, 1), (1.5, 0.9, 2.1)),
    "rival": curve((0.7, 0.5, 1.1), (1, 1, 1)),
}


def test_signals_that_are_not_resolved_give_no_efficiency() -> None:
    """Pairs whose gradients have nothing in common. Kills: the square of a signal of unknown sign as efficiency."""
    axes = torch.eye(4, dtype=torch.float64)[:, None]
    step = 0.3 * torch.tensor([[1.0, -1, 1, 1], [-1, 1, -1, -1], [1, -1, -1, 1]], dtype=torch.float64)
    apart = [of(part) for part in axes + step]
    found = minibatch({1: apart, 2: apart}, 1.0)
    assert found["signal"][1].low <= 0
    assert all(math.isnan(value.value) for name in ("efficiency", "rival") for value in found[name].values())
    assert not math.isnan(found["share"][1].value)
    alike = minibatch({1: scaled(0.2, 4), 4: scaled(0.1, 4)}, 0.0)
    assert math.isnan(alike["efficiency"][4].value) == (min(alike["signal"][n].low for n in (1, 4)) <= 0)


def test_budgets_are_compared_with_the_best_one() -> None:
    """Kills: rivals by their own intervals instead of those of the ratio; the best one among its rivals."""
    near = [
        of(part)
        for part in torch.tensor([[[2.0, 0.1], [1.8, 0.0], [2.2, 0.2]]] * 4) * torch.arange(9, 13)[:, None, None]
    ]
    far = [
        of(part)
        for part in torch.tensor([[[2.0, 6.1], [1.8, -6], [2.2, 0.2]]] * 4) * torch.arange(9, 13)[:, None, None]
    ]
    found = minibatch({1: far, 2: near}, 0.0)
    assert found["rival"][2] == Interval(1.0, 1.0, 1.0)
    assert found["rival"][1].value == pytest.approx(1 / found["efficiency"][2].value)
    assert measured_best(found["rival"]) == Measured(2, ())
    assert measured_best(FOUND["rival"]) == Measured(4, (1,))
    assert measured_best(curve((NAN, NAN, NAN), (NAN, NAN, NAN))) == Measured(None, ())


def test_the_formula_has_an_interval() -> None:
    """Kills: the formula without its root, its cost, or its least value 1; ends in the wrong order; V_between below its
    noise taken for an n of 1."""
    found = two_stage(Interval(0.25, 0.04, 1.0), 4.0)
    assert (found.value, found.low, found.high) == pytest.approx((4, 2, 10))
    assert two_stage(Interval(8.0, 2.0, 16.0), 4.0) == Interval(1.0, 1.0, math.sqrt(2))
    assert two_stage(Interval(-0.1, -0.3, 0.04), 4.0) == Interval(math.inf, 10.0, math.inf)
    assert two_stage(Interval(-0.1, -0.3, 0.1), 0.0) == Interval(1.0, 1.0, 1.0)


def test_advice_where_pairs_cost() -> None:
    """Kills: the smallest budget advised because efficiencies are not resolved, whatever the formula says; a formula
    with an interval too wide to be of use."""
    said = advice(FOUND, 7, 100.0)
    assert said.plenty == 20
    assert said.measured == Measured(4, (1,))
    assert said.given == Range(8, 4, None)
    assert said.enough.value == 36
    text = said.sentences()
    start = "With plenty of pairs (making a pair costs 100 draws): "
    assert text[0] == f"{start}n = 20 (two-stage formula, 95 %: 17.3 to 22.4)."
    assert text[1] == "The most efficient n measured is 4 (not told apart from it: 1)."
    assert "With only these 7 pairs: n = 8 (95 %: 4 to any number)" in text[2]
    wide = advice({**FOUND, "ratio": curve((1 / 4, -1, 1), (1 / 4, -1, 1))}, 7, 100.0)
    assert wide.plenty is None
    assert wide.sentences()[0].startswith(
        f"{start}not resolved; the two-stage formula gives 20, but 95 % are 10 to any"
    )
    lost = advice({**FOUND, "ratio": curve((-1, -2, 0.25), (-1, -2, 0.25))}, 7, 100.0)
    assert lost.plenty is None
    assert "do not tell V_between from 0 (95 %: n is at least 20)" in lost.sentences()[0]


def test_advice_where_pairs_are_free() -> None:
    """Kills: a budget recommended whose gain is within its noise; efficiency not resolved called no gain."""
    said = advice(FOUND, 7, 0.0)
    assert (said.plenty, said.formula.value) == (1, 1)
    assert "n = 1 by the two-stage formula; no larger n is more efficient" in said.sentences()[0]
    better = advice({**FOUND, "efficiency": curve((1, 1, 1), (1.5, 1.1, 1.9))}, 7, 0.0)
    assert better.plenty == 4
    assert "n = 4; its efficiency is 1.5 times that of n = 1 (95 %: 1.1 to 1.9)." in better.sentences()[0]
    unknown = advice({**FOUND, "efficiency": curve((NAN, NAN, NAN), (NAN, NAN, NAN))}, 7, 0.0)
    assert unknown.plenty == 1
    assert "is not resolved" in unknown.sentences()[0]


def test_squares_below_their_noise_have_no_root() -> None:
    """Kills: negative squares cut off at 0, which shows a bias of 0 where nothing is known."""
    assert root(Interval(0.04, 0.01, 0.09)) == "0.2 (0.1 to 0.3)"
    assert root(Interval(-0.01, -0.06, 0.04)) == "below 0.2 (squared: -0.01 ± 0.05)"
    assert root(Interval(-0.03, -0.05, -0.01)) == "not resolved (squared: -0.03 ± 0.02)"
    assert root(Interval(NAN, NAN, NAN)) == "not resolved"
    assert interval(Interval(NAN, NAN, NAN)) == "not resolved"
