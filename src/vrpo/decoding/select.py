"""What one step writes: a token for every hidden position, and which of them to keep.

What lives here: arithmetic on logits, with randomness only from a passed `torch.Generator`. What does not: batches,
blocks, prompts (canvas.py, decode.py).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


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
    """Token and confidence for each hidden position, as in the official LLaDA sampler (float64 throughout).

    Token: argmax over v of logit_v + temperature * G_v, G_v = -log(-log U_v) (Gumbel-max: a draw from
    softmax(logits / temperature)); the argmax of the logits at temperature 0. Confidence: the probability of that token
    under softmax(logits), at temperature 1 whatever `temperature` is; uniform noise if `at_random`.

    `banned` tokens are never proposed; `demoted` ones may be, with confidence 0, and the other tokens are renormalised
    without them. Not to be confused with a confidence of -inf: a demoted proposal can still be kept, last.
    """

    temperature: float
    at_random: bool
    banned: tuple[int, ...]
    demoted: tuple[int, ...]

    def __call__(
        self, logits: Float[Tensor, "S V"], generator: torch.Generator | None
    ) -> tuple[Int[Tensor, " S"], Float[Tensor, " S"]]:
        logits = _without(logits.double(), self.banned)
        token = _noised(logits, self.temperature, generator).argmax(-1)
        if self.at_random:
            return token, torch.rand(token.shape, generator=generator, dtype=torch.float64, device=token.device)
        probability = _without(logits, self.demoted).softmax(-1)
        return token, probability.gather(1, token[:, None])[:, 0]


def most_confident(confidence: Float[Tensor, "B L"], quota: int) -> Int[Tensor, "B {quota}"]:
    """The `quota` best columns of each row; among equals the leftmost, so that padding cannot break ties."""
    return confidence.argsort(dim=-1, descending=True, stable=True)[:, :quota]


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
