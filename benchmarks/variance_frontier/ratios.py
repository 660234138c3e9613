"""From the replicates to each plan's variance relative to the paper's plan, with intervals (called by report.py).

Three kinds of measurement, one per kind of plan:

- Independent draws: single draws with m ~ 1/m, reweighted. Under uniform counts a few draws of one or two masked
  tokens decide, and a direct measurement would need ten times the passes.
- Uniform counts and dependent draws: draw by draw. Var = E sum |h_i|^2 + E sum_{i != j} <h_i, h_j> - |mu|^2 over
  the parts h_i of an estimate; the first term carries the heavy tail, does not depend on the plan and is known from the
  single draws, so that it serves as control variate.
- The rest: replicates of the whole estimate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from plans import BY_DRAW, LEVEL, ONE_LEVEL, ONE_ORDER, PLANS, N
from run import FIELDS, SINGLES
from safetensors.torch import load_file
from torch import Tensor

from vrpo.diagnostics.replicates import Replicates
from vrpo.diagnostics.statistics import Interval, squared_mean, total_variance

BLOCKS = 16  # of single draws, left out in turn
INDEPENDENT = {"paper": 0.0, "importance 1/4": 0.25, "importance 1/2": 0.5, "importance 3/4": 0.75}
MEASURES = ("gradient", "score")

T = TypeVar("T")


@dataclass(frozen=True)
class Jackknife:
    """A statistic of every pair, also with one replicate (or block) of that pair left out. Linear: `a + c * b` of
    statistics of the same replicates has the error of the combination."""

    value: Tensor  # [P]
    left_out: Tensor  # [P, F]

    @classmethod
    def of(cls, pairs: Sequence[T], statistic: Callable[[T], float], left_out: Callable[[T], list[T]]) -> "Jackknife":
        parts = [[statistic(part) for part in left_out(one)] for one in pairs]
        return cls(torch.tensor([statistic(one) for one in pairs]), torch.tensor(parts))

    def __add__(self, other: "Jackknife") -> "Jackknife":
        return Jackknife(self.value + other.value, self.left_out + other.left_out)

    def __rmul__(self, factor: float) -> "Jackknife":
        return Jackknife(factor * self.value, factor * self.left_out)

    @property
    def total(self) -> float:
        return float(self.value.sum())

    @property
    def centred(self) -> Tensor:
        return self.left_out - self.left_out.mean(1, keepdim=True)

    @property
    def error(self) -> float:
        """Standard error of the total: pairs are given, their replicates are not."""
        count = self.left_out.shape[1]
        return float((count - 1) / count * self.centred.square().sum()) ** 0.5


@dataclass(frozen=True)
class Single:
    """Independent single draws of one pair with m from q(m) ~ 1/m, weighted: B of them, 0 the chosen answer."""

    policy: Tensor  # [B, 2] bounds
    reference: Tensor  # [B, 2]
    square: Tensor  # [B, 2] |gradient|^2 of each answer's bound, exact
    masked: Tensor  # [B, 2] m
    gradient: Tensor  # [B, D] sketches of the margin's gradient
    length: Tensor  # [2]

    def left_out(self) -> list["Single"]:
        index = torch.arange(len(self.policy)) % BLOCKS
        fields = (self.policy, self.reference, self.square, self.masked, self.gradient)
        return [Single(*(part[index != block] for part in fields), self.length) for block in range(BLOCKS)]

    def second(self, measure: str, exponent: float) -> Tensor:
        """[2]: E |h|^2 of one draw of each answer when m ~ m^-exponent; h estimates the bound, or its gradient."""
        square = self.square if measure == "gradient" else (self.policy - self.reference).square()
        return (square * self.odds(exponent)).mean(0)

    def odds(self, exponent: float) -> Tensor:
        """[B, 2]: q(m) over the law m^-exponent."""
        return law(self.masked, self.length, SINGLES) / law(self.masked, self.length, exponent)

    def variance(self, measure: str, exponent: float) -> float:
        """Of the margin's estimate by one draw: that under q, plus the difference of the answers' second moments; what
        is linear in the draws does not depend on the law."""
        own = total_variance(self.gradient) if measure == "gradient" else margin_variance(self.policy - self.reference)
        return own + float((self.second(measure, exponent) - self.second(measure, SINGLES)).sum())

    def unshared(self) -> float:
        """Variance of the score by one draw for the policy and another one for the reference, m uniform: of each bound,
        E (f - mean)^2, f being the draw's estimate under uniform counts, without the weight that q gives it."""
        odds = self.odds(0.0)
        return sum(float((((x * odds - x.mean(0)).square()) / odds).mean(0).sum()) for x in self.bounds)

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        return self.policy, self.reference


def margin_variance(bounds: Tensor) -> float:
    return float((bounds[:, 0] - bounds[:, 1]).var())


def law(masked: Tensor, length: Tensor, exponent: float) -> Tensor:
    """Probability of each count m under m^-exponent on 1..L; [..., 2], the last axis being the answers."""
    mass = [sum(m**-exponent for m in range(1, int(size) + 1)) for size in length]
    return masked**-exponent / torch.tensor(mass, dtype=torch.float64)


@dataclass(frozen=True)
class Parts:
    """What each answer's and draw's part adds to R estimates of a pair's margin."""

    change: Tensor  # [R, 2, K]
    gradient: Tensor  # [R, 2, K, D]
    masked: Tensor  # [R, 2, K]
    length: Tensor  # [2]

    def left_out(self) -> list["Parts"]:
        keep = [torch.arange(len(self.change)) != r for r in range(len(self.change))]
        return [Parts(self.change[k], self.gradient[k], self.masked[k], self.length) for k in keep]

    def vectors(self, measure: str) -> Tensor:
        return self.gradient if measure == "gradient" else self.change[..., None]

    def variance(self, measure: str) -> float:
        return total_variance(self.vectors(measure).sum((1, 2)))

    def squares(self, measure: str) -> float:
        """E sum |h_i|^2."""
        return float(self.vectors(measure).square().sum((1, 2, 3)).mean())

    def crossed(self, measure: str, centre: Tensor) -> float:
        """Of one level, m from another law: E sum_{i != j} <x_i, x_j> of both answers under uniform counts, x_i being a
        part less its share of `centre` [2, D]."""
        level = self.masked[..., 0]
        weight = law(level, self.length, 0.0) / law(level, self.length, LEVEL)  # [R, 2]; a part contains it
        parts = self.vectors(measure) / weight[..., None, None] - centre[:, None] / N
        products = parts.sum(2).square().sum(-1) - parts.square().sum((2, 3))
        return float((weight * products).mean(0).sum())


@dataclass(frozen=True)
class Answers:
    """Independent estimates of both answers' parts of the margin, from other plans: [B, 2, D]."""

    estimates: Tensor

    @property
    def centre(self) -> Tensor:
        return self.estimates.mean(0)

    @property
    def correction(self) -> float:
        """What `crossed` and the squares of uncentred parts lack of the variance of one level: sum over the answers of
        -(|mu|^2 - |mu - c|^2) / N - |mu - c|^2, with the expectation of the last, c being a mean of B."""
        total = 0.0
        for side in (0, 1):
            error = total_variance(self.estimates[:, side]) / len(self.estimates)
            total -= (squared_mean(self.estimates[:, side]) - error) / N + error
        return total


def replicate_variance(one: Replicates, measure: str) -> float:
    if measure == "gradient":
        return total_variance(one.gradient[:, 0])
    return margin_variance((one.policy - one.reference)[:, :, 0])


def replicates_left_out(one: Replicates) -> list[Replicates]:
    return [one.without(r) for r in range(len(one.policy))]


def rounds(folder: Path, fields: tuple[str, ...], axis: int) -> list[Tensor]:
    """Of every pair, all rounds together."""
    found = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    return [torch.cat([one[field].double() for one in found], axis) for field in fields]


def single_draws(folder: Path) -> list[Single]:
    policy, reference, square, masked, gradient = rounds(
        folder, ("policy", "reference", "square", "masked", FIELDS[2]), 1
    )
    by_draw = [part.transpose(2, 3).flatten(1, 2) for part in (policy, reference, square, masked)]
    length = load_file(folder / "0.safetensors")["length"].double()
    return [Single(*part) for part in zip(*by_draw, gradient.flatten(1, 2), length, strict=True)]


@dataclass(frozen=True)
class Known:
    """What single draws say, of one measure."""

    pairs: list[Single]
    measure: str

    def of(self, statistic: Callable[[Single], float]) -> Jackknife:
        return Jackknife.of(self.pairs, statistic, Single.left_out)

    def variance(self, exponent: float) -> Jackknife:
        """Of N independent draws."""
        return (1 / N) * self.of(lambda one: one.variance(self.measure, exponent))

    def squares(self, label: str) -> Jackknife:
        """E sum |h_i|^2 of the N draws of a plan whose counts are uniform."""

        def statistic(one: Single) -> float:
            second = one.second(self.measure, 0.0)
            return float((second * (1 + 1 / one.length)).sum() if label == "complementary" else second.sum())  # m = 0

        return (1 / N) * self.of(statistic)


def quotient(own: Jackknife | None, linked: Jackknife | None, paper: Jackknife) -> dict[str, float]:
    """(own + linked) / paper with its 95 % interval: `own` is independent of `paper`, `linked` of the same draws as it
    (delta method; hundreds of degrees of freedom)."""
    above = (own.total if own else 0.0) + (linked.total if linked else 0.0)
    value = above / paper.total
    rest = -value * paper if linked is None else linked + -value * paper
    half = 1.96 * ((own.error if own else 0.0) ** 2 + rest.error**2) ** 0.5 / paper.total
    return vars(Interval(value, value - half, value + half))


def measured_by_draw(label: str, folder: Path, known: Known, paper: Jackknife) -> dict[str, Any]:
    """Ratio of a plan whose parts are at hand; the sum of their squares is the control variate."""
    fields = rounds(folder, ("change", "gradient", "masked"), 1)
    length = load_file(folder / "0.safetensors")["length"].double()
    pairs = [Parts(*part) for part in zip(*fields, length, strict=True)]
    measure, squares = known.measure, known.squares(label)

    def of(statistic: Callable[[Parts, str], float]) -> Jackknife:
        return Jackknife.of(pairs, lambda one: statistic(one, measure), Parts.left_out)

    found = {"replicates": len(pairs[0].change)}
    if label == ONE_LEVEL:
        answers = other_answers(folder.parent, measure)
        own = Jackknife.of(
            list(zip(pairs, answers, strict=True)),
            lambda one: one[0].crossed(measure, one[1].centre) + one[1].correction,
            lambda one: [(part, one[1]) for part in one[0].left_out()],
        )
        return {**found, measure: quotient(own, squares, paper)}
    whole, own = of(Parts.variance), of(Parts.squares)
    if label == ONE_ORDER:  # counts of another law: inner products keep their mean, squares do not
        return {**found, measure: quotient(whole + -1.0 * own, squares, paper)}
    factor = float((whole.centred * own.centred).sum() / own.centred.square().sum())
    ratio = quotient(whole + -factor * own, factor * squares, paper)
    return {**found, measure: ratio, f"{measure}_squares": quotient(own, None, squares)}


def other_answers(folder: Path, measure: str) -> list[Answers]:
    """Of every pair: means over all plans but the one with one level. Plans have keys in common, hence estimates of one
    replicate are dependent, and their mean counts as one; those of different replicates are independent."""
    field = "gradient" if measure == "gradient" else "change"
    found = [rounds(folder / label, (field,), 1)[0].sum(3) for label in BY_DRAW if label != ONE_LEVEL]
    count = min(one.shape[1] for one in found)
    means = torch.stack([one[:, :count] for one in found]).mean(0)
    return [Answers(one.reshape(*one.shape[:2], -1)) for one in means]


def compared(folder: Path) -> dict[str, Any]:
    """Every plan's variances relative to the paper's plan."""
    draws = single_draws(folder / "singles")
    plans: dict[str, dict[str, Any]] = {}
    absolute = {}
    for measure in MEASURES:
        known = Known(draws, measure)
        paper = known.variance(0.0)
        absolute[measure] = paper.total / len(draws)
        for label, exponent in INDEPENDENT.items():
            ratio = quotient(None, known.variance(exponent), paper)
            plans.setdefault(label, {"replicates": "single draws"})[measure] = ratio
        unshared = (1 / N) * known.of(Single.unshared) if measure == "score" else paper  # the gradient is the same
        plans.setdefault("independent reference draws", {"replicates": "single draws"})[measure] = quotient(
            None, unshared, paper
        )
        for label in PLANS:
            found = [Replicates(*part) for part in zip(*rounds(folder / label, FIELDS, 1), strict=True)]
            own = Jackknife.of(found, lambda one, at=measure: replicate_variance(one, at), replicates_left_out)
            plans.setdefault(label, {"replicates": len(found[0].policy)})[measure] = quotient(own, None, paper)
        for label in BY_DRAW:
            plans.setdefault(label, {}).update(measured_by_draw(label, folder / "by draw" / label, known, paper))
    found = {"pairs": len(draws), "single_draws": len(draws[0].policy), "paper": absolute, "plans": plans}
    return {**found, "exponent_of_independent_draws": best_exponent(draws)}


def best_exponent(draws: list[Single]) -> float:
    """The exponent of 0, 0.05, ..., 1 under which independent draws leave the least variance of the gradient."""

    def variance(exponent: float) -> float:
        return sum(float((one.second("gradient", exponent)).sum()) for one in draws)  # up to what is the same for all

    return min((step / 20 for step in range(21)), key=variance)


def floors(plans: dict[str, Any], measure: str) -> dict[str, dict[str, float]]:
    """Of N draws, relative to the paper's N. With V = V_t + V_y one draw's variance: masks exact given m leave V_t / N
    (N levels; nothing if they are stratified), levels exact given the order of unmasking leave V_order / N.
    V(1 x N) = V_t + V_y / N and V(N x 1) = (V_t + V_y) / N = 1 here; likewise for orders."""
    found = {"levels": plans[ONE_LEVEL][measure], "orders": plans[ONE_ORDER][measure]}
    return {name: {end: (at - 1) / (N - 1) for end, at in ratio.items()} for name, ratio in found.items()}
