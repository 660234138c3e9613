"""The nouns of vrpo, in the order in which a row meets them. Read this page first.

    rows -> Tokens -> Draws -> Estimate -> Terms -> objective(terms, structure) -> slope per term -> one draw at a time

Dimensions: N rows, K draws, R references, L positions, P pairs, S scored positions, V vocabulary.

What lives here: values and the protocols between rooms. What does not: randomness (draws.py), models (models/), text
(data/), structures other than pairs (structures.py).
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def check_fields(value: object, **wanted: str) -> None:
    """Check the tensors of a value: `ids="int NL"` says kind and dimensions, and equal letters are equal sizes.

    Raises:
        ValueError: a field that is not None is something else; names the field.
    """
    sizes: dict[str, int] = {}
    for name, said in wanted.items():
        part, (kind, letters) = getattr(value, name), said.split()
        right = isinstance(part, Tensor) and part.dim() == len(letters)
        if right:
            found = "bool" if part.dtype == torch.bool else "float" if part.is_floating_point() else "int"
            dims = zip(letters, part.shape, strict=True)
            right = found == kind and all(sizes.setdefault(letter, size) == size for letter, size in dims)
        if right or part is None:
            continue
        shape = ", ".join(str(sizes.get(letter, letter)) for letter in letters)
        found = f"{part.dtype} {tuple(part.shape)}" if isinstance(part, Tensor) else type(part).__name__
        raise ValueError(f"{type(value).__name__}.{name}: must be {kind} of shape ({shape}), not {found}")


@dataclass(frozen=True)
class Tokens:
    """Flat rows of token ids, one row per (prompt, response).

    `response` marks the positions that may be masked and that the bound is about. The prompt is what is attended and
    not response. `attention` is False on padding, which is neither attended, masked nor scored. `key` is the replay
    key of the row's randomness (`draws.draw_key`): equal keys and equal response lengths give equal draws, whatever
    the padding, the neighbours or the device. `slot` names the response positions in that randomness. None: 0, 1, 2,
    ... Rows with equal keys have common random numbers at equal slots (`plans.Paired`).
    """

    ids: Int[Tensor, "N L"]
    response: Bool[Tensor, "N L"]
    attention: Bool[Tensor, "N L"]
    key: Int[Tensor, " N"]
    slot: Int[Tensor, "N L"] | None = None

    def __post_init__(self) -> None:
        check_fields(self, ids="int NL", response="bool NL", attention="bool NL", key="int N", slot="int NL")

    @property
    def length(self) -> Int[Tensor, " N"]:
        """Number of response positions per row."""
        return self.response.sum(-1)

    @property
    def size(self) -> Int[Tensor, " N"]:
        """What a row costs a call of the denoiser: its attended tokens."""
        return self.attention.sum(-1)

    def to(self, device: torch.device | str) -> "Tokens":
        moved: Any = [None if part is None else part.to(device) for part in vars(self).values()]
        return Tokens(*moved)


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

    def __post_init__(self) -> None:
        check_fields(
            self, chosen="int P", rejected="int P", length="int N", weight="float P", reward="float N", item="int P"
        )

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
class Draws:
    """All the randomness of an estimate, as a value.

    `masked` is what the denoiser does not see; `weight` is what is scored and how much, 0 = not scored, the 1/K of the
    Monte Carlo mean included, so an estimate is a plain sum. Nothing forces the two to coincide: enumeration, ragged
    budgets (surplus draws weigh 0), importance sampling and causal models (nothing masked, everything scored) are the
    same sum. Draws of a row that are statistically dependent share a `group`; -1 marks a draw that is not in use.

    Weights are kept in float64, whatever they are given in.
    """

    masked: Bool[Tensor, "N K L"]
    weight: Float[Tensor, "N K L"]
    group: Int[Tensor, "N K"]

    def __post_init__(self) -> None:
        check_fields(self, masked="bool NKL", weight="float NKL", group="int NK")
        object.__setattr__(self, "weight", self.weight.to(torch.float64))

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
    def variance(self) -> Float[Tensor, " N"]:
        """Unbiased estimate of the variance of `value`, where groups are independent and identically distributed.

        With S_g the sum of the terms of group g and G groups: G / (G - 1) * sum_g (S_g - mean S)^2. Terms inside a
        group may depend on each other in any way.

        Raises:
            ValueError: a row has fewer than two groups, so its variance is not estimable.
        """
        in_use = self.group >= 0
        slot = self.group.clamp(min=0)
        sums = torch.zeros_like(self.terms).scatter_add(1, slot, self.terms * in_use)
        present = torch.zeros_like(self.terms).scatter_add(1, slot, in_use.to(self.terms.dtype)) > 0
        count = present.sum(-1)
        if bool((count < 2).any()):
            row = int((count < 2).nonzero()[0])
            raise ValueError(
                f"row {row} has {int(count[row])} independent group(s) of draws; a variance needs at least 2 (masks of "
                "one time, and the draws of one stratified or balanced group, are dependent: raise num_times, or "
                "num_groups)"
            )
        groups = count.to(self.terms.dtype)  # a quotient of integers would be float32
        deviation = (sums - sums.sum(-1, keepdim=True) / groups[:, None]) * present
        return groups / (groups - 1) * deviation.square().sum(-1)

    @property
    def standard_error(self) -> Float[Tensor, " N"]:
        """Square root of `variance`: what independent groups alone can say about the noise of `value`."""
        return self.variance.sqrt()


@dataclass(frozen=True)
class Terms:
    """What an objective sees: the terms of the policy and of R references, and how the draws depend on each other.

    `reference` carries one row of terms per reference. Its J may differ from K, and R may be 0. `group` is that of the
    policy's draws. An objective is differentiable in `policy`.
    """

    policy: Float[Tensor, "N K"]
    reference: Float[Tensor, "N R J"]
    group: Int[Tensor, "N K"]


@runtime_checkable
class Structure(Protocol):
    """Which rows an objective compares or imitates, with the facts it needs about them: `Pairs`, and structures.py."""

    @property
    def length(self) -> Int[Tensor, " N"]: ...

    @property
    def imitated(self) -> Int[Tensor, " M"]: ...


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


@runtime_checkable
class AnyTokens(Protocol):
    """What the core asks of rows: `Tokens` here, latents in continuous diffusion (docs/design.md)."""

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
