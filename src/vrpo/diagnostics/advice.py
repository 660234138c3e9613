"""How many draws a pair deserves under a plan, in numbers with intervals and in words; no number where the pairs cannot
tell. Every sentence says which plan it is about: V_mc(n) of another plan is another curve."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vrpo.diagnostics.designs import PAPER
from vrpo.diagnostics.minibatch import Decomposition, Intervals
from vrpo.diagnostics.statistics import Interval

_WIDEST = 4.0  # high / low of a useful interval: n wrong by a factor of 2 costs at most 1/8 more variance


def draws_for(share: Mapping[int, float], most: float, group: int = 1) -> int | None:
    """The smallest number of draws at which they make at most `most` of the variance: the smallest budget measured, or
    beyond the largest one by V_mc / n, in whole groups; None where draws are all of the variance there."""
    for n in sorted(share):
        if share[n] <= most:
            return n
    largest = max(share)
    if math.isnan(share[largest]) or share[largest] >= 1:
        return None
    ratio = largest * share[largest] / (1 - share[largest])
    return _whole(ratio * (1 - most) / most, group)


def _whole(draws: float, group: int) -> int:
    """The least whole number of groups with so many draws."""
    return group * math.ceil(draws / group - 1e-9)


@dataclass(frozen=True)
class Range:
    """A number of draws with the interval that goes with that of the share; None: without limit, or not to be told."""

    value: int | None
    low: int | None
    high: int | None


def draws_range(share: Mapping[int, Interval], most: float, group: int) -> Range:
    ends = [{n: getattr(value, end) for n, value in share.items()} for end in ("value", "low", "high")]
    return Range(*(draws_for(end, most, group) for end in ends))


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
class Choice:
    """One n for plenty of pairs; None where no budget has a price (nothing varies).

    `rivals`: other measured budgets whose price is not told apart from the cheapest one's. `gain`: where n is not the
    cheapest, its efficiency relative to that, above 1 with its whole interval. `formula`: where the optimum lies beyond
    the largest budget measured, the two-stage formula there, and `beyond` the same in whole groups; n is its value if
    the interval spans no more than a factor of 4, and else the largest budget. `fact`: new pairs beat new draws, by law
    or because nothing else comes near.
    """

    value: int | None
    rivals: tuple[int, ...] = ()
    gain: Interval | None = None
    formula: Interval | None = None
    beyond: Range | None = None
    fact: bool = False


def free_choice(curves: Intervals, group: int) -> Choice:
    """Where pairs cost nothing: the cheapest budget measured. Of independent draws the smallest one that is not told
    apart from it: a draw of a new pair lowers both kinds of noise, one of the same pair only V_mc, and by 1/n. A draw
    that balances another one of its group may be worth more than that."""
    cheapest, near = _cheapest(curves["price"])
    better = _worth_more(curves["gain"])
    if better is not None or cheapest is None:
        return Choice(better, gain=None if better is None else curves["gain"][better])
    value = near[0] if group == 1 else cheapest
    rivals = tuple(n for n in near if n != value)
    return Choice(value, rivals, fact=value == min(curves["price"]) and (group == 1 or not rivals))


def costly_choice(curves: Intervals, pair_cost: float, group: int) -> Choice:
    """Where a pair costs something: the cheapest budget measured, or the formula's n if that lies beyond all of them,
    where V_mc(n) falls like 1/n at least: copies of the largest budget are independent."""
    cheapest, near = _cheapest(curves["price"])
    better = _worth_more(curves["gain"])
    if better is not None or cheapest is None:
        return Choice(better, gain=None if better is None else curves["gain"][better])
    formula = two_stage(curves["ratio"][cheapest], pair_cost)
    if cheapest == max(curves["price"]) and formula.value > cheapest:
        beyond = _in_groups(formula, group)
        return Choice(beyond.value if _conclusive(formula) else cheapest, formula=formula, beyond=beyond)
    return Choice(cheapest, tuple(n for n in near if n != cheapest))


def _in_groups(formula: Interval, group: int) -> Range:
    """The value to the next whole number of groups, its interval outwards; None: without limit."""
    groups = [end / group for end in (formula.value, formula.low, formula.high)]
    value, low, high = (
        group * max(1, to_whole(end)) if math.isfinite(end) else None
        for end, to_whole in ((groups[0], _nearest), (groups[1], math.floor), (groups[2], math.ceil))
    )
    return Range(value, low, high)


def _nearest(value: float) -> int:
    return round(value)


def _cheapest(price: Mapping[int, Interval]) -> tuple[int | None, tuple[int, ...]]:
    """The budget of the least price, and all of those not told apart from it, itself included, in order."""
    known = {n: value for n, value in sorted(price.items()) if not math.isnan(value.value)}
    if not known:
        return None, ()
    return min(known, key=lambda n: known[n].value), tuple(n for n, value in known.items() if not value.low > 1)


def _worth_more(gain: Mapping[int, Interval]) -> int | None:
    """The best of the budgets that are more efficient than the cheapest one with their whole interval."""
    better = [n for n, value in gain.items() if value.low > 1]
    return max(better, key=lambda n: gain[n].value, default=None)


def _conclusive(formula: Interval) -> bool:
    return formula.high <= _WIDEST * formula.low < math.inf


@dataclass(frozen=True)
class Advice:
    """How many draws per pair under one plan.

    `free`, `costly`: with more pairs than can be paid for, which cost nothing or `pair_cost` draws each to make (None:
    no cost was given). `given`: with these pairs only, where draws make no more than half of the variance that the
    pairs make. `enough`: where endless draws would take away less than 10 %. `resolved`: whether the gradients of the
    pairs have enough in common for efficiencies. `largest`: budget measured; what lies beyond it is extrapolated, and
    marked so.
    """

    plan: str
    pairs: int
    pair_cost: float
    largest: int
    free: Choice
    costly: Choice | None
    given: Range
    enough: Range
    resolved: bool

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "sentences": [*self.answers(), *self.remarks()]}

    def answers(self) -> list[str]:
        """One line for each question."""
        where = f"plan {self.plan}"
        found = [f"Pairs are free and plenty, {where}: {self._chosen(self.free)}."]
        if self.costly is not None:
            found.append(f"Pairs cost {self.pair_cost:g} draws each, {where}: {self._chosen(self.costly)}.")
        half = "there draws make half of the variance that the choice of pairs makes, or less"
        found.append(f"These {self.pairs} pairs are all there are, {where}: n = {self._said(self.given)}; {half}.")
        return found

    def remarks(self) -> list[str]:
        """What else the curves of the plan say."""
        found = [
            f"Plan {self.plan}: more than n = {self._said(self.enough)} changes the noise of a minibatch gradient by "
            "less than 10 %."
        ]
        if not self.resolved:
            found.append(
                f"Plan {self.plan}: efficiencies are not resolved (the gradients of these pairs have too little in "
                "common), so that n is chosen by price: by variance, not by the bias of the slope."
            )
        return found

    def _chosen(self, choice: Choice) -> str:
        if choice.value is None:
            return "not resolved, there is no noise to compare"
        start = ("new pairs beat new draws, " if choice.fact else "") + f"n = {choice.value}"
        if choice.gain is not None:
            bounds = f"(95 %: {choice.gain.low:.3g} to {choice.gain.high:.3g})"
            return f"{start}, {choice.gain.value:.3g} times as efficient as the n of the least variance {bounds}"
        if choice.formula is not None and choice.beyond is not None:
            return self._beyond(choice.value, choice.beyond, _conclusive(choice.formula))
        if choice.rivals:
            return f"{start} (not told apart from it: {', '.join(map(str, choice.rivals))})"
        return start + ("" if choice.fact else " (every other n measured is told apart from it)")

    def _beyond(self, value: int, found: Range, conclusive: bool) -> str:
        if conclusive:
            return f"n = {self._said(found)}"
        start = f"n = {value} or more, not resolved"
        if found.value is None:
            least = f" (95 %: at least {self._draws(found.low)})" if found.low is not None else ""
            return f"{start}: these pairs do not tell V_between from 0{least}; measure more pairs"
        return f"{start}: {self._said(found)}; measure more pairs"

    def _said(self, found: Range) -> str:
        """With its interval; what lies beyond the largest budget measured is marked."""
        if found.value is None:
            return "more than can be told (draws are all of the noise that these replicates see)"
        if found.low == found.high:
            return self._draws(found.value)
        if min(found.value, found.low or math.inf) > self.largest:
            high = "any number" if found.high is None else found.high
            return f"{found.value} (95 %: {found.low} to {high}, all extrapolated)"
        return f"{self._draws(found.value)} (95 %: {self._draws(found.low)} to {self._draws(found.high)})"

    def _draws(self, n: int | None) -> str:
        if n is None:
            return "any number"
        return f"{n} [extrapolated]" if n > self.largest else str(n)


def advice(found: Decomposition) -> Advice | None:
    """What these curves say; None where there is one budget only, and nothing to compare it with."""
    share = found.free["share"]
    if len(share) < 2:
        return None
    return Advice(
        plan=found.plan,
        pairs=found.pairs,
        pair_cost=found.pair_cost,
        largest=max(share),
        free=free_choice(found.free, found.group),
        costly=costly_choice(found.costly, found.pair_cost, found.group) if found.pair_cost else None,
        given=draws_range(share, 1 / 3, found.group),
        enough=draws_range(share, 0.1, found.group),
        resolved=not all(math.isnan(value.value) for value in found.free["gain"].values()),
    )


@dataclass(frozen=True)
class Recommendation:
    """The bottom line: a line for each question, for the plan that training will use, and one about the default."""

    plan: str
    sentences: tuple[str, ...]


def recommendation(
    found: Sequence[Decomposition], said: Mapping[str, Advice], default: tuple[str, int]
) -> Recommendation:
    """For the first plan named beside the paper's that has advice, and else for the paper's.

    Args:
        default: plan and draws per answer that training has by default.
    """
    plan = next((name for name in said if name != PAPER), PAPER)
    lines = said[plan].answers() if plan in said else ["No n to recommend: that takes two budgets of a plan at least."]
    if plan in said and said[plan].costly is None:
        lines.insert(1, "Pairs that cost something to make: name their cost in draws, --pair_cost.")
    shares = {part.plan: part.free["share"] for part in found}
    share = shares.get(default[0], {}).get(default[1])
    return Recommendation(plan, (*lines, _of_default(share, *default)))


def _of_default(share: Interval | None, plan: str, draws: int) -> str:
    start = f"The default, plan {plan} with num_times = {draws}"
    if share is None or math.isnan(share.value):
        return f"{start}, was not measured."
    value, low, high = (f"{100 * min(max(end, 0), 1):.0f} %" for end in (share.value, share.low, share.high))
    return f"{start}: {value} of the variance of a minibatch gradient is due to draws (95 %: {low} to {high})."
