"""Draws or pairs: how the noise of a minibatch gradient splits, and what a budget is worth (in words: advice.py).

The gradient of a batch of P pairs drawn at random, n draws each, has variance (V_between + V_mc(n)) / P: V_mc is the
mean over pairs of the variance that draws make, V_between the variance over pairs of what is left with endless draws.
At a cost of n + c draws per pair, c for making it, the variance at a fixed budget is proportional to the price
(n + c) (V_between + V_mc(n)); with V_mc(n) = V_mc / n it is least at n = sqrt(c V_mc / V_between), at least 1
(two-stage sampling: Cochran 1977, ch. 10). V_mc(n) is that of one plan: where draws depend on each other
(balanced) it falls faster than 1/n, so that no n of one plan carries over to another.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from vrpo.diagnostics.statistics import Interval, Noise, inner_mean, jackknife, squared_mean

Curves = dict[str, dict[int, float]]
Intervals = Mapping[str, Mapping[int, Interval]]
UNRESOLVED = Interval(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Pooled:
    """The loss gradient at one budget, of a population that these pairs are a sample of.

    `draws`: V_mc(n), the mean variance within a pair. `pairs`: V_between = tr Cov over pairs of E g, unbiased: the mean
    of |E g_p|^2 minus the mean inner product of different pairs. `signal`: <E g, true gradient> of the population: the
    mean of <E g_p, true_q> over p != q. A pair with itself is left out of both, since there it has |g_p|^2 to add,
    which is no progress on any other pair: P of them hold 1/P of it, and plenty of pairs nothing. May be below 0 where
    pairs have little in common. `bias_squared`: mean over these pairs of |E g_p - true_p|^2, relative to that of
    |true_p|^2; unbiased above and below the line, so that a bias below its noise may come out negative.
    """

    draws: float
    pairs: float
    signal: float
    bias_squared: float

    @property
    def share(self) -> float:
        """The part of the variance that is due to draws."""
        return quotient(self.draws, self.draws + self.pairs)


def pooled(noises: Sequence[Noise]) -> Pooled:
    """What pairs say together. At least two."""
    found = torch.stack([noise.loss_gradient for noise in noises])
    true = torch.stack([noise.true_gradient for noise in noises])
    return Pooled(
        draws=_mean([noise.loss_gradient_variance for noise in noises]),
        pairs=_mean([noise.gradient_squared for noise in noises]) - squared_mean(found),
        signal=inner_mean(found, true),
        bias_squared=quotient(
            sum(noise.gradient_bias_squared for noise in noises), sum(noise.true_squared for noise in noises)
        ),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def quotient(above: float, below: float) -> float:
    """above / below; not a number where there is nothing to divide by."""
    return above / below if below != 0 else math.nan


def curves(by_budget: Mapping[int, Sequence[Noise]], pair_cost: float) -> Curves:
    """For each budget: both variances, their share and ratio, signal, relative squared bias, price and efficiency.

    `ratio`: V_between / (n V_mc(n)), what the two-stage formula needs of one draw; upside down, since V_between and not
    V_mc may be lost in noise. `price`: (n + c) (V_between + V_mc(n)), what a given noise costs. `efficiency`: squared
    signal over price, relative to the smallest budget.
    """
    pools = {n: pooled(noises) for n, noises in by_budget.items()}
    price = {n: (n + pair_cost) * (p.draws + p.pairs) for n, p in pools.items()}
    worth = {n: quotient(p.signal**2, price[n]) for n, p in pools.items()}
    first = worth[min(worth)]
    return {
        "draws": {n: p.draws for n, p in pools.items()},
        "pairs": {n: p.pairs for n, p in pools.items()},
        "share": {n: p.share for n, p in pools.items()},
        "ratio": {n: quotient(p.pairs, n * p.draws) for n, p in pools.items()},
        "signal": {n: p.signal for n, p in pools.items()},
        "bias_squared": {n: p.bias_squared for n, p in pools.items()},
        "price": price,
        "efficiency": {n: quotient(value, first) for n, value in worth.items()},
    }


def minibatch(by_budget: Mapping[int, Sequence[Noise]], pair_cost: float) -> dict[str, dict[int, Interval]]:
    """The curves with jackknife intervals over pairs, which are a sample here. The price is relative to that of the
    cheapest budget, and so is `gain`, an efficiency. Efficiencies are nan where the signal is not above 0 with its
    whole interval: a square would pass off noise of either sign as signal.

    Raises:
        ValueError: fewer than three pairs: without one of them two must remain.
    """
    count = len(next(iter(by_budget.values())))
    if count < 3:
        raise ValueError(f"the noise between pairs needs at least 3 pairs, not {count}")
    whole = curves(by_budget, pair_cost)
    left_out = [
        curves({n: [*noises[:p], *noises[p + 1 :]] for n, noises in by_budget.items()}, pair_cost) for p in range(count)
    ]
    found = {name: _intervals(values, [part[name] for part in left_out]) for name, values in whole.items()}
    return found | _compared(found["signal"], whole, left_out)


def _intervals(whole: Mapping[int, float], left_out: Sequence[Mapping[int, float]]) -> dict[int, Interval]:
    return {n: jackknife(value, [part[n] for part in left_out]) for n, value in whole.items()}


def _compared(
    signal: Mapping[int, Interval], whole: Curves, left_out: Sequence[Curves]
) -> dict[str, dict[int, Interval]]:
    """One budget against the other and not each by itself: errors of budgets of the same pairs have much in common."""
    resolved = [n for n, value in signal.items() if value.low > 0]
    priced = [n for n, value in whole["price"].items() if value > 0]
    cheapest = min(priced, key=lambda n: whole["price"][n], default=None)
    found = {name: dict.fromkeys(signal, UNRESOLVED) for name in ("price", "efficiency", "gain")}
    for name, base in (("efficiency", min(signal)), ("gain", cheapest)):
        if base in resolved:
            parts = [part["efficiency"] for part in (whole, *left_out)]
            relative = [{n: quotient(part[n], part[base]) for n in resolved} for part in parts]
            found[name].update(_intervals(relative[0], relative[1:]))
    if cheapest is not None:
        logs = [{n: _log(part["price"][n], part["price"][cheapest]) for n in priced} for part in (whole, *left_out)]
        found["price"].update({n: _exp(value) for n, value in _intervals(logs[0], logs[1:]).items()})
    return found


def _log(above: float, below: float) -> float:
    """Of a ratio of prices, so that which of two is above the line does not decide whether they are told apart."""
    return math.log(above / below) if above > 0 and below > 0 else math.nan


def _exp(found: Interval) -> Interval:
    return Interval(*(math.exp(min(end, 500.0)) for end in (found.value, found.low, found.high)))


@dataclass(frozen=True)
class Decomposition:
    """The curves of one plan by budget, for pairs that cost nothing to make (`free`) and at `pair_cost` (`costly`).

    `group`: the draws of a group at the largest budget. They depend on each other, so that a budget beyond it, of which
    1/n holds, is a whole number of such groups.
    """

    plan: str
    group: int
    pairs: int
    pair_cost: float
    free: Intervals
    costly: Intervals


def decomposition(plan: str, group: int, by_budget: Mapping[int, Sequence[Noise]], pair_cost: float) -> Decomposition:
    """Both sets of curves of a plan.

    Raises:
        ValueError: fewer than three pairs.
    """
    free = minibatch(by_budget, 0.0)
    costly = minibatch(by_budget, pair_cost) if pair_cost else free
    return Decomposition(plan, group, len(next(iter(by_budget.values()))), pair_cost, free, costly)
