"""Losses of labelled answers, ranked lists and rows to imitate."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vrpo.losses.objective import mean, weighted
from vrpo.losses.pools import SINGLE, Pool, bounds
from vrpo.losses.temperature import Temperature
from vrpo.structures import Labels, Rankings
from vrpo.types import Pairs, Structure, Terms

NEVER = -1e300  # the score of an answer that is not there; finite, so that no difference of two is NaN


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
            raise ValueError(f"baseline must be mismatched or batch_mean, not {self.baseline!r}")

    def values(self, terms: Terms, structure: Labels) -> Float[Tensor, " N"]:
        """What the loss is about: the log-ratio of each row."""
        return self.pool(terms, structure)

    def items(self, terms: Terms, structure: Labels) -> Float[Tensor, " M"]:
        """The loss of each label, times its weight."""
        ratio = self.values(terms, structure)
        gain = ratio[structure.row] - self.zero(ratio.detach(), structure)
        gain = torch.where(structure.desirable, gain, -gain)
        side = ratio.new_tensor([self.undesirable_weight, self.desirable_weight])[structure.desirable.long()]
        return weighted(side * (-self.temperature(structure) * gain).sigmoid(), structure.weight)

    def zero(self, ratio: Float[Tensor, " N"], structure: Labels) -> Float[Tensor, ""]:
        """z0.

        Raises:
            ValueError: it is the mean over mismatched answers, and there are none; or over the batch, and there is one.
        """
        mean = self.baseline == "batch_mean"
        values = ratio[structure.row if mean else structure.mismatched]
        total, count = self.over_processes(torch.stack([values.sum(), values.new_tensor(float(len(values)))]))
        if mean and count < 2:
            raise ValueError("baseline=batch_mean needs two labels: compared with itself, an answer teaches nothing")
        if not count:
            raise ValueError("baseline=mismatched needs answers to other prompts, and the batch has none")
        return total / count if mean else (total / count).clamp(min=0)

    def __call__(self, terms: Terms, structure: Labels) -> Float[Tensor, ""]:
        return mean(self.items(terms, structure))


@dataclass(frozen=True)
class PlackettLuce:
    """-log of the probability that answers drawn without replacement, by exp(beta D), come out in the given order
    (DPO's Appendix A.3, arXiv 2305.18290). A sum over the places of a list; of two answers it is DPO's loss."""

    temperature: Temperature
    pool: Pool = SINGLE

    def values(self, terms: Terms, structure: Any) -> Float[Tensor, " N"]:
        """What the loss is about: the log-ratio of each row."""
        return self.pool(terms, structure)

    def betas(self, structure: Rankings) -> float | Float[Tensor, " P"]:
        """The beta of each pair of a list: its list's."""
        beta = self.temperature(structure)
        return beta[structure.pairs.item] if isinstance(beta, Tensor) else beta

    def items(self, terms: Terms, structure: Rankings) -> Float[Tensor, " Q"]:
        """The loss of each list, times its weight; ties are in the order given."""
        beta, there = self.temperature(structure), structure.order >= 0
        value = self.values(terms, structure)[structure.order.clamp(min=0)]
        score = (beta[:, None] if isinstance(beta, Tensor) else beta) * value
        left = score.masked_fill(~there, NEVER).flip(-1).logcumsumexp(-1).flip(-1)  # of the answers not yet drawn
        return weighted((left - score).where(there, 0.0).sum(-1), structure.weight)

    def __call__(self, terms: Terms, structure: Rankings) -> Float[Tensor, ""]:
        return mean(self.items(terms, structure))


@dataclass(frozen=True)
class SFT:
    """Masked-diffusion supervised fine-tuning: -B(y) / L, mean over the imitated rows (the chosen ones, of pairs), each
    times the weight of its pair, list or label.

    The division by the length, which makes every row count alike, is that of LLaDA's SFT (Eq. 5 of arXiv 2502.09992).
    Labels count all, the undesirable ones with nothing to imitate.
    """

    def items(self, terms: Terms, structure: Structure) -> Float[Tensor, " M"]:
        each = -bounds(terms.policy) / structure.length
        if isinstance(structure, Labels):
            return weighted(each[structure.row] * structure.desirable, structure.weight)
        imitated = each[structure.imitated]
        return weighted(imitated, structure.weight) if isinstance(structure, Pairs | Rankings) else imitated

    def __call__(self, terms: Terms, structure: Structure) -> Float[Tensor, ""]:
        return mean(self.items(terms, structure))
