"""Draws or pairs: the decomposition is unbiased over all samples of pairs and draws; the advice follows from it."""

import math
from itertools import product

import pytest
import torch

from tests.diagnostics.laws import with_gradients
from vrpo.diagnostics.advice import Advice, Choice, Range, advice, draws_for, recommendation, two_stage
from vrpo.diagnostics.minibatch import Decomposition, Intervals, curves, minibatch, pooled
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
    assert found["price"] == pytest.approx({n: (n + 5) * (p.draws + p.pairs) for n, p in ((1, first), (4, second))})
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


def test_dependent_draws_come_in_whole_groups() -> None:
    """Beyond the largest budget only. Kills: half a group of draws that balance each other; a measured n rounded up."""
    assert draws_for({2: 0.9, 8: 0.5}, 0.1, group=4) == 72
    assert draws_for({2: 0.9, 8: 0.5}, 0.11, group=4) == 68  # 64.7 draws by the formula
    assert draws_for({2: 0.9, 6: 0.5}, 0.6, group=4) == 6


def curve(*values: tuple[float, float, float]) -> dict[int, Interval]:
    return {n: Interval(*map(float, value)) for n, value in zip((1, 4), values, strict=True)}


NAN = float("nan")
UNKNOWN = curve((NAN, NAN, NAN), (NAN, NAN, NAN))
FOUND = {
    "ratio": curve((1 / 4, 1 / 5, 1 / 3), (1 / 4, 1 / 5, 1 / 3)),
    "share": curve((0.8, 0.7, 1.1), (0.5, 0.3, 1.0)),
    "gain": curve((1, 1, 1), (1.5, 0.9, 2.1)),
    "price": curve((1, 1, 1), (1.2, 1.1, 1.3)),
}


def said(pair_cost: float = 0.0, plan: str = "balanced", group: int = 2, **changed: dict[int, Interval]) -> Advice:
    found: Intervals = {**FOUND, **changed}
    advised = advice(Decomposition(plan, group, 7, pair_cost, found, found))
    assert advised is not None
    return advised


def test_signals_that_are_not_resolved_give_no_efficiency() -> None:
    """Pairs whose gradients have nothing in common. Kills: the square of a signal of unknown sign as efficiency."""
    axes = torch.eye(4, dtype=torch.float64)[:, None]
    step = 0.3 * torch.tensor([[1.0, -1, 1, 1], [-1, 1, -1, -1], [1, -1, -1, 1]], dtype=torch.float64)
    apart = [of(part) for part in axes + step]
    found = minibatch({1: apart, 2: apart}, 1.0)
    assert found["signal"][1].low <= 0
    assert all(math.isnan(value.value) for name in ("efficiency", "gain") for value in found[name].values())
    assert not math.isnan(found["share"][1].value)
    alike = minibatch({1: scaled(0.2, 4), 4: scaled(0.1, 4)}, 0.0)
    assert math.isnan(alike["efficiency"][4].value) == (min(alike["signal"][n].low for n in (1, 4)) <= 0)


def test_budgets_are_compared_with_the_cheapest_one() -> None:
    """Kills: budgets compared by their own intervals instead of those of the ratio, or with the smallest budget; the
    dearest one taken for the cheapest."""
    near = [
        of(part)
        for part in torch.tensor([[[2.0, 0.1], [1.8, 0.0], [2.2, 0.2]]] * 4) * torch.arange(9, 13)[:, None, None]
    ]
    far = [
        of(part)
        for part in torch.tensor([[[2.0, 6.1], [1.8, -6], [2.2, 0.2]]] * 4) * torch.arange(9, 13)[:, None, None]
    ]
    found = minibatch({1: far, 2: near}, 0.0)
    assert found["price"][2] == found["gain"][2] == Interval(1.0, 1.0, 1.0)
    assert found["price"][1].value > found["price"][1].low > 1
    assert found["gain"][1].value == pytest.approx(1 / found["efficiency"][2].value)
    pools = {n: pooled(part) for n, part in ((1, far), (2, near))}
    ratio = (pools[1].draws + pools[1].pairs) / (2 * (pools[2].draws + pools[2].pairs))
    assert found["price"][1].value == pytest.approx(ratio)


def test_the_formula_has_an_interval() -> None:
    """Kills: the formula without its root, its cost, or its least value 1; ends in the wrong order; V_between below its
    noise taken for an n of 1."""
    found = two_stage(Interval(0.25, 0.04, 1.0), 4.0)
    assert (found.value, found.low, found.high) == pytest.approx((4, 2, 10))
    assert two_stage(Interval(8.0, 2.0, 16.0), 4.0) == Interval(1.0, 1.0, math.sqrt(2))
    assert two_stage(Interval(-0.1, -0.3, 0.04), 4.0) == Interval(math.inf, 10.0, math.inf)
    assert two_stage(Interval(-0.1, -0.3, 0.1), 0.0) == Interval(1.0, 1.0, 1.0)


def test_advice_where_pairs_cost() -> None:
    """Kills: the n of free pairs, whatever a pair costs; a formula beyond the budgets whose interval is too wide to be
    of use; one that is used where budgets were measured; an n beyond them that does not say so."""
    falling = curve((3, 2, 4), (1, 1, 1))
    far = said(100.0, price=falling)
    assert far.costly is not None
    assert far.costly.value == 20
    start = "Pairs cost 100 draws each, plan balanced: "
    assert far.answers()[1] == f"{start}n = 20 (95 %: 16 to 24, all extrapolated)."  # 17.3 to 22.4, in couples
    whole = said(100.0, price=falling, ratio=curve((1 / 3.61, 1 / 4, 1 / 3.5), (1 / 3.61, 1 / 4, 1 / 3.5)), group=4)
    assert whole.costly is not None
    assert whole.costly.beyond == Range(20, 16, 20)  # 19, between 18.7 and 20
    wide = said(100.0, price=falling, ratio=curve((1 / 4, -1, 1), (1 / 4, -1, 1)))
    assert wide.costly is not None
    assert wide.costly.value == 4
    assert wide.answers()[1].startswith(f"{start}n = 4 or more, not resolved: 20 (95 %: 10 to any number, all extra")
    lost = said(100.0, price=falling, ratio=curve((-1, -2, 0.25), (-1, -2, 0.25)))
    assert "n = 4 or more, not resolved: these pairs do not tell V_between from 0 (95 %: at" in lost.answers()[1]
    inside = said(3.0, price=curve((1.1, 0.9, 1.3), (1, 1, 1)))
    assert inside.costly == Choice(4, (1,))
    assert inside.answers()[1] == "Pairs cost 3 draws each, plan balanced: n = 4 (not told apart from it: 1)."
    assert said(100.0).costly == Choice(1)
    assert said().costly is None


def test_advice_where_pairs_are_free() -> None:
    """Kills: a budget recommended whose gain is within its noise; a fact about independent draws (a new pair is worth
    more than a new draw) told of draws that balance each other; efficiency not resolved passed over in silence."""
    start = "Pairs are free and plenty, plan balanced: "
    assert said().answers()[0] == f"{start}new pairs beat new draws, n = 1."
    apart = {"price": curve((1.1, 0.9, 1.3), (1, 1, 1))}
    assert said(**apart).answers()[0] == f"{start}n = 4 (not told apart from it: 1)."
    single = said(**apart, group=1, plan="fixed_count").answers()[0]
    assert single.endswith("plan fixed_count: new pairs beat new draws, n = 1 (not told apart from it: 4).")
    told = said(price=curve((1.3, 1.2, 1.4), (1, 1, 1)), group=1)
    assert told.answers()[0] == f"{start}n = 4 (every other n measured is told apart from it)."
    better = said(gain=curve((1, 1, 1), (1.5, 1.1, 1.9)))
    assert better.free.value == 4
    assert "n = 4, 1.5 times as efficient as the n of the least variance (95 %: 1.1 to 1.9)." in better.answers()[0]
    assert len(said().remarks()) == 1
    assert "Plan balanced: efficiencies are not resolved" in said(gain=UNKNOWN).remarks()[1]
    assert said(price=UNKNOWN, gain=UNKNOWN).free.value is None


def test_an_extrapolated_n_is_marked() -> None:
    """Each number beyond the largest budget, and no other. Kills: an n = 36 from budgets up to 4 that looks measured;
    marks on what was measured."""
    assert said().given == Range(8, 4, None)
    assert "plan balanced: n = 8 [extrapolated] (95 %: 4 to any number); there draws make half" in said().answers()[1]
    assert said().remarks()[0].startswith("Plan balanced: more than n = 36 (95 %: 16 to any number, all extrapolated)")
    near = said(share=curve((0.5, 0.4, 0.6), (0.3, 0.2, 0.4)))
    assert "n = 4 (95 %: 4 to 6 [extrapolated]);" in near.answers()[1]
    assert "extrapolated" not in said(share=curve((0.3, 0.2, 0.32), (0.1, 0.1, 0.1))).answers()[1]


def test_the_bottom_line() -> None:
    """Four lines at most, for the named plan, and the default's share. Kills: the paper's n recommended for another
    plan; the share of another plan or budget given as the default's; a plan of one budget advised on."""
    paper = Decomposition("fixed_count", 1, 7, 0.0, FOUND, FOUND)
    share = {"share": curve((0.4, 0.3, 0.5), (0.1, -0.05, 0.25))}
    named = Decomposition("balanced", 2, 7, 0.0, {**FOUND, **share}, {**FOUND, **share})
    advised = {part.plan: one for part in (paper, named) if (one := advice(part)) is not None}
    found = recommendation([paper, named], advised, ("balanced", 4))
    assert found.plan == "balanced"
    assert len(found.sentences) == 4
    assert all("plan balanced" in line for line in found.sentences if "--pair_cost" not in line)
    assert "n = 4 (95 %: 1 to 4);" in found.sentences[2]  # 8 by the paper's curve
    assert found.sentences[3].endswith(
        "num_times = 4: 10 % of the variance of a minibatch gradient is due to draws (95 %: 0 % to 25 %)."
    )
    alone = recommendation([paper], {"fixed_count": advised["fixed_count"]}, ("balanced", 8))
    assert alone.plan == "fixed_count"
    assert alone.sentences[3] == "The default, plan balanced with num_times = 8, was not measured."
    one = {name: {8: part[4]} for name, part in FOUND.items()}
    assert advice(Decomposition("nested", 2, 7, 0.0, one, one)) is None
    assert recommendation([], {}, ("balanced", 8)).sentences[0].startswith("No n to recommend")


def test_squares_below_their_noise_have_no_root() -> None:
    """Kills: negative squares cut off at 0, which shows a bias of 0 where nothing is known."""
    assert root(Interval(0.04, 0.01, 0.09)) == "0.2 (0.1 to 0.3)"
    assert root(Interval(-0.01, -0.06, 0.04)) == "below 0.2 (squared: -0.01 ± 0.05)"
    assert root(Interval(-0.03, -0.05, -0.01)) == "not resolved (squared: -0.03 ± 0.02)"
    assert root(Interval(NAN, NAN, NAN)) == "not resolved"
    assert interval(Interval(NAN, NAN, NAN)) == "not resolved"
