"""What a step says about itself: per-pair quantities from terms, averaged over a logging window and over processes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vrpo.losses.pools import log_ratios
from vrpo.preference import Step
from vrpo.sketch import Sketch
from vrpo.structures import Labels, Rankings, Rows
from vrpo.types import Draws, Estimate, Pairs, Terms


@dataclass(frozen=True)
class Some:
    """A metric that only some items have: `values` means nothing where `there` is False."""

    values: Float[Tensor, " P"]
    there: Bool[Tensor, " P"]


def as_some(column: Float[Tensor, " P"] | Some) -> Some:
    return column if isinstance(column, Some) else Some(column, torch.ones_like(column, dtype=torch.bool))


Columns = Mapping[str, Float[Tensor, " P"] | Some]

SATURATED = 4.0  # |beta h| beyond which sigmoid(-|beta h|) < 0.018: the pair hardly moves the policy any more


def pair_metrics(
    step: Step, structure: Pairs | Rankings, draws: Draws, judged: Any, *, common: bool
) -> dict[str, Float[Tensor, " P"]]:
    """Per-pair metrics under TRL's names, plus what only an estimate has.

    rewards/* are beta times what the loss compares: B_policy - B_reference, pooled over references, per token if the
    loss is; without a reference, B_policy. elbo/* are the policy's bounds in nats, summed over tokens; elbo/*_change
    the bounds' distance to the first reference (absent without one). score/variance is the estimated Monte Carlo
    variance of the score, to first order where references are pooled and without the noise of ARWC's weights (absent
    with fewer than two independent draws, where it is not estimable); score/saturated the share of pairs whose |score|
    is above 4; score/square the score's square; rewards/accuracies counts a margin of exactly 0 as one half;
    draws/values_per_pair and draws/per_pair the draws of both answers whose values were computed, and those that were
    run for the gradient.

    Args:
        judged: the loss whose rewards these are: a `losses.Preference` or `losses.PlackettLuce`.
        common: policy and reference shared their draws, so that the noise is that of the differences of terms.
    """
    terms, pairs = _detached(step.terms), structure.pairs
    chosen, rejected = pairs.chosen, pairs.rejected
    beta = judged.betas(structure)
    values = judged.values(terms, pairs)
    score = beta * (values[chosen] - values[rejected])
    columns = {
        "rewards/chosen": beta * values[chosen],
        "rewards/rejected": beta * values[rejected],
        "rewards/accuracies": (score > 0).double() + 0.5 * (score == 0).double(),
        "rewards/margins": score,
        "elbo/chosen": terms.policy.sum(-1)[chosen],
        "elbo/rejected": terms.policy.sum(-1)[rejected],
        "score/square": score.square(),
        "score/saturated": (score.abs() > SATURATED).double(),
        "draws/per_pair": (step.graphs.sum(-1)[chosen] + step.graphs.sum(-1)[rejected]).double(),
        "draws/values_per_pair": (draws.in_use.sum(-1)[chosen] + draws.in_use.sum(-1)[rejected]).double(),
    }
    if terms.reference.shape[1]:
        change = log_ratios(terms)[:, 0]
        columns |= {"elbo/chosen_change": change[chosen], "elbo/rejected_change": change[rejected]}
    if int(draws.group.max()) >= 1:
        parts = linear_parts(judged, terms, pairs)
        columns["score/variance"] = beta**2 * _margin_variance(*parts, pairs, draws.group, common)
    return columns


def per_list(columns: Mapping[str, Float[Tensor, " P"]], pairs: Pairs) -> dict[str, Float[Tensor, " Q"]]:
    """Means over the pairs of each list."""
    assert pairs.item is not None
    count = torch.bincount(pairs.item)
    return {
        name: column.new_zeros(len(count)).index_add(0, pairs.item, column) / count for name, column in columns.items()
    }


def _detached(terms: Terms) -> Terms:
    return replace(terms, policy=terms.policy.detach())


def linear_parts(judged: Any, terms: Terms, pairs: Pairs) -> tuple[Float[Tensor, "N K"], Float[Tensor, "N J"]]:
    """What each draw of policy and references adds to the values, to first order: term times slope. Their sums have the
    variance of the values (the delta method), exactly so for a single reference."""
    parts = (terms.policy, terms.reference)
    leaves = [part.detach().clone().requires_grad_() for part in parts]
    with torch.enable_grad():
        total = judged.values(Terms(leaves[0], leaves[1], terms.group), pairs).sum()
    slopes = torch.autograd.grad(total, leaves, allow_unused=True)
    both = zip(parts, slopes, strict=True)
    ours, theirs = (part * (0 if slope is None else slope) for part, slope in both)
    return ours, theirs.sum(1)


def _margin_variance(
    policy: Float[Tensor, "N K"],
    reference: Float[Tensor, "N J"],
    pairs: Pairs,
    group: Int[Tensor, "N K"],
    common: bool,
) -> Float[Tensor, " P"]:
    """Variance of the margin; group g of the chosen row is set against group g of the rejected one, which is unbiased
    whether the two rows' draws are independent or coupled."""
    same = group[pairs.chosen]
    parts = [policy + reference] if common else [policy, reference]
    return torch.stack([Estimate(part[pairs.chosen] - part[pairs.rejected], same).variance for part in parts]).sum(0)


def label_metrics(step: Step, labels: Labels, draws: Draws, judged: Any) -> Columns:
    """Per-answer metrics of single labelled answers, under TRL's names: rewards/chosen are the rewards of the desirable
    ones, rewards/rejected of the others, rewards/accuracies whether a reward lies on its label's side of the baseline
    beta * z0, which is rewards/baseline."""
    terms, row, good = _detached(step.terms), labels.row, labels.desirable
    beta = judged.temperature(labels)
    values = judged.values(terms, labels)
    zero = judged.zero(values, labels)
    gain = torch.where(good, 1, -1) * (values[row] - zero)
    both = {"rewards/{}": beta * values[row], "elbo/{}": terms.policy.sum(-1)[row]}
    if terms.reference.shape[1]:
        both["elbo/{}_change"] = log_ratios(terms)[row, 0]
    return {
        **{name.format("chosen"): Some(each, good) for name, each in both.items()},
        **{name.format("rejected"): Some(each, ~good) for name, each in both.items()},
        "rewards/accuracies": (gain > 0).double() + 0.5 * (gain == 0).double(),
        "rewards/baseline": (beta * zero).expand(len(row)),
        "draws/per_answer": step.graphs.sum(-1)[row].double(),
    }


def row_metrics(step: Step, rows: Rows) -> dict[str, Float[Tensor, " M"]]:
    """Per-row metrics of supervised fine-tuning: the bound per token, in nats."""
    return {"elbo/per_token": (step.terms.policy.detach().sum(-1) / rows.length)[rows.imitated]}


@dataclass
class Window:
    """Running sums of per-item columns since the last log."""

    total: dict[str, float] = field(default_factory=dict)
    square: dict[str, float] = field(default_factory=dict)
    count: dict[str, float] = field(default_factory=dict)

    def add(self, columns: Mapping[str, Float[Tensor, " P"] | Some]) -> None:
        for name, column in columns.items():
            values = column.values[column.there] if isinstance(column, Some) else column
            for store, value in ((self.total, values.sum()), (self.square, values.square().sum())):
                store[name] = store.get(name, 0.0) + float(value)
            self.count[name] = self.count.get(name, 0.0) + len(values)

    def sums(self, device: torch.device) -> Float[Tensor, "M 3"]:
        """Totals, squares and counts per name (in the order of `total`), to be added up over processes."""
        rows = [(self.total[name], self.square[name], self.count[name]) for name in self.total]
        return torch.tensor(rows, dtype=torch.float64, device=device).reshape(-1, 3)


def sums_of(values: Float[Tensor, "P M"], there: Bool[Tensor, "P M"]) -> Float[Tensor, "M 3"]:
    """Totals, squares and counts per metric of a table of items, of those that are there."""
    values = values.where(there, 0.0)
    return torch.stack([values.sum(0), values.square().sum(0), there.sum(0).to(values.dtype)], -1)


def mean_and_error(sums: Float[Tensor, "M 3"]) -> tuple[Float[Tensor, " M"], Float[Tensor, " M"]]:
    """Mean and its standard error per row of (total, square, count); NaN, the error of a single item."""
    total, square, count = sums.unbind(-1)
    mean = total / count
    return mean, ((square / count - mean.square()).clamp(min=0) / (count - 1)).sqrt()


def relative_error(names: Iterable[str], sums: Float[Tensor, "M 3"]) -> dict[str, float]:
    """score/relative_error: sqrt(mean score/variance) / root mean square of the score, from the sums of both.

    A ratio of window statistics, because that of a single pair explodes where its score is near 0. The mean square
    includes the noise, so it is between 0 and about 1, and about 1 means that scores are noise. Empty where there is no
    variance, or where all scores are exactly 0.
    """
    place = {name: index for index, name in enumerate(names)}
    if "score/variance" not in place:
        return {}
    variance, _, count = sums[place["score/variance"]].tolist()
    square, _, _ = sums[place["score/square"]].tolist()
    return {"score/relative_error": (variance / square) ** 0.5} if square and count else {}


@dataclass
class GradientNoise:
    """Signal-to-noise ratio of the gradients g_1..g_T of a window's optimizer steps, from their sketches.

    signal = mean over t != t' of <g_t, g_t'>, unbiased for |E g|^2 if the steps are alike and independent; noise = mean
    |g_t|^2 - signal, the variance of a step's gradient summed over parameters. Logged is signal / noise, which is below
    0 where signal cannot be told from noise. Not to be confused with the noise of the draws alone: pairs differ, too.
    """

    sketch: Sketch = field(default_factory=Sketch)
    total: Float[Tensor, " D"] | None = None
    square: float = 0.0
    steps: int = 0

    def add(self, gradient: Iterable[Tensor | None]) -> None:
        """The gradient of an optimizer step, before clipping."""
        image = self.sketch(gradient)
        self.total = image if self.total is None else self.total + image
        self.square += float(image.square().sum())
        self.steps += 1

    def metrics(self) -> dict[str, float]:
        """gradient/snr; empty for fewer than two steps, or equal gradients."""
        if self.total is None or self.steps < 2:
            return {}
        signal = (float(self.total.square().sum()) - self.square) / (self.steps * (self.steps - 1))
        noise = self.square / self.steps - signal
        return {"gradient/snr": signal / noise} if noise else {}
