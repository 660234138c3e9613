"""Wrappers of an objective that take its slope elsewhere than at the estimate of all draws: against the noise of the
estimate in the loss's own curvature."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vrpo.losses import Objective
from vrpo.types import Structure


def _without(terms: Float[Tensor, "... K"], group: int, num_groups: int) -> Float[Tensor, "... K"]:
    """The terms of the other groups, scaled by G / (G - 1) so that their sum estimates the same bound; 0 for `group`.

    Draws are arranged group after group, K / G to each. G must be the plan's own number of independent groups, or a
    divisor of it: an objective sees no groups and cannot tell, and part of a dependent group estimates nothing.
    """
    if terms.shape[-1] % num_groups:
        raise ValueError(f"{terms.shape[-1]} draws do not form num_groups = {num_groups} groups of equal size")
    factor = torch.full((num_groups,), num_groups / (num_groups - 1), dtype=torch.float64, device=terms.device)
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
