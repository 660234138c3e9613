"""Objectives: scalar functions of the terms of policy and reference, differentiable in the policy's.

Inside an objective: reference pool -> ratio -> (normaliser) -> margin -> temperature -> loss. The averaging over draws
(a sum of terms, 1/K being in the weights) comes BEFORE anything nonlinear: the loss of an estimate, never a mean of
per-draw losses. What each loss does with the noise of the estimate: docs/losses.md.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from vrpo.losses.pools import EQUAL, Fixed
from vrpo.types import Pairs, Structure, Terms


@runtime_checkable
class Objective(Protocol):
    """A loss to minimise: the mean over the structure's items (pairs, lists, labels, rows), in float64."""

    def __call__(self, terms: Terms, structure: Any) -> Float[Tensor, ""]: ...


def dpo(terms: Terms, pairs: Pairs, beta: float = 0.2) -> Float[Tensor, ""]:
    """DPO on evidence lower bounds, whole: -log sigmoid(beta * h), h = D(y_w) - D(y_l) (Eq. 7-8 of arXiv 2505.19223).

    D(y) = B_policy(y) - B_reference(y), in nats, on shared draws. The trainer composes the same from leaves, of which
    every other loss exchanges one: `pairwise.Preference(Sigmoid(), Constant(beta))`, or `vrpo.DPO(beta)`.
    """
    ratio = (terms.policy.double() - terms.reference[:, 0].double()).sum(-1)
    margin = ratio[pairs.chosen] - ratio[pairs.rejected]
    return -logsigmoid(beta * margin).mean()


@runtime_checkable
class ItemObjective(Objective, Protocol):
    """An objective that also says the loss of each item."""

    def items(self, terms: Terms, structure: Any) -> Float[Tensor, " M"]: ...


def mean(items: Float[Tensor, " M"]) -> Float[Tensor, ""]:
    """0 of no items: a process may have none, where others have some."""
    return items.sum() / max(len(items), 1)


def weighted(values: Float[Tensor, " M"], weight: Float[Tensor, " M"] | None) -> Float[Tensor, " M"]:
    return values if weight is None else values * weight


@dataclass(frozen=True)
class WeightedSum:
    """A weighted sum of objectives on the same draws: VRPO's DPO + 0.05 * SFT."""

    parts: tuple[tuple[float, ItemObjective], ...]

    def items(self, terms: Terms, structure: Structure) -> Float[Tensor, " M"]:
        losses = [weight * part.items(terms, structure) for weight, part in self.parts]
        return torch.stack(losses).sum(0)

    def __call__(self, terms: Terms, structure: Structure) -> Float[Tensor, ""]:
        losses = [weight * part(terms, structure) for weight, part in self.parts]
        return torch.stack(losses).sum()


@dataclass(frozen=True)
class Mixture:
    """Multi-DPO: sum_k w_k * (the loss against reference k alone), instead of one loss against a pool of references.

    Raises:
        ValueError: there are not as many references as weights.
    """

    inner: ItemObjective
    weights: Fixed = EQUAL

    def items(self, terms: Terms, structure: Structure) -> Float[Tensor, " M"]:
        number = terms.reference.shape[1]
        alone = [replace(terms, reference=terms.reference[:, k : k + 1]) for k in range(number)]
        losses = torch.stack([self.inner.items(each, structure) for each in alone])
        weights = self.weights(losses.new_zeros(1, number), structure)
        return (weights.T * losses).sum(0)

    def __call__(self, terms: Terms, structure: Structure) -> Float[Tensor, ""]:
        return mean(self.items(terms, structure))
