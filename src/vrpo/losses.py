"""Objectives: scalar functions of the terms of policy and reference, differentiable in the policy's.

Inside an objective: reference pool -> ratio -> (normaliser) -> margin -> temperature -> loss. The averaging over draws
(a sum of terms, 1/K being in the weights) comes BEFORE anything nonlinear: the loss of an estimate, never a mean of
per-draw losses.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from vrpo.types import Pairs, Structure


@runtime_checkable
class Objective(Protocol):
    """A loss to minimise: the mean over the structure's items (pairs, rows), in float64.

    `reference_terms` carries one column of draws per reference; its K may differ from the policy's, and R may be 0.
    """

    def __call__(
        self,
        policy_terms: Float[Tensor, "N K"],
        reference_terms: Float[Tensor, "N R J"],
        structure: Structure,
    ) -> Float[Tensor, ""]: ...


def log_ratio(policy_terms: Float[Tensor, "N K"], reference_terms: Float[Tensor, "N R J"]) -> Float[Tensor, " N"]:
    """D(y) = B_policy(y) - B_reference(y): a difference of bounds in nats, summed over tokens.

    With draws in common the terms differ draw by draw, and D is exactly 0 where policy and reference are equal.
    """
    if reference_terms.shape[1] != 1:
        raise ValueError(f"the log-ratio needs exactly one reference, not {reference_terms.shape[1]}")
    reference = reference_terms[:, 0]
    if reference.shape == policy_terms.shape:
        return (policy_terms - reference).sum(-1)
    return policy_terms.sum(-1) - reference.sum(-1)


def margin(ratio: Float[Tensor, " N"], pairs: Pairs) -> Float[Tensor, " P"]:
    """h = D(chosen) - D(rejected)."""
    return ratio[pairs.chosen] - ratio[pairs.rejected]


@dataclass(frozen=True)
class DPO:
    """DPO on evidence lower bounds, DPO-E: -log sigmoid(beta * h), h = D(y_w) - D(y_l) (Eq. 7-8 of arXiv 2505.19223).

    Given an unbiased margin, 0 <= E loss^ - loss <= Var(beta h^) / 8 (Jensen, and 1/4-smoothness).

    Args:
        beta: inverse temperature, > 0, acting on SUMMED scores. A beta tuned on length-averaged scores is far smaller
            in effect: 0.2 on a mean over 512 tokens is 0.0004 here.
    """

    beta: float = 0.2

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta must be positive, not {self.beta}")

    def __call__(
        self, policy_terms: Float[Tensor, "N K"], reference_terms: Float[Tensor, "N R J"], structure: Pairs
    ) -> Float[Tensor, ""]:
        return -logsigmoid(self.beta * margin(log_ratio(policy_terms, reference_terms), structure)).mean()


@dataclass(frozen=True)
class SFT:
    """Masked-diffusion supervised fine-tuning: -B(y) / L, mean over the imitated rows (the chosen ones, of pairs).

    The division by the length, which makes every row count alike, is that of LLaDA's SFT (Eq. 5 of arXiv 2502.09992).
    It is the only normaliser here: preference objectives use sums.
    """

    def __call__(
        self, policy_terms: Float[Tensor, "N K"], reference_terms: Float[Tensor, "N R J"], structure: Structure
    ) -> Float[Tensor, ""]:
        row = structure.imitated
        return -(policy_terms[row].sum(-1) / structure.length[row]).mean()


@dataclass(frozen=True)
class WeightedSum:
    """A weighted sum of objectives on the same draws: VRPO's DPO + 0.05 * SFT."""

    parts: tuple[tuple[float, Objective], ...]

    def __call__(
        self, policy_terms: Float[Tensor, "N K"], reference_terms: Float[Tensor, "N R J"], structure: Structure
    ) -> Float[Tensor, ""]:
        losses = [weight * part(policy_terms, reference_terms, structure) for weight, part in self.parts]
        return torch.stack(losses).sum()


def _without(terms: Float[Tensor, "... K"], group: int, num_groups: int) -> Float[Tensor, "... K"]:
    """The terms of the other groups, scaled by G / (G - 1) so that their sum estimates the same bound; 0 for `group`.

    Draws are arranged group after group, K / G to each. G must be the plan's own number of independent groups, or a
    divisor of it: an objective sees no groups and cannot tell, and part of a dependent group estimates nothing.
    """
    if terms.shape[-1] % num_groups:
        raise ValueError(f"{terms.shape[-1]} draws do not form num_groups = {num_groups} groups of equal size")
    factor = terms.new_full((num_groups,), num_groups / (num_groups - 1))
    factor[group] = 0
    return terms * factor.repeat_interleave(terms.shape[-1] // num_groups)


def _check_groups(num_groups: int) -> None:
    if num_groups < 2:
        raise ValueError(f"num_groups must be at least 2, not {num_groups}: something must be left to leave out")


@dataclass(frozen=True)
class CrossFit:
    """`inner`, with the slope of each group of draws taken from the other groups: a gradient free of their covariance.

    The value is inner's, of all draws. Its gradient is sum_g inner'(s without g) * grad s_g, where s without g is the
    mean of the other groups: factors of a product that share no draw, so that E gradient = E[slope] * grad E[s] when
    groups are independent. inner's own gradient adds Cov(slope, grad s). Ours; cross-fitting is that of Chernozhukov et
    al. 2018. Not the gradient of its value: finite differences disagree, and must.

    Reference terms are left out likewise if they are as many as the policy's; others are kept whole.
    """

    inner: Objective
    num_groups: int

    def __post_init__(self) -> None:
        _check_groups(self.num_groups)

    def __call__(
        self, policy_terms: Float[Tensor, "N K"], reference_terms: Float[Tensor, "N R J"], structure: Structure
    ) -> Float[Tensor, ""]:
        fixed = policy_terms.detach()
        value = self.inner(fixed, reference_terms, structure)
        slopes = [self._slope(fixed, reference_terms, structure, group) for group in range(self.num_groups)]
        surrogate = (torch.stack(slopes).sum(0) * policy_terms).sum()
        return value + (surrogate - surrogate.detach())

    def _slope(
        self, policy_terms: Float[Tensor, "N K"], reference_terms: Float[Tensor, "N R J"], structure: Structure, g: int
    ) -> Float[Tensor, "N K"]:
        """inner's slope without group g, for the draws of group g; 0 for the others."""
        left = _without(policy_terms, g, self.num_groups)
        if reference_terms.shape[-1] == policy_terms.shape[-1]:
            reference_terms = _without(reference_terms, g, self.num_groups)
        with torch.enable_grad():
            leaf = left.requires_grad_()
            (slope,) = torch.autograd.grad(self.inner(leaf, reference_terms, structure), leaf)
        own = torch.arange(self.num_groups, device=slope.device) == g
        return slope * own.repeat_interleave(slope.shape[-1] // self.num_groups)


@dataclass(frozen=True)
class Jackknife:
    """`inner` with the first order of its bias removed: G * L(all) - (G - 1) / G * sum_g L(without g).

    E L(s^) = L(s) + a / G + O(1 / G^2) for G independent groups of draws; the a / G cancels (Quenouille 1956). The
    price is variance of order 1 / G^2, and a loss that may be negative. Differentiable as it stands.

    Reference terms are left out likewise if they are as many as the policy's; others are kept whole.
    """

    inner: Objective
    num_groups: int

    def __post_init__(self) -> None:
        _check_groups(self.num_groups)

    def __call__(
        self, policy_terms: Float[Tensor, "N K"], reference_terms: Float[Tensor, "N R J"], structure: Structure
    ) -> Float[Tensor, ""]:
        count = self.num_groups
        together = reference_terms.shape[-1] == policy_terms.shape[-1]
        without = [
            self.inner(
                _without(policy_terms, group, count),
                _without(reference_terms, group, count) if together else reference_terms,
                structure,
            )
            for group in range(count)
        ]
        everything = self.inner(policy_terms, reference_terms, structure)
        return count * everything - (count - 1) / count * torch.stack(without).sum()
