"""Wrappers of an objective that take its slope elsewhere than at the estimate of all draws: against the noise of the
estimate in the loss's own curvature."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vrpo.losses.objective import Objective
from vrpo.types import Structure, Terms


def _folds(terms: Terms, num_groups: int) -> Int[Tensor, "N K"]:
    """Which of `num_groups` independent parts each draw is in: consecutive groups of draws, as many in each.

    Raises:
        ValueError: the draws' groups do not form so many parts.
    """
    groups = int(terms.group.max()) + 1
    if groups % num_groups:
        raise ValueError(
            f"{groups} independent groups of draws do not form num_groups = {num_groups} parts of equal size: raise "
            "num_times, or the plan's own num_groups"
        )
    return torch.where(terms.group < 0, num_groups, terms.group // (groups // num_groups))


def _without(terms: Terms, fold: Int[Tensor, "N K"], part: int, num_groups: int) -> Terms:
    """The terms of the other parts, scaled by G / (G - 1) so that their sum estimates the same bound; 0 for `part`.

    Reference terms are left out likewise if they are as many as the policy's; others are kept whole.
    """
    factor = (fold != part).double() * (num_groups / (num_groups - 1))
    both = terms.reference.shape[-1] == terms.policy.shape[-1]
    return Terms(terms.policy * factor, terms.reference * factor[:, None] if both else terms.reference, terms.group)


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

    Args:
        num_groups: the plan's number of independent groups, or a divisor of it.
    """

    inner: Objective
    num_groups: int

    def __post_init__(self) -> None:
        _check_groups(self.num_groups)

    def __call__(self, terms: Terms, structure: Structure) -> Float[Tensor, ""]:
        fixed = Terms(terms.policy.detach(), terms.reference, terms.group)
        fold = _folds(terms, self.num_groups)
        slope = torch.zeros_like(fixed.policy)
        for part in range(self.num_groups):
            left = _without(fixed, fold, part, self.num_groups)
            slope = torch.where(fold == part, self._slope(left, structure), slope)
        surrogate = (slope * terms.policy).sum()
        return self.inner(fixed, structure) + (surrogate - surrogate.detach())

    def _slope(self, terms: Terms, structure: Structure) -> Float[Tensor, "N K"]:
        with torch.enable_grad():
            leaf = terms.policy.requires_grad_()
            (slope,) = torch.autograd.grad(self.inner(Terms(leaf, terms.reference, terms.group), structure), leaf)
        return slope


@dataclass(frozen=True)
class Jackknife:
    """`inner` with the first order of its bias removed: G * L(all) - (G - 1) / G * sum_g L(without g).

    E L(s^) = L(s) + a / G + O(1 / G^2) for G independent groups of draws; the a / G cancels (Quenouille 1956). The
    price is variance of order 1 / G^2, and a loss that may be negative. Differentiable as it stands.

    Args:
        num_groups: the plan's number of independent groups, or a divisor of it.
    """

    inner: Objective
    num_groups: int

    def __post_init__(self) -> None:
        _check_groups(self.num_groups)

    def __call__(self, terms: Terms, structure: Structure) -> Float[Tensor, ""]:
        count, fold = self.num_groups, _folds(terms, self.num_groups)
        without = [self.inner(_without(terms, fold, part, count), structure) for part in range(count)]
        return count * self.inner(terms, structure) - (count - 1) / count * torch.stack(without).sum()
