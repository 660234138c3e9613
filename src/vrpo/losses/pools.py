"""Pools: from the bounds of policy and references to one log-ratio D per row, in nats, summed over tokens.

D_k = B_policy - B_k is a difference of bounds, draw by draw where policy and reference share their draws, and exactly
0 where the two are equal. Several references are pooled on these differences, so that this stays true.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from vrpo.types import Pairs, Terms

Mean = Callable[[Float[Tensor, "N R"], Float[Tensor, "N R"]], Float[Tensor, " N"]]  # of ratios, by their weights


@runtime_checkable
class Pool(Protocol):
    """The log-ratio of each row to what the policy is compared with."""

    def __call__(self, terms: Terms, structure: Any) -> Float[Tensor, " N"]: ...


@runtime_checkable
class Weights(Protocol):
    """The weights of the references for each row, from their bounds; they add up to 1 and have no gradient."""

    def __call__(self, bound: Float[Tensor, "N R"], structure: Any) -> Float[Tensor, "N R"]: ...


def bounds(terms: Float[Tensor, "... K"]) -> Float[Tensor, "..."]:
    """The sum of terms, in nats: in float64, whatever the terms are in."""
    return terms.to(torch.float64).sum(-1)


def log_ratios(terms: Terms) -> Float[Tensor, "N R"]:
    """D_k(y) = B_policy(y) - B_k(y) for each reference."""
    if terms.reference.shape[2] == terms.policy.shape[1]:
        return (terms.policy[:, None].to(torch.float64) - terms.reference).sum(-1)
    return bounds(terms.policy)[:, None] - bounds(terms.reference)


@dataclass(frozen=True)
class Single:
    """The one reference: D = B_policy - B_reference.

    Raises:
        ValueError: there is none, or more than one.
    """

    def __call__(self, terms: Terms, structure: Any) -> Float[Tensor, " N"]:
        if terms.reference.shape[1] != 1:
            raise ValueError(f"the log-ratio needs exactly one reference, not {terms.reference.shape[1]}")
        return log_ratios(terms)[:, 0]


SINGLE: Pool = Single()


@dataclass(frozen=True)
class ReferenceFree:
    """No reference: D = B_policy, as if all answers were equally likely before. Other losses beside it may have one."""

    def __call__(self, terms: Terms, structure: Any) -> Float[Tensor, " N"]:
        return bounds(terms.policy)


@dataclass(frozen=True)
class Pooled:
    """Several references: `mean` of their log-ratios (MRPO, arXiv 2405.16388).

    Args:
        clip: CTRO: bounds of references 2, 3, ... are clipped to [(1 + clip) B_1, (1 - clip) B_1] (B_1 < 0), so that
            none is far from the first; weights are those before clipping. None: they are not.
    """

    mean: Mean
    weights: Weights
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.clip is not None and not 0 <= self.clip < 1:
            raise ValueError(f"clip must lie in [0, 1), not {self.clip}")

    def __call__(self, terms: Terms, structure: Any) -> Float[Tensor, " N"]:
        bound = bounds(terms.reference)
        ratio = log_ratios(terms)
        if self.clip is not None:
            first = bound[:, :1]
            reach = self.clip * first.abs()  # an estimate may be above 0
            ratio = ratio + (bound - bound.clamp(first - reach, first + reach))
        return self.mean(ratio, self.weights(bound, structure))


def harmonic(ratio: Float[Tensor, "N R"], weight: Float[Tensor, "N R"]) -> Float[Tensor, " N"]:
    """The weighted harmonic mean of the references' probabilities: log-ratio logsumexp_k(log a_k + D_k).

    It is dominated by the reference that finds the answer least likely. Convex in the ratios, so their noise raises it.
    """
    return (weight.log() + ratio).logsumexp(-1)


def geometric(ratio: Float[Tensor, "N R"], weight: Float[Tensor, "N R"]) -> Float[Tensor, " N"]:
    """The weighted geometric mean: log-ratio sum_k a_k D_k. The reference of the exact optimum under
    sum_k a_k KL(policy || reference_k). Unbiased, being linear."""
    return (weight * ratio).sum(-1)


@dataclass(frozen=True)
class Fixed:
    """The same weights for every row, positive or 0, adding up to 1; None: equal ones.

    Raises:
        ValueError: they are not; or there are not as many references.
    """

    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        given = self.weights
        if given is not None and not (given and min(given) >= 0 and abs(sum(given) - 1) <= 1e-6):
            raise ValueError(f"weights of references must not be negative and add up to 1, not {given}")

    def __call__(self, bound: Float[Tensor, "N R"], structure: Any) -> Float[Tensor, "N R"]:
        number = bound.shape[1]
        weights = (1 / number,) * number if self.weights is None else self.weights
        if number != len(weights):
            raise ValueError(f"{len(weights)} weights for {number} references")
        return bound.new_tensor(weights).expand_as(bound)


EQUAL = Fixed()


@dataclass(frozen=True)
class Confidence:
    """ARWC: a_k proportional to |B_k(chosen) - B_k(rejected)|, for both rows of a pair: a reference counts as much as
    it tells the answers apart (arXiv 2405.16388). If none does, all count alike.

    Raises:
        ValueError: a row is in no pair, or in several.
    """

    def __call__(self, bound: Float[Tensor, "N R"], structure: Pairs) -> Float[Tensor, "N R"]:
        rows = torch.cat([structure.chosen, structure.rejected])
        if len(rows) != len(bound) or len(rows.unique()) < len(rows):
            raise ValueError("confidence weights need every row in exactly one pair")
        gap = (bound[structure.chosen] - bound[structure.rejected]).detach().abs()
        total = gap.sum(-1, keepdim=True)
        weight = torch.where(total > 0, gap / total, 1 / gap.shape[1])
        return torch.zeros_like(bound).index_copy(0, rows, torch.cat([weight, weight]))


@dataclass(frozen=True)
class Apart:
    """References that are not pooled: a loss against each, in the mean by their weights (`objective.Mixture`). Called
    as a pool, what metrics show of them all: the mean of the log-ratios, likewise."""

    weights: Fixed = EQUAL

    def __call__(self, terms: Terms, structure: Any) -> Float[Tensor, " N"]:
        return Pooled(geometric, self.weights)(terms, structure)


# By name --------------------------------------------------------------------------------------------------------------


def _pooled(mean: Mean, weights: list[float] | str | None, clip: float | None) -> Pooled:
    if isinstance(weights, str) and weights != "arwc":
        raise ValueError(f"weights must be numbers or arwc, not {weights!r}")
    fixed = Fixed(None if weights is None else tuple(weights)) if not isinstance(weights, str) else None
    return Pooled(mean, Confidence() if fixed is None else fixed, clip)


def _harmonic(weights: list[float] | str | None = None, clip: float | None = None) -> Pooled:
    return _pooled(harmonic, weights, clip)


def _geometric(weights: list[float] | str | None = None, clip: float | None = None) -> Pooled:
    return _pooled(geometric, weights, clip)


def _apart(weights: list[float] | None = None) -> Apart:
    return Apart(Fixed(None if weights is None else tuple(weights)))


POOLS: dict[str, Callable[..., Pooled | Apart]] = {  # of what `ref_pool_kwargs` holds
    "harmonic": _harmonic,
    "geometric": _geometric,
    "mixture": _apart,
}
