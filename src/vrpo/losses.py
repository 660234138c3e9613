"""Objectives: scalar functions of the terms of policy and reference, differentiable in the policy's.

Inside an objective: reference pool -> ratio -> (normaliser) -> margin -> temperature -> loss. The averaging over draws
(a sum of terms, 1/K being in the weights) comes BEFORE anything nonlinear: the loss of an estimate, never a mean of
per-draw losses. What each loss does with the noise of the estimate: docs/losses.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from vrpo.pair_losses import PairLoss, Sigmoid
from vrpo.pools import SINGLE, Pool, bounds
from vrpo.temperature import Constant, Temperature
from vrpo.types import Labels, Pairs, Rankings, Structure

NEVER = -1e300  # the score of an answer that is not there; finite, so that no difference of two is NaN


@runtime_checkable
class Objective(Protocol):
    """A loss to minimise: the mean over the structure's items (pairs, lists, labels, rows), in float64.

    `reference_terms` carries one column of draws per reference; its K may differ from the policy's, and R may be 0.
    """

    def __call__(
        self,
        policy_terms: Float[Tensor, "N K"],
        reference_terms: Float[Tensor, "N R J"],
        structure: Any,
    ) -> Float[Tensor, ""]: ...


@runtime_checkable
class ItemObjective(Objective, Protocol):
    """An objective that also says the loss of each item."""

    def items(
        self, policy_terms: Float[Tensor, "N K"], reference_terms: Float[Tensor, "N R J"], structure: Any
    ) -> Float[Tensor, " M"]: ...


@dataclass(frozen=True)
class Preference:
    """A loss of pairs on evidence lower bounds: pool -> ratio -> (per token) -> margin -> temperature -> loss.

    On `Rankings`: of all pairs of a list, which together count as one. Given an unbiased margin and a constant beta,
    0 <= E loss^ - loss <= Var(beta h^) / 8 for `Sigmoid` (Jensen, and 1/4-smoothness).

    Args:
        temperature: beta, acting on SUMMED scores unless `per_token`. A beta tuned on length-averaged scores is far
            smaller in effect: 0.2 on a mean over 512 tokens is 0.0004 here.
        per_token: divide each answer's log-ratio by its response tokens.
    """

    loss: PairLoss
    temperature: Temperature
    pool: Pool = SINGLE
    per_token: bool = False

    def values(
        self, policy_terms: Float[Tensor, "N K"], reference_terms: Float[Tensor, "N R J"], pairs: Pairs
    ) -> Float[Tensor, " N"]:
        """What the loss compares: the log-ratio of each row, per token if so."""
        value = self.pool(policy_terms, reference_terms, pairs)
        return value / pairs.length if self.per_token else value

    def betas(self, structure: Pairs | Rankings) -> float | Float[Tensor, " P"]:
        """The beta of each pair."""
        return self.temperature(structure.pairs)

    def items(
        self,
        policy_terms: Float[Tensor, "N K"],
        reference_terms: Float[Tensor, "N R J"],
        structure: Pairs | Rankings,
    ) -> Float[Tensor, " M"]:
        """The loss of each pair or list, times its weight."""
        pairs = structure.pairs
        value = self.values(policy_terms, reference_terms, pairs)
        each = _weighted(self.loss(value[pairs.chosen], value[pairs.rejected], self.temperature(pairs)), pairs.weight)
        if pairs.item is None:
            return each
        return each.new_zeros(int(pairs.item.max()) + 1 if len(pairs.item) else 0).index_add(0, pairs.item, each)

    def __call__(
        self,
        policy_terms: Float[Tensor, "N K"],
        reference_terms: Float[Tensor, "N R J"],
        structure: Pairs | Rankings,
    ) -> Float[Tensor, ""]:
        return _mean(self.items(policy_terms, reference_terms, structure))


def _mean(items: Float[Tensor, " M"]) -> Float[Tensor, ""]:
    """0 of no items: a process may have none, where others have some."""
    return items.sum() / max(len(items), 1)


def DPO(beta: float = 0.2) -> Preference:
    """DPO on evidence lower bounds, DPO-E: -log sigmoid(beta * h), h = D(y_w) - D(y_l), the VRPO loss (Eq. 7-8 of arXiv
    2505.19223)."""
    return Preference(Sigmoid(), Constant(beta))


def _unchanged(sums: Float[Tensor, " 2"]) -> Float[Tensor, " 2"]:
    return sums


@dataclass(frozen=True)
class KTO:
    """lambda * (1 - sigmoid(+-beta * (D - z0))) of single answers, + for desirable ones (arXiv 2402.01306).

    z0, without gradient, stands for what the policy has moved anywhere. `mismatched`: max(0, mean D of answers to other
    prompts), as in the paper and in TRL. `batch_mean`: the mean D of the batch itself, which costs no further rows
    (ELBO-KTO, arXiv 2510.23658). Either is a mean over one call's rows and over all processes, so the loss depends on
    what is batched together.

    Args:
        over_processes: adds a tensor up over processes.
    """

    temperature: Temperature
    pool: Pool = SINGLE
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    baseline: str = "mismatched"
    over_processes: Callable[[Float[Tensor, " 2"]], Float[Tensor, " 2"]] = _unchanged

    def __post_init__(self) -> None:
        if not (0 <= self.desirable_weight < inf and 0 <= self.undesirable_weight < inf):
            raise ValueError("desirable_weight and undesirable_weight must not be negative, and finite")
        if self.baseline not in ("mismatched", "batch_mean"):
            raise ValueError(f"baseline (kto_baseline) must be mismatched or batch_mean, not {self.baseline!r}")

    def values(
        self, policy_terms: Float[Tensor, "N K"], reference_terms: Float[Tensor, "N R J"], structure: Labels
    ) -> Float[Tensor, " N"]:
        """What the loss is about: the log-ratio of each row."""
        return self.pool(policy_terms, reference_terms, structure)

    def items(
        self, policy_terms: Float[Tensor, "N K"], reference_terms: Float[Tensor, "N R J"], structure: Labels
    ) -> Float[Tensor, " M"]:
        """The loss of each label, times its weight."""
        ratio = self.values(policy_terms, reference_terms, structure)
        gain = ratio[structure.row] - self.zero(ratio.detach(), structure)
        gain = torch.where(structure.desirable, gain, -gain)
        side = ratio.new_tensor([self.undesirable_weight, self.desirable_weight])[structure.desirable.long()]
        return _weighted(side * (-self.temperature(structure) * gain).sigmoid(), structure.weight)

    def zero(self, ratio: Float[Tensor, " N"], structure: Labels) -> Float[Tensor, ""]:
        """z0.

        Raises:
            ValueError: it is the mean over mismatched answers, and there are none; or over the batch, and there is one.
        """
        mean = self.baseline == "batch_mean"
        values = ratio[structure.row if mean else structure.mismatched]
        total, count = self.over_processes(torch.stack([values.sum(), values.new_tensor(float(len(values)))]))
        if mean and count < 2:
            raise ValueError(
                "kto_baseline=batch_mean needs two labels: compared with itself, an answer teaches nothing"
            )
        if not count:
            raise ValueError("kto_baseline=mismatched needs answers to other prompts, and the batch has none")
        return total / count if mean else (total / count).clamp(min=0)

    def __call__(
        self, policy_terms: Float[Tensor, "N K"], reference_terms: Float[Tensor, "N R J"], structure: Labels
    ) -> Float[Tensor, ""]:
        return _mean(self.items(policy_terms, reference_terms, structure))


@dataclass(frozen=True)
class PlackettLuce:
    """-log of the probability that answers drawn without replacement, by exp(beta D), come out in the given order
    (DPO's Appendix A.3, arXiv 2305.18290). A sum over the places of a list; of two answers it is DPO's loss."""

    temperature: Temperature
    pool: Pool = SINGLE

    def values(
        self, policy_terms: Float[Tensor, "N K"], reference_terms: Float[Tensor, "N R J"], structure: Any
    ) -> Float[Tensor, " N"]:
        """What the loss is about: the log-ratio of each row."""
        return self.pool(policy_terms, reference_terms, structure)

    def betas(self, structure: Rankings) -> float | Float[Tensor, " P"]:
        """The beta of each pair of a list: its list's."""
        beta = self.temperature(structure)
        return beta[structure.pairs.item] if isinstance(beta, Tensor) else beta

    def items(
        self, policy_terms: Float[Tensor, "N K"], reference_terms: Float[Tensor, "N R J"], structure: Rankings
    ) -> Float[Tensor, " Q"]:
        """The loss of each list, times its weight; ties are in the order given."""
        beta, there = self.temperature(structure), structure.order >= 0
        value = self.values(policy_terms, reference_terms, structure)[structure.order.clamp(min=0)]
        score = (beta[:, None] if isinstance(beta, Tensor) else beta) * value
        left = score.masked_fill(~there, NEVER).flip(-1).logcumsumexp(-1).flip(-1)  # of the answers not yet drawn
        return _weighted((left - score).where(there, 0.0).sum(-1), structure.weight)

    def __call__(
        self, policy_terms: Float[Tensor, "N K"], reference_terms: Float[Tensor, "N R J"], structure: Rankings
    ) -> Float[Tensor, ""]:
        return _mean(self.items(policy_terms, reference_terms, structure))


@dataclass(frozen=True)
class SFT:
    """Masked-diffusion supervised fine-tuning: -B(y) / L, mean over the imitated rows (the chosen ones, of pairs), each
    times the weight of its pair, list or label.

    The division by the length, which makes every row count alike, is that of LLaDA's SFT (Eq. 5 of arXiv 2502.09992).
    Labels count all, the undesirable ones with nothing to imitate.
    """

    def items(
        self, policy_terms: Float[Tensor, "N K"], reference_terms: Float[Tensor, "N R J"], structure: Structure
    ) -> Float[Tensor, " M"]:
        each = -bounds(policy_terms) / structure.length
        if isinstance(structure, Labels):
            return _weighted(each[structure.row] * structure.desirable, structure.weight)
        imitated = each[structure.imitated]
        return _weighted(imitated, structure.weight) if isinstance(structure, Pairs | Rankings) else imitated

    def __call__(
        self, policy_terms: Float[Tensor, "N K"], reference_terms: Float[Tensor, "N R J"], structure: Structure
    ) -> Float[Tensor, ""]:
        return _mean(self.items(policy_terms, reference_terms, structure))


@dataclass(frozen=True)
class WeightedSum:
    """A weighted sum of objectives on the same draws: VRPO's DPO + 0.05 * SFT."""

    parts: tuple[tuple[float, ItemObjective], ...]

    def items(
        self, policy_terms: Float[Tensor, "N K"], reference_terms: Float[Tensor, "N R J"], structure: Structure
    ) -> Float[Tensor, " M"]:
        losses = [weight * part.items(policy_terms, reference_terms, structure) for weight, part in self.parts]
        return torch.stack(losses).sum(0)

    def __call__(
        self, policy_terms: Float[Tensor, "N K"], reference_terms: Float[Tensor, "N R J"], structure: Structure
    ) -> Float[Tensor, ""]:
        losses = [weight * part(policy_terms, reference_terms, structure) for weight, part in self.parts]
        return torch.stack(losses).sum()


@dataclass(frozen=True)
class Mixture:
    """Multi-DPO: sum_k w_k * (the loss against reference k alone), instead of one loss against a pool of references.

    Raises:
        ValueError: there are not as many references as weights.
    """

    inner: ItemObjective
    weights: tuple[float, ...]

    def items(
        self, policy_terms: Float[Tensor, "N K"], reference_terms: Float[Tensor, "N R J"], structure: Structure
    ) -> Float[Tensor, " M"]:
        if reference_terms.shape[1] != len(self.weights):
            raise ValueError(f"{len(self.weights)} weights for {reference_terms.shape[1]} references")
        alone = [reference_terms[:, k : k + 1] for k in range(len(self.weights))]
        losses = [self.inner.items(policy_terms, reference, structure) for reference in alone]
        return (losses[0].new_tensor(self.weights)[:, None] * torch.stack(losses)).sum(0)

    def __call__(
        self, policy_terms: Float[Tensor, "N K"], reference_terms: Float[Tensor, "N R J"], structure: Structure
    ) -> Float[Tensor, ""]:
        return _mean(self.items(policy_terms, reference_terms, structure))


def _weighted(values: Float[Tensor, " M"], weight: Float[Tensor, " M"] | None) -> Float[Tensor, " M"]:
    return values if weight is None else values * weight
