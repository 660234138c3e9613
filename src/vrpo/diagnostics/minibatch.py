"""Draws or pairs: how the noise of a minibatch gradient splits, and how many draws per pair a budget is best spent on.

The gradient of a batch of P pairs drawn at random, n draws each, has variance (V_between + V_mc(n)) / P: V_mc is the
mean over pairs of the variance that draws make, V_between the variance over pairs of what is left with endless draws.
At a cost of n + c draws per pair, c for making it, the variance at a fixed budget is proportional to
(n + c) (V_between + V_mc(n)); with V_mc(n) = V_mc / n it is least at n = sqrt(c V_mc / V_between), at least 1
(two-stage sampling: Cochran 1977, ch. 10).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vrpo.diagnostics.statistics import Interval, Noise, jackknife

Curves = dict[str, dict[int, float]]


@dataclass(frozen=True)
class Pooled:
    """The loss gradient of these pairs at one budget.

    `draws`: V_mc(n), the mean variance within a pair. `pairs`: V_between = tr Cov over pairs of E g, unbiased: the mean
    of |E g_p|^2 minus the mean inner product of different pairs. `signal`: inner product of the batch's expected
    gradient with the true one, that is the mean of the gradients at the mean scores. `bias_squared`: mean over pairs of
    |E g_p - true|^2, relative to the mean of |true|^2.
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
    count = len(noises)
    found = torch.stack([noise.loss_gradient for noise in noises])
    true = torch.stack([noise.true_gradient for noise in noises])
    common = _different(found, found) / (count - 1)
    signal = (_different(found, true) + _mean([noise.signal for noise in noises])) / count
    return Pooled(
        draws=_mean([noise.loss_gradient_variance for noise in noises]),
        pairs=_mean([noise.gradient_squared for noise in noises]) - common,
        signal=signal,
        bias_squared=quotient(
            sum(noise.gradient_bias_squared for noise in noises), sum(noise.true_squared for noise in noises)
        ),
    )


def _different(one: Float[Tensor, "P D"], other: Float[Tensor, "P D"]) -> float:
    """sum over p != q of <one_p, other_q>, divided by P."""
    return float(one.sum(0) @ other.sum(0) - (one * other).sum()) / len(one)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def quotient(above: float, below: float) -> float:
    """above / below; not a number where there is nothing to divide by."""
    return above / below if below != 0 else math.nan


def curves(by_budget: Mapping[int, Sequence[Noise]], pair_cost: float) -> Curves:
    """For each budget: both variances, the share of draws, relative squared bias, and the efficiency: squared signal
    over variance and cost, relative to the smallest budget."""
    pools = {n: pooled(noises) for n, noises in by_budget.items()}
    worth = {n: quotient(p.signal**2, (n + pair_cost) * (p.draws + p.pairs)) for n, p in pools.items()}
    first = worth[min(worth)]
    return {
        "draws": {n: p.draws for n, p in pools.items()},
        "pairs": {n: p.pairs for n, p in pools.items()},
        "share": {n: p.share for n, p in pools.items()},
        "bias_squared": {n: p.bias_squared for n, p in pools.items()},
        "efficiency": {n: quotient(value, first) for n, value in worth.items()},
    }


def minibatch(by_budget: Mapping[int, Sequence[Noise]], pair_cost: float) -> dict[str, dict[int, Interval]]:
    """The curves with jackknife intervals over pairs, which are a sample here.

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
    return {
        name: {n: jackknife(value, [part[name][n] for part in left_out]) for n, value in values.items()}
        for name, values in whole.items()
    }


def draws_for(share: Mapping[int, float], most: float) -> int | None:
    """The smallest number of draws at which they make at most `most` of the variance: the smallest budget measured, or
    beyond the largest one by V_mc / n; None where draws are all of the variance there."""
    for n in sorted(share):
        if share[n] <= most:
            return n
    largest = max(share)
    if math.isnan(share[largest]) or share[largest] >= 1:
        return None
    ratio = largest * share[largest] / (1 - share[largest])
    return math.ceil(ratio * (1 - most) / most - 1e-9)


@dataclass(frozen=True)
class Range:
    """A number of draws with the interval that goes with that of the share; None: without limit, or not to be told."""

    value: int | None
    low: int | None
    high: int | None


def draws_range(share: Mapping[int, Interval], most: float) -> Range:
    ends = [{n: getattr(value, end) for n, value in share.items()} for end in ("value", "low", "high")]
    return Range(*(draws_for(end, most) for end in ends))


@dataclass(frozen=True)
class Advice:
    """How many draws per pair.

    `plenty`: with more pairs than can be paid for, the most efficient budget measured, if its efficiency is above the
    smallest one's with its whole interval, and else the smallest. `formula`: sqrt(c V_mc(1) / V_between), at least 1.
    `given`: with these pairs only, where draws make no more than half of the variance that the pairs make. `enough`:
    where endless draws would take away less than 10 %.
    """

    plenty: int
    formula: float
    given: Range
    enough: Range
    pairs: int
    pair_cost: float

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "sentences": self.sentences()}

    def sentences(self) -> list[str]:
        making = f"making a pair costs {self.pair_cost:g} draws" if self.pair_cost else "pairs cost nothing to make"
        formula = f" (two-stage formula: {self.formula:.3g})" if self.pair_cost else ""
        return [
            f"With plenty of pairs ({making}): n = {self.plenty}{formula}.",
            f"With only these {self.pairs} pairs: n = {_said(self.given)}; there draws make half of the variance that "
            "the choice of pairs makes, or less.",
            f"More than n = {_said(self.enough)} changes the noise by less than 10 %.",
        ]


def _said(found: Range) -> str:
    if found.value is None:
        return "more than can be told (draws are all of the noise that these replicates see)"
    ends = ["any number" if end is None else str(end) for end in (found.low, found.high)]
    return f"{found.value} (95 %: {ends[0]} to {ends[1]})" if ends[0] != ends[1] else str(found.value)


def advice(found: Mapping[str, Mapping[int, Interval]], pairs: int, pair_cost: float) -> Advice:
    """The advice that these curves give."""
    efficiency, first = found["efficiency"], min(found["share"])
    better = [n for n, value in efficiency.items() if n != first and value.low > 1]
    plenty = max(better, key=lambda n: efficiency[n].value) if better else first
    ratio = quotient(found["draws"][first].value * first, found["pairs"][first].value)
    formula = max(1.0, math.sqrt(pair_cost * ratio)) if ratio >= 0 else math.nan
    share = found["share"]
    return Advice(plenty, formula, draws_range(share, 1 / 3), draws_range(share, 0.1), pairs, pair_cost)
