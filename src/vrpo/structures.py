"""What is compared or imitated, beside pairs: rows, ranked lists, labelled answers. All are index tensors into rows."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vrpo.types import Pairs, check_fields


@dataclass(frozen=True)
class Rows:
    """Rows to imitate: the structure of supervised fine-tuning. `length`: response tokens per row; `row`: those that
    are imitated; None: all."""

    length: Int[Tensor, " N"]
    row: Int[Tensor, " M"] | None = None

    def __post_init__(self) -> None:
        check_fields(self, length="int N", row="int M")

    @property
    def imitated(self) -> Int[Tensor, " M"]:
        return torch.arange(len(self.length), device=self.length.device) if self.row is None else self.row


@dataclass(frozen=True)
class Rankings:
    """Lists of answers, best first: `order[q]` are the rows of list q, -1 behind the last one. Every list has at least
    two, and no row is in two; `length` and `reward` as in `Pairs`, `weight` per list. Equal rewards are ties."""

    order: Int[Tensor, "Q A"]
    length: Int[Tensor, " N"]
    weight: Float[Tensor, " Q"] | None = None
    reward: Float[Tensor, " N"] | None = None

    def __post_init__(self) -> None:
        check_fields(self, order="int QA", length="int N", weight="float Q", reward="float N")

    @property
    def pairs(self) -> Pairs:
        """Every pair of a list that is not tied, better before worse; a list's pairs weigh as much as one pair.

        Raises:
            ValueError: all answers of a list are tied.
        """
        best, worst = torch.triu_indices(self.order.shape[1], self.order.shape[1], 1, device=self.order.device)
        chosen, rejected = self.order[:, best], self.order[:, worst]
        keep = rejected >= 0
        if self.reward is not None:
            keep = keep & (self.reward[chosen] != self.reward[rejected])
        if not bool(keep.any(-1).all()):
            tied = int((~keep.any(-1)).nonzero()[0])
            raise ValueError(f"list {tied} has no two answers of different reward: it prefers nothing, leave it out")
        weight = keep.to(torch.float64) / keep.sum(-1, keepdim=True)
        weight = weight if self.weight is None else weight * self.weight[:, None]
        item = torch.arange(len(self.order), device=self.order.device)[:, None].expand_as(keep)
        return Pairs(chosen[keep], rejected[keep], self.length, weight[keep], self.reward, item[keep])

    @property
    def imitated(self) -> Int[Tensor, " Q"]:
        """The best answer of each list."""
        return self.order[:, 0]

    @property
    def family(self) -> Int[Tensor, " N"]:
        """The list of each row."""
        family = torch.zeros_like(self.length)
        there = self.order >= 0
        number = torch.arange(len(self.order), device=self.order.device)[:, None].expand_as(self.order)
        return family.index_put((self.order[there],), number[there])


@dataclass(frozen=True)
class Labels:
    """Single answers that are desirable or not: label m is about row `row[m]`; `weight` per label, as in `Pairs`.

    `mismatched` are further rows, answers to other prompts than their own, for a baseline that looks at what the policy
    says anywhere (`losses.KTO`); there may be none.
    """

    row: Int[Tensor, " M"]
    desirable: Bool[Tensor, " M"]
    mismatched: Int[Tensor, " Q"]
    length: Int[Tensor, " N"]
    weight: Float[Tensor, " M"] | None = None

    def __post_init__(self) -> None:
        check_fields(self, row="int M", desirable="bool M", mismatched="int Q", length="int N", weight="float M")

    @property
    def imitated(self) -> Int[Tensor, " _"]:
        """The desirable rows."""
        return self.row[self.desirable]
