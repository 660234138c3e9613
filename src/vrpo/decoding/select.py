"""What one step writes: a token for every hidden position, how sure it is, and which of them to keep.

What lives here: arithmetic on logits, with randomness only from a passed `torch.Generator`. What does not: batches,
blocks, prompts (canvas.py, flight.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

MEASURES = ("low_confidence", "margin", "entropy", "random")


def quotas(count: int, steps: int) -> list[int]:
    """How many of `count` hidden tokens each step writes: equal shares, the remainder to the first steps."""
    share, remainder = divmod(count, steps)
    return [share + (step < remainder) for step in range(steps)]


def guided(
    conditional: Float[Tensor, "S V"], unconditional: Float[Tensor, "S V"], scale: float
) -> Float[Tensor, "S V"]:
    """Classifier-free guidance on logits: u + (scale + 1)(c - u), so 0 is no guidance and 0.5 weighs c by 1.5."""
    return unconditional + (scale + 1) * (conditional - unconditional)


@dataclass(frozen=True)
class Proposer:
    """Token and confidence for each hidden position, as in the official LLaDA and Dream samplers (float64 throughout).

    Token: argmax over v of logit_v + temperature * G_v, G_v = -log(-log U_v) (Gumbel-max: a draw from
    softmax(logits / temperature)); the argmax of the logits at temperature 0. Confidence, of p = softmax(logits) at
    temperature 1 whatever `temperature` is, by `measure`: "low_confidence" the probability of that token; "margin" the
    highest probability minus the second; "entropy" sum_v p_v log p_v; "random" uniform noise.

    `banned` tokens are never proposed, nor are ids from `limit` on, for which there is no token, except those of
    `beyond`; `demoted` ones may be, with confidence 0, and the other tokens are renormalised
    without them. Not to be confused with a confidence of -inf: a demoted proposal can still be kept, last.
    """

    temperature: float
    measure: str
    banned: tuple[int, ...]
    demoted: tuple[int, ...]
    limit: int | None = None  # None: every row of the embedding is a token
    beyond: tuple[int, ...] = ()

    def __call__(
        self, logits: Float[Tensor, "S V"], generator: torch.Generator | None
    ) -> tuple[Int[Tensor, " S"], Float[Tensor, " S"]]:
        logits = _without(logits.double(), (*self.banned, *self._no_tokens(logits.shape[1])))
        token = _noised(logits, self.temperature, generator).argmax(-1)
        if self.measure == "random":
            return token, torch.rand(token.shape, generator=generator, dtype=torch.float64, device=token.device)
        probability = _without(logits, self.demoted).softmax(-1)
        if self.measure == "margin":
            best, second = probability.topk(2).values.unbind(-1)
            return token, best - second
        if self.measure == "entropy":
            return token, -torch.special.entr(probability).sum(-1)
        return token, probability.gather(1, token[:, None])[:, 0]

    def _no_tokens(self, rows: int) -> Iterator[int]:
        """Ids that the embedding has a row for, and the tokenizer no token."""
        return (row for row in range(rows if self.limit is None else self.limit, rows) if row not in self.beyond)


@runtime_checkable
class Commit(Protocol):
    """How many of a step's proposals are kept: a leaf owns the rule, and says when a block is done."""

    def kept(self, confidence: Float[Tensor, "B L"], step: Int[Tensor, " B"]) -> Bool[Tensor, "B L"]:
        """`confidence` is -inf where nothing can be written; `step` counts the steps of each row's block."""

    def done(self, step: Int[Tensor, " B"], left: Bool[Tensor, "B L"]) -> Bool[Tensor, " B"]:
        """Whether the block of each row is complete after so many steps, with these positions of it still hidden."""


@dataclass(frozen=True)
class Quota:
    """Step k of a block keeps the `shares[k]` most confident: the official rule."""

    shares: tuple[int, ...]

    def kept(self, confidence: Float[Tensor, "B L"], step: Int[Tensor, " B"]) -> Bool[Tensor, "B L"]:
        share = torch.tensor(self.shares, device=step.device)[step]
        return (rank(confidence) < share[:, None]) & confidence.isfinite()

    def done(self, step: Int[Tensor, " B"], left: Bool[Tensor, "B L"]) -> Bool[Tensor, " B"]:
        return (step == len(self.shares)) | ~left.any(-1)


@dataclass(frozen=True)
class Threshold:
    """Every proposal at least this confident, and always the most confident one (Fast-dLLM, arXiv 2505.22618)."""

    level: float

    def kept(self, confidence: Float[Tensor, "B L"], step: Int[Tensor, " B"]) -> Bool[Tensor, "B L"]:
        return ((confidence >= self.level) | (rank(confidence) == 0)) & confidence.isfinite()

    def done(self, step: Int[Tensor, " B"], left: Bool[Tensor, "B L"]) -> Bool[Tensor, " B"]:
        return ~left.any(-1)


def rank(confidence: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    """0 for the best column of a row; among equals the leftmost first, so that padding cannot break ties."""
    order = confidence.argsort(dim=-1, descending=True, stable=True)
    place = torch.arange(confidence.shape[1], device=confidence.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, place)


def _noised(
    logits: Float[Tensor, "S V"], temperature: float, generator: torch.Generator | None
) -> Float[Tensor, "S V"]:
    if temperature == 0:
        return logits
    uniform = torch.rand(logits.shape, generator=generator, dtype=torch.float64, device=logits.device)
    return logits - temperature * (-uniform.log()).log()


def _without(logits: Float[Tensor, "S V"], tokens: tuple[int, ...]) -> Float[Tensor, "S V"]:
    if not tokens:
        return logits
    return logits.index_fill(1, torch.tensor(tokens, device=logits.device), -torch.inf)
