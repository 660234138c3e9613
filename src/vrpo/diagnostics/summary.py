"""From the replicates of pairs to everything that a report says: numbers by plan and budget, Lemma 5, draws or pairs,
and advice. Pure: the same replicates give the same summary."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from tqdm import tqdm

from vrpo.diagnostics.advice import Advice, Recommendation, advice, recommendation
from vrpo.diagnostics.designs import Design
from vrpo.diagnostics.minibatch import Decomposition, Intervals, decomposition, quotient
from vrpo.diagnostics.replicates import Replicates
from vrpo.diagnostics.statistics import Interval, Noise, jackknife, left_out_numbers, noise

Measurements = Mapping[Design, Sequence[Replicates]]  # of each design, the pairs
Numbers = dict[str, float]
STATISTICS = tuple(field.name for field in fields(Noise) if field.type is float)
SPLIT = ("elbo_variance", "score_variance", "score_gradient_variance")  # linear in the draws: Lemma 5 holds


@dataclass(frozen=True)
class Row:
    """One plan at one budget, with draws shared with the reference or independent of it.

    `whole`: of each pair; `left_out`: of each replicate left out, the numbers of each pair.
    """

    design: Design
    draws: int
    shared: bool
    whole: Sequence[Noise]
    left_out: Sequence[Sequence[Numbers]]

    @property
    def allocation(self) -> str:
        """n_t x n_y of the paper's plan; of any other, its number of draws."""
        masks = self.design.num_masks
        return f"{self.draws // masks} x {masks}" if masks else str(self.draws)

    def of_pairs(self, name: str) -> list[float]:
        return [numbers(value)[name] for value in self.whole]

    def counted(self, name: str) -> list[int]:
        """The pairs that a mean is over: all, but for correlations, which some pairs have not (one-token answers)."""
        samples = [self.of_pairs(name), *([pair[name] for pair in pairs] for pairs in self.left_out)]
        every = range(len(self.whole))
        return [i for i in every if name != "correlation" or not any(math.isnan(part[i]) for part in samples)]

    def mean(self, name: str) -> Interval:
        """Mean over the pairs counted, which are given; the interval is that of the replicates."""
        kept, values = self.counted(name), self.of_pairs(name)
        left_out = [_mean([pairs[i][name] for i in kept]) for pairs in self.left_out]
        return jackknife(_mean([values[i] for i in kept]), left_out)

    def by_pair(self, name: str) -> list[tuple[float, float, float]]:
        """Of each pair: value, low, high."""
        found = []
        for index, value in enumerate(self.of_pairs(name)):
            interval = jackknife(value, [pairs[index][name] for pairs in self.left_out])
            found.append((interval.value, interval.low, interval.high))
        return found

    def as_json(self) -> dict[str, Any]:
        return {
            "plan": self.design.label,
            "draws": self.draws,
            "allocation": self.allocation,
            "shared": self.shared,
            **{
                name: {**asdict(self.mean(name)), "counted": len(self.counted(name)), "pairs": self.by_pair(name)}
                for name in STATISTICS
            },
        }


@dataclass(frozen=True)
class Split:
    """Lemma 5 of one statistic: the variance of one time with n_y masks is V_t + V_y / n_y, mean over pairs.

    V_t is the variance over times of the conditional mean, which no number of masks reduces. An estimate may fall below
    0, where V_t is small against its noise. `share` = V_t / (V_t + V_y).
    """

    times: Interval
    masks: Interval
    share: Interval
    pairs: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Summary:
    """Everything; the splits are empty where only one number of masks per time was measured. `plans`: draws or pairs,
    of the paper's plan and each named one; `advice`: by plan, of those with two budgets or more."""

    rows: Sequence[Row]
    splits: Mapping[str, Split]
    plans: Sequence[Decomposition]
    advice: Mapping[str, Advice]
    recommendation: Recommendation

    def as_json(self) -> dict[str, Any]:
        return {
            "estimates": [row.as_json() for row in self.rows],
            "split": {name: asdict(split) for name, split in self.splits.items()},
            "minibatch": {
                part.plan: {"pairs_free": _by_name(part.free), "pairs_at_cost": _by_name(part.costly)}
                for part in self.plans
            },
            "advice": {plan: said.as_json() for plan, said in self.advice.items()},
            "recommendation": asdict(self.recommendation),
        }


def _by_name(curves: Intervals) -> dict[str, dict[str, Any]]:
    return {name: {str(n): asdict(value) for n, value in part.items()} for name, part in curves.items()}


def numbers(value: Noise) -> Numbers:
    return {name: getattr(value, name) for name in STATISTICS}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def summarise(measurements: Measurements, beta: float, pair_cost: float, default: tuple[str, int]) -> Summary:
    """All statistics of these pairs at this beta.

    Args:
        default: plan and draws per answer that training has by default, which the report compares with.

    Raises:
        ValueError: fewer than three pairs, or fewer than three replicates.
    """
    kinds = list(_kinds(measurements))
    watched = tqdm(kinds, desc="summarising", unit="row", leave=False, delay=5)
    rows = [_row(design, budget, shared, measurements[design], beta) for design, budget, shared in watched]
    plans = decompositions(rows, pair_cost)
    said = {part.plan: one for part in plans if (one := advice(part)) is not None}
    return Summary(rows, _splits(rows), plans, said, recommendation(plans, said, default))


def decompositions(rows: Sequence[Row], pair_cost: float) -> list[Decomposition]:
    """Draws or pairs, plan by plan: of the paper's with one mask per time, and of each other plan, at all its budgets.
    Each budget of a plan is a whole number of its groups, but not of the same ones: groups may grow with the budget."""
    by_plan: dict[str, dict[int, Row]] = {}
    for row in rows:
        if row.shared and row.design.num_masks <= 1:
            by_plan.setdefault(row.design.label, {})[row.draws] = row
    return [
        decomposition(plan, found[max(found)].design.per_group, {n: found[n].whole for n in sorted(found)}, pair_cost)
        for plan, found in by_plan.items()
    ]


def _kinds(measurements: Measurements) -> Iterator[tuple[Design, int, bool]]:
    for design in measurements:
        for budget in design.budgets:
            yield design, budget, True
            if design.single:
                yield design, budget, False


def _row(design: Design, budget: int, shared: bool, pairs: Sequence[Replicates], beta: float) -> Row:
    replicates = len(pairs[0].policy)
    if replicates < 3:
        raise ValueError(f"num_replicates must be at least 3, not {replicates}: without one of them two must remain")
    merged = [(pair if shared else pair.independent()).at(design.groups(budget)) for pair in pairs]
    by_pair = [left_out_numbers(pair, beta) for pair in merged]
    left_out = [list(part) for part in zip(*by_pair, strict=True)]
    return Row(design, budget, shared, [noise(pair, beta) for pair in merged], left_out)


def _splits(rows: Sequence[Row]) -> dict[str, Split]:
    """Of each statistic, from the rows of one time per estimate."""
    single_time = [row for row in rows if row.shared and row.draws == row.design.num_masks]
    if len(single_time) < 2:
        return {}
    return {name: _split(single_time, name) for name in SPLIT}


def _split(rows: Sequence[Row], name: str) -> Split:
    solve = least_squares([row.design.num_masks for row in rows])
    parts = [solve(values) for values in zip(*(row.of_pairs(name) for row in rows), strict=True)]
    left_out = [
        solve([_mean([pair[name] for pair in row.left_out[r]]) for row in rows]) for r in range(len(rows[0].left_out))
    ]
    whole = [_mean([part[side] for part in parts]) for side in (0, 1)]
    times, masks = (jackknife(whole[side], [part[side] for part in left_out]) for side in (0, 1))
    share = jackknife(quotient(whole[0], sum(whole)), [quotient(part[0], sum(part)) for part in left_out])
    return Split(times, masks, share, parts)


def least_squares(masks: Sequence[int]) -> Any:
    """The function from variances at these n_y to (V_t, V_y) of V(n_y) = V_t + V_y / n_y: linear, hence unbiased."""
    design = torch.tensor([[1.0, 1 / n] for n in masks], dtype=torch.float64)
    inverse = torch.linalg.pinv(design)

    def solve(variances: Sequence[float]) -> tuple[float, float]:
        between, within = (inverse @ torch.tensor(variances, dtype=torch.float64)).tolist()
        return between, within

    return solve


def finite(value: Any) -> Any:
    """The same with None in place of numbers that JSON has not."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
