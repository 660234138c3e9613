"""The nouns of vrpo. Read this page first.

    rows -> Tokens -> Draws -> Estimate (terms) -> objective -> slope per term -> one draw at a time

Dimensions: N rows, K draws, R references, L positions, P pairs, Q lists, S scored positions, V vocabulary.

What lives here: values and the two protocols between rooms. What deliberately does not: any arithmetic on
probabilities (estimator.py), any randomness (draws.py), any knowledge of a model (models/) or of a text (data/).
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """Flat rows of token ids, one row per (prompt, response).

    `response` marks the positions that may be masked and that the bound is about; the prompt is what is attended and
    not response. `attention` is False on padding, which is neither attended, masked nor scored. `key` is the replay
    key of the row's randomness (`draws.draw_key`): equal keys and equal response lengths give equal draws, whatever
    the padding, the neighbours or the device. `slot` names the response positions in that randomness, each position by
    a number of its own; None: 0, 1, 2, ... Rows with equal keys have common random numbers at equal slots
    (`plans.Paired`).
    """

    ids: Int[Tensor, "N L"]
    response: Bool[Tensor, "N L"]
    attention: Bool[Tensor, "N L"]
    key: Int[Tensor, " N"]
    slot: Int[Tensor, "N L"] | None = None

    @property
    def length(self) -> Int[Tensor, " N"]:
        """Number of response positions per row."""
        return self.response.sum(-1)

    @property
    def size(self) -> Int[Tensor, " N"]:
        """What a row costs a call of the denoiser: its attended tokens."""
        return self.attention.sum(-1)

    def to(self, device: torch.device | str) -> "Tokens":
        slot = None if self.slot is None else self.slot.to(device)
        return Tokens(
            self.ids.to(device), self.response.to(device), self.attention.to(device), self.key.to(device), slot
        )


@dataclass(frozen=True)
class Draws:
    """All the randomness of an estimate, as a value.

    `masked` is what the denoiser does not see; `weight` is what is scored and how much, 0 = not scored, the 1/K of the
    Monte Carlo mean included, so an estimate is a plain sum. Nothing forces the two to coincide: enumeration, ragged
    budgets (surplus draws weigh 0), importance sampling and causal models (nothing
    masked, everything scored) are the same sum. Draws of a row that are statistically dependent share a `group`; -1
    marks a draw that is not in use.
    """

    masked: Bool[Tensor, "N K L"]
    weight: Float[Tensor, "N K L"]
    group: Int[Tensor, "N K"]

    @property
    def scored(self) -> Bool[Tensor, "N K L"]:
        return self.weight != 0

    @property
    def in_use(self) -> Bool[Tensor, "N K"]:
        """Which draws score anything."""
        return self.scored.any(-1)

    def only(self, keep: Bool[Tensor, "N K"]) -> "Draws":
        """These draws, of which all but some score nothing and so cost nothing."""
        return Draws(self.masked, self.weight * keep[..., None], self.group)

    def inputs(self, tokens: Tokens, items: Int[Tensor, "B 2"]) -> tuple[dict[str, Tensor], Float[Tensor, "B C"]]:
        """What a denoiser is called with for these (row, draw) items, and the weights of what it returns: one value per
        non-zero weight, row-major. Columns that no item attends to are cut off."""
        row, draw = items.unbind(1)
        column = tokens.attention[row].any(0).nonzero()
        cut = slice(int(column[0]), int(column[-1]) + 1)
        weight = self.weight[row, draw][:, cut]
        arguments = {
            "input_ids": tokens.ids[row][:, cut],
            "attention_mask": tokens.attention[row][:, cut],
            "masked": self.masked[row, draw][:, cut],
            "scored": weight != 0,
        }
        return arguments, weight


@runtime_checkable
class AnyTokens(Protocol):
    """What the core asks of rows. `Tokens` of masked diffusion; latents of continuous diffusion (docs/design.md)."""

    @property
    def size(self) -> Int[Tensor, " N"]: ...


@runtime_checkable
class AnyDraws(Protocol):
    """What the core asks of draws: how many, how they depend on each other, and what the denoiser is called with."""

    @property
    def group(self) -> Int[Tensor, "N K"]: ...

    @property
    def in_use(self) -> Bool[Tensor, "N K"]: ...

    def inputs(self, tokens: Any, items: Int[Tensor, "B 2"]) -> tuple[dict[str, Tensor], Float[Tensor, "B C"]]: ...


@dataclass(frozen=True)
class Estimate:
    """A Monte Carlo estimate of the evidence lower bound of each row, kept as its terms.

    terms_k = sum_i weight_ki * log p(y_i | what draw k left visible); the bound is their SUM, in nats, summed over
    tokens. Not to be confused with a log-likelihood (it is a lower bound) nor with a mean per token.
    """

    terms: Float[Tensor, "N K"]
    group: Int[Tensor, "N K"]

    @property
    def value(self) -> Float[Tensor, " N"]:
        """The estimated bound B(y | x) per row, in nats."""
        return self.terms.sum(-1)

    @property
    def standard_error(self) -> Float[Tensor, " N"]:
        """Square root of `group_variance`: what independent groups alone can say about the noise of `value`."""
        return group_variance(self.terms, self.group).sqrt()


def group_variance(terms: Float[Tensor, "N K"], group: Int[Tensor, "N K"]) -> Float[Tensor, " N"]:
    """Unbiased estimate of the variance of `terms.sum(-1)` when groups are independent and identically distributed.

    With S_g the sum of the terms of group g and G groups: Var = G / (G - 1) * sum_g (S_g - mean S)^2. Terms inside a
    group may depend on each other in any way.

    Raises:
        ValueError: a row has fewer than two groups, so its variance is not estimable.
    """
    in_use = group >= 0
    slot = group.clamp(min=0)
    sums = torch.zeros_like(terms).scatter_add(1, slot, terms * in_use)
    present = torch.zeros_like(terms).scatter_add(1, slot, in_use.to(terms.dtype)) > 0
    count = present.sum(-1)
    if bool((count < 2).any()):
        row = int((count < 2).nonzero()[0])
        raise ValueError(
            f"row {row} has {int(count[row])} independent group(s) of draws; a variance needs at least 2 "
            "(masks of one time, and the draws of one stratified or balanced group, are dependent: raise "
            "num_times, or num_groups)"
        )
    groups = count.to(terms.dtype)  # a quotient of integers would be float32
    deviation = (sums - sums.sum(-1, keepdim=True) / groups[:, None]) * present
    return groups / (groups - 1) * deviation.square().sum(-1)


@runtime_checkable
class Structure(Protocol):
    """Which rows an objective compares or imitates, with the facts it needs about them."""

    @property
    def length(self) -> Int[Tensor, " N"]: ...

    @property
    def imitated(self) -> Int[Tensor, " M"]: ...


@dataclass(frozen=True)
class Rows:
    """Rows to imitate: the structure of supervised fine-tuning. `length`: response tokens per row; `row`: those that
    are imitated; None: all."""

    length: Int[Tensor, " N"]
    row: Int[Tensor, " M"] | None = None

    @property
    def imitated(self) -> Int[Tensor, " M"]:
        return torch.arange(len(self.length), device=self.length.device) if self.row is None else self.row


@dataclass(frozen=True)
class Pairs:
    """Pair p prefers row `chosen[p]` to row `rejected[p]`; `length`: response tokens per row.

    `weight`: a factor on each pair's loss; None: 1. `reward`: a judge's verdict on each row, on the judge's own scale;
    None: there is none. `item`: which item of the batch the pair belongs to, where items are lists; None: each its own.
    """

    chosen: Int[Tensor, " P"]
    rejected: Int[Tensor, " P"]
    length: Int[Tensor, " N"]
    weight: Float[Tensor, " P"] | None = None
    reward: Float[Tensor, " N"] | None = None
    item: Int[Tensor, " P"] | None = None

    @property
    def pairs(self) -> "Pairs":
        return self

    @property
    def imitated(self) -> Int[Tensor, " P"]:
        """The rows that a supervised term imitates: the chosen ones."""
        return self.chosen

    @property
    def family(self) -> Int[Tensor, " N"]:
        """A number that rows have in common if they are of one pair, or of pairs that share a row: the terms of one
        family say nothing about the slopes of another."""
        family = torch.arange(len(self.length), device=self.length.device)
        while True:
            least = torch.minimum(family[self.chosen], family[self.rejected])
            rows, both = torch.cat([self.chosen, self.rejected]), torch.cat([least, least])
            joined = family.scatter_reduce(0, rows, both, "amin")
            if torch.equal(joined, family):
                return family
            family = joined


@dataclass(frozen=True)
class Rankings:
    """Lists of answers, best first: `order[q]` are the rows of list q, -1 behind the last one. Every list has at least
    two, and no row is in two; `length` and `reward` as in `Pairs`, `weight` per list. Equal rewards are ties."""

    order: Int[Tensor, "Q A"]
    length: Int[Tensor, " N"]
    weight: Float[Tensor, " Q"] | None = None
    reward: Float[Tensor, " N"] | None = None

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

    @property
    def imitated(self) -> Int[Tensor, " _"]:
        """The desirable rows."""
        return self.row[self.desirable]


@runtime_checkable
class Denoiser(Protocol):
    """A masked diffusion model, as the core sees it: log-probabilities of given tokens at given positions.

    The model replaces `masked` positions by its mask token, attends to `attention_mask` (True = real token) in both
    directions, and returns log p(input_ids_i | the rest) at the `scored` positions, row-major, at least in float32, so
    that logits over the vocabulary exist at scored positions only. Any module wrapper (DDP, FSDP, peft) of a denoiser
    is a denoiser, because everything happens inside its forward.
    """

    def __call__(
        self,
        *,
        input_ids: Int[Tensor, "B L"],
        attention_mask: Bool[Tensor, "B L"],
        masked: Bool[Tensor, "B L"],
        scored: Bool[Tensor, "B L"],
    ) -> Float[Tensor, " S"]: ...


@runtime_checkable
class Plan(Protocol):
    """A sampling plan: from rows (and, for plans that couple rows, their structure) to draws."""

    def __call__(self, tokens: Tokens, structure: Structure | None = None) -> Draws: ...
