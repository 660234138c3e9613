"""Losses of a pair, each a function of the log-ratios of its two answers; u = beta * (chosen - rejected).

Begin with `objective.dpo`, which is one of them written out. What each does with the noise of an estimate:
docs/losses.md.
"""

from dataclasses import dataclass
from math import isfinite, log, log1p
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from vrpo.losses.objective import mean, weighted
from vrpo.losses.pools import SINGLE, Pool
from vrpo.losses.temperature import Constant, Temperature
from vrpo.structures import Rankings
from vrpo.types import Pairs, Terms

CERTAIN = -1e-12  # nats per token: a mean log-probability is taken as at most this, where odds still exist


@runtime_checkable
class PairLoss(Protocol):
    """A loss of each pair, from the log-ratios of its two answers (nats) and its beta."""

    def __call__(
        self, chosen: Float[Tensor, " P"], rejected: Float[Tensor, " P"], beta: float | Float[Tensor, " P"]
    ) -> Float[Tensor, " P"]: ...


@dataclass(frozen=True)
class Sigmoid:
    """-(1 - e) log sigmoid(u - gamma) - e log sigmoid(gamma - u): the Bradley-Terry model's.

    e = gamma = 0: DPO (arXiv 2305.18290). e > 0: conservative DPO, if a share e of the labels is wrong. With gamma, per
    token and without reference: SimPO (arXiv 2405.14734).
    """

    label_smoothing: float = 0.0
    gamma: float = 0.0

    def __post_init__(self) -> None:
        _check_smoothing(self.label_smoothing)
        if not isfinite(self.gamma):
            raise ValueError(f"gamma (simpo_gamma) must be finite, not {self.gamma}")

    def __call__(
        self, chosen: Float[Tensor, " P"], rejected: Float[Tensor, " P"], beta: float | Float[Tensor, " P"]
    ) -> Float[Tensor, " P"]:
        u = beta * (chosen - rejected) - self.gamma
        e = self.label_smoothing
        return -logsigmoid(u) if e == 0 else -(1 - e) * logsigmoid(u) - e * logsigmoid(-u)


@dataclass(frozen=True)
class Robust:
    """[-(1 - e) log sigmoid(u) + e log sigmoid(-u)] / (1 - 2e): its mean over labels, a share e of which is flipped, is
    DPO's on the true ones (arXiv 2403.00409). Has no lower bound for e > 0."""

    label_smoothing: float

    def __post_init__(self) -> None:
        _check_smoothing(self.label_smoothing)

    def __call__(
        self, chosen: Float[Tensor, " P"], rejected: Float[Tensor, " P"], beta: float | Float[Tensor, " P"]
    ) -> Float[Tensor, " P"]:
        u, e = beta * (chosen - rejected), self.label_smoothing
        return (-(1 - e) * logsigmoid(u) + e * logsigmoid(-u)) / (1 - 2 * e)


@dataclass(frozen=True)
class IPO:
    """(h - 1 / (2 beta))^2, h = chosen - rejected, beta being the paper's tau (arXiv 2310.12036, Eq. 17).

    The paper sums over tokens, TRL divides each log-ratio by its length: `Preference.per_token`. Of noisy margins the
    mean is too large by exactly Var h^; `slopes.Jackknife` removes that exactly, with two groups as the product of the
    two halves' deviations.
    """

    def __call__(
        self, chosen: Float[Tensor, " P"], rejected: Float[Tensor, " P"], beta: float | Float[Tensor, " P"]
    ) -> Float[Tensor, " P"]:
        return (chosen - rejected - 1 / (2 * beta)).square()


@dataclass(frozen=True)
class Hinge:
    """max(0, 1 - u): SLiC's calibration loss (arXiv 2305.10425), on ratios to a reference (arXiv 2309.06657)."""

    def __call__(
        self, chosen: Float[Tensor, " P"], rejected: Float[Tensor, " P"], beta: float | Float[Tensor, " P"]
    ) -> Float[Tensor, " P"]:
        return (1 - beta * (chosen - rejected)).relu()


@dataclass(frozen=True)
class APOZero:
    """1 - sigmoid(beta * chosen) + sigmoid(beta * rejected): chosen answers up, rejected ones down, each by itself
    (arXiv 2408.06266). For chosen answers that are better than the policy's own."""

    def __call__(
        self, chosen: Float[Tensor, " P"], rejected: Float[Tensor, " P"], beta: float | Float[Tensor, " P"]
    ) -> Float[Tensor, " P"]:
        return (-beta * chosen).sigmoid() + (beta * rejected).sigmoid()


@dataclass(frozen=True)
class APODown:
    """sigmoid(beta * chosen) + 1 - sigmoid(u): both answers down, rejected ones further (arXiv 2408.06266). For chosen
    answers that are worse than the policy's own."""

    def __call__(
        self, chosen: Float[Tensor, " P"], rejected: Float[Tensor, " P"], beta: float | Float[Tensor, " P"]
    ) -> Float[Tensor, " P"]:
        return (beta * chosen).sigmoid() + (-beta * (chosen - rejected)).sigmoid()


@dataclass(frozen=True)
class ReverseKL:
    """KL(Bernoulli(sigmoid u) || Bernoulli(1 - e)) = s log(s / (1 - e)) + (1 - s) log((1 - s) / e), s = sigmoid(u).

    EXO on pairs (arXiv 2402.00856) and DMPO (arXiv 2507.07510, as publicly re-implemented) are this formula. The
    minimum is at u = log((1 - e) / e), where its curvature e (1 - e) is conservative DPO's. The slope vanishes at both
    ends: of a pair that is badly wrong little is learnt, nor from one whose margin is mostly noise.
    """

    epsilon: float

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < 0.5:
            raise ValueError(f"epsilon (label_smoothing of exo_pair) must lie in (0, 0.5), not {self.epsilon}")

    def __call__(
        self, chosen: Float[Tensor, " P"], rejected: Float[Tensor, " P"], beta: float | Float[Tensor, " P"]
    ) -> Float[Tensor, " P"]:
        u = beta * (chosen - rejected)
        right, wrong = logsigmoid(u) - log1p(-self.epsilon), logsigmoid(-u) - log(self.epsilon)
        return u.sigmoid() * right + (-u).sigmoid() * wrong


@dataclass(frozen=True)
class ORPO:
    """-chosen - beta * log sigmoid(log odds(chosen) - log odds(rejected)), odds(b) = e^b / (1 - e^b) of the mean bound
    b < 0 per token (arXiv 2403.07691, whose lambda is beta). Per token, without reference; imitation is part of it."""

    def __call__(
        self, chosen: Float[Tensor, " P"], rejected: Float[Tensor, " P"], beta: float | Float[Tensor, " P"]
    ) -> Float[Tensor, " P"]:
        odds = [b - torch.log(-torch.expm1(b)) for b in (chosen.clamp(max=CERTAIN), rejected.clamp(max=CERTAIN))]
        return -chosen - beta * logsigmoid(odds[0] - odds[1])


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

    def values(self, terms: Terms, pairs: Pairs) -> Float[Tensor, " N"]:
        """What the loss compares: the log-ratio of each row, per token if so."""
        value = self.pool(terms, pairs)
        return value / pairs.length if self.per_token else value

    def betas(self, structure: Pairs | Rankings) -> float | Float[Tensor, " P"]:
        """The beta of each pair."""
        return self.temperature(structure.pairs)

    def items(self, terms: Terms, structure: Pairs | Rankings) -> Float[Tensor, " M"]:
        """The loss of each pair or list, times its weight."""
        pairs = structure.pairs
        value = self.values(terms, pairs)
        each = weighted(self.loss(value[pairs.chosen], value[pairs.rejected], self.temperature(pairs)), pairs.weight)
        if pairs.item is None:
            return each
        return each.new_zeros(int(pairs.item.max()) + 1 if len(pairs.item) else 0).index_add(0, pairs.item, each)

    def __call__(self, terms: Terms, structure: Pairs | Rankings) -> Float[Tensor, ""]:
        return mean(self.items(terms, structure))


def DPO(beta: float = 0.2) -> Preference:
    """DPO on evidence lower bounds, DPO-E: -log sigmoid(beta * h), h = D(y_w) - D(y_l), the VRPO loss (Eq. 7-8 of arXiv
    2505.19223)."""
    return Preference(Sigmoid(), Constant(beta))


def _check_smoothing(epsilon: float) -> None:
    if not 0 <= epsilon < 0.5:
        raise ValueError(f"label_smoothing, a share of wrong labels, must lie in [0, 0.5), not {epsilon}")
