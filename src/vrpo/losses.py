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
