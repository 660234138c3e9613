"""How many draws a pair deserves, in numbers with intervals and in words; no number where the pairs cannot tell."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vrpo.diagnostics.statistics import Interval

_WIDEST = 4.0  # high / low of a useful interval: n wrong by a factor of 2 costs at most 1/8 more variance


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


def two_stage(ratio: Interval, pair_cost: float) -> Interval:
    """n = sqrt(c V_mc / V_between), at least 1, with its interval, from `ratio` = V_between / V_mc of one draw; inf
    where V_between may as well be 0. The root is monotone, so the ends of the interval stay its ends."""
    return Interval(*(_optimum(end, pair_cost) for end in (ratio.value, ratio.high, ratio.low)))


def _optimum(ratio: float, pair_cost: float) -> float:
    if pair_cost == 0:
        return 1.0
    if math.isnan(ratio):
        return ratio
    return max(1.0, math.sqrt(pair_cost / ratio)) if ratio > 0 else math.inf


@dataclass(frozen=True)
class Measured:
    """The most efficient budget measured, and those not told apart from it: their efficiency relative to it reaches 1
    within its interval. None and empty where the signal is not resolved."""

    value: int | None
    rivals: tuple[int, ...]


def measured_best(rival: Mapping[int, Interval]) -> Measured:
    known = {n: value for n, value in rival.items() if not math.isnan(value.value)}
    if not known:
        return Measured(None, ())
    best = max(known, key=lambda n: known[n].value)
    return Measured(best, tuple(n for n, value in known.items() if n != best and not value.high < 1))


@dataclass(frozen=True)
class Advice:
    """How many draws per pair.

    `plenty`: with more pairs than can be paid for; None where that cannot be told. Where a pair has a cost, the
    two-stage `formula`, if its interval spans no more than a factor of 4. Where it has none the formula says 1, and a
    larger n is advised only if its `efficiency` is above the smallest budget's with its whole interval. `measured`: the
    most efficient budget. `given`: with these pairs only, where draws make no more than half of the variance that the
    pairs make. `enough`: where endless draws would take away less than 10 %.
    """

    plenty: int | None
    formula: Interval
    measured: Measured
    efficiency: Mapping[int, Interval]
    given: Range
    enough: Range
    pairs: int
    pair_cost: float

    def as_json(self) -> dict[str, Any]:
        kept = {name: value for name, value in asdict(self).items() if name != "efficiency"}
        return {**kept, "sentences": self.sentences()}

    def sentences(self) -> list[str]:
        return [
            _of_formula(self) if self.pair_cost else _of_free_pairs(self),
            _of_measured(self.measured),
            f"With only these {self.pairs} pairs: n = {_said(self.given)}; there draws make half of the variance that "
            "the choice of pairs makes, or less.",
            f"More than n = {_said(self.enough)} changes the noise by less than 10 %.",
        ]


def _of_formula(said: Advice) -> str:
    start, found = f"With plenty of pairs (making a pair costs {said.pair_cost:g} draws): ", said.formula
    if said.plenty is not None:
        return f"{start}n = {said.plenty} (two-stage formula, 95 %: {found.low:.3g} to {found.high:.3g})."
    if not math.isfinite(found.value):
        least = f" (95 %: n is at least {found.low:.3g})" if math.isfinite(found.low) else ""
        return f"{start}not resolved; these pairs do not tell V_between from 0{least}. Measure more pairs."
    high = f"{found.high:.3g}" if math.isfinite(found.high) else "any number"
    return (
        f"{start}not resolved; the two-stage formula gives {found.value:.3g}, but 95 % are {found.low:.3g} to {high}. "
        "Measure more pairs."
    )


def _of_free_pairs(said: Advice) -> str:
    start, first = "With plenty of pairs (pairs cost nothing to make): ", min(said.efficiency)
    if said.plenty is not None and said.plenty > 1:
        found = said.efficiency[said.plenty]
        bounds = f"(95 %: {found.low:.3g} to {found.high:.3g})"
        return f"{start}n = {said.plenty}; its efficiency is {found.value:.3g} times that of n = {first} {bounds}."
    if math.isnan(said.efficiency[first].value):
        return (
            f"{start}n = 1 by the two-stage formula; whether the bias of the slope asks for more is not resolved "
            "(the gradients of these pairs have too little in common)."
        )
    return f"{start}n = 1 by the two-stage formula; no larger n is more efficient beyond its noise."


def _of_measured(found: Measured) -> str:
    if found.value is None:
        return "The most efficient n measured is not resolved."
    apart = f" (not told apart from it: {', '.join(map(str, found.rivals))})" if found.rivals else ""
    return f"The most efficient n measured is {found.value}{apart}."


def _said(found: Range) -> str:
    if found.value is None:
        return "more than can be told (draws are all of the noise that these replicates see)"
    ends = ["any number" if end is None else str(end) for end in (found.low, found.high)]
    return f"{found.value} (95 %: {ends[0]} to {ends[1]})" if ends[0] != ends[1] else str(found.value)


def advice(found: Mapping[str, Mapping[int, Interval]], pairs: int, pair_cost: float) -> Advice:
    """The advice that these curves of `minibatch` give."""
    share, efficiency = found["share"], found["efficiency"]
    formula = two_stage(found["ratio"][min(share)], pair_cost)
    return Advice(
        plenty=_conclusive(formula) if pair_cost else _worth_more(efficiency),
        formula=formula,
        measured=measured_best(found["rival"]),
        efficiency=efficiency,
        given=draws_range(share, 1 / 3),
        enough=draws_range(share, 0.1),
        pairs=pairs,
        pair_cost=pair_cost,
    )


def _conclusive(formula: Interval) -> int | None:
    return round(formula.value) if formula.high <= _WIDEST * formula.low < math.inf else None


def _worth_more(efficiency: Mapping[int, Interval]) -> int:
    """The best of the budgets that are better than the smallest one with their whole interval, or else 1."""
    better = [n for n, value in efficiency.items() if n != min(efficiency) and value.low > 1]
    return max(better, key=lambda n: efficiency[n].value, default=1)
