"""Which counts of masked tokens deserve more draws: the second moment of a draw's gradient, by the share it masks.

A draw of m of L tokens, taken with probability q(m) where the bound has 1/L, weighs (1/L) / q(m); the second moment of
its gradient is then (1/L) E_m[s(m) / q(m)], with s(m) the one at weight 1 and m uniform. It is least at q(m)
proportional to sqrt(s(m)): for s(m) ~ m^-b at q(m) ~ m^-(b/2), which `plans.Levels` calls its exponent.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vrpo.diagnostics.replicates import AnswerGradients, replicate
from vrpo.diagnostics.statistics import Interval, jackknife
from vrpo.draws import FixedCount
from vrpo.reference import GivenReference
from vrpo.sketch import Sketch
from vrpo.types import Denoiser, Tokens

_GRID = tuple(step / 20 for step in range(21))  # exponents to choose from
_BINS = 8


@dataclass(frozen=True)
class Bin:
    """Draws of similar masked share: their mean share and the mean of |gradient|^2, 1 being an answer's average."""

    share: float
    second_moment: Interval
    draws: int


@dataclass(frozen=True)
class CountLaw:
    """What single draws say about the law of the masked count.

    `slope`: of log second moment against log masked share; `exponent_of_slope` = -slope / 2; `exponent`: the one of 0,
    0.05, ..., 1 with the least second moment, by exact reweighting and without a fitted law; `reduction`: what it
    leaves of the second moment at exponent 0, and so an upper bound of what it leaves of the variance.
    """

    bins: tuple[Bin, ...]
    intercept: float
    slope: Interval
    exponent_of_slope: Interval
    exponent: float
    reduction: Interval

    def law(self, share: float) -> float:
        """The fitted second moment at a masked share."""
        return math.exp(self.intercept) * share**self.slope.value


@dataclass(frozen=True)
class _Draws:
    """Draws of all answers, each answer's squares divided by their mean, so that long answers do not drown others. On
    the CPU, wherever they were measured: a few thousand numbers."""

    share: Float[Tensor, "A R G"]
    square: Float[Tensor, "A R G"]
    length: Float[Tensor, " A"]

    def without(self, replicate: int) -> "_Draws":
        keep = torch.arange(self.share.shape[1]) != replicate
        return _Draws(self.share[:, keep], self.square[:, keep], self.length)


def _pooled(answers: Sequence[AnswerGradients]) -> _Draws:
    masked = torch.cat([part.masked.cpu().transpose(0, 1) for part in answers])
    square = torch.cat([part.square.cpu().transpose(0, 1) for part in answers])
    length = torch.cat([part.length.cpu() for part in answers]).double()
    some = (length > 1) & (square.flatten(1).mean(1) > 0)
    if not bool(some.any()):
        raise ValueError("no answer has two tokens and a gradient: its masked counts have no law to choose")
    square = square[some] / square[some].mean((1, 2), keepdim=True)
    return _Draws(masked[some] / length[some, None, None], square, length[some])


def count_law(answers: Sequence[AnswerGradients]) -> CountLaw:
    """The law of all these answers, intervals from replicates.

    Raises:
        ValueError: every answer is one token long, or has no gradient.
    """
    draws = _pooled(answers)
    left_out = [draws.without(r) for r in range(draws.share.shape[1])]
    intercept, fitted = _fit(draws)
    slope = jackknife(fitted, [_fit(part)[1] for part in left_out])
    moments = [second_moment(draws.share, draws.square, draws.length, exponent) for exponent in _GRID]
    best = _GRID[moments.index(min(moments))]
    reduction = jackknife(_reduction(draws, best), [_reduction(part, best) for part in left_out])
    exponents = Interval(-slope.value / 2, -slope.high / 2, -slope.low / 2)
    return CountLaw(_bins(draws), intercept, slope, exponents, best, reduction)


def fit_counts(
    policy: Denoiser,
    pairs: Sequence[Tokens],
    parameters: Sequence[nn.Parameter],
    *,
    max_tokens: int,
    num_replicates: int = 4,
    num_times: int = 4,
    progress: Callable[[int], object],
) -> CountLaw:
    """The law of these pairs' answers (row 0 chosen, row 1 rejected) under the policy as it is: num_replicates *
    num_times draws of each, one forward and one backward pass a draw. No reference is called: it has no gradient.

    Args:
        progress: told after each replicate of a pair how many passes it took.
    """
    answers = []
    for pair in pairs:
        nothing = torch.zeros(2 * num_replicates, 1, num_times, dtype=torch.float64, device=pair.key.device)
        found = replicate(
            policy,
            GivenReference(nothing),
            pair,
            FixedCount(num_times),
            parameters=parameters,
            num_replicates=num_replicates,
            sketch=Sketch(1),
            max_tokens=max_tokens,
            by_answer=True,
            progress=progress,
        )
        assert found.answers is not None
        answers.append(found.answers)
    return count_law(answers)


def second_moment(
    share: Float[Tensor, "A R G"], square: Float[Tensor, "A R G"], length: Float[Tensor, " A"], exponent: float
) -> float:
    """Mean second moment of a draw under q(m) ~ m^-exponent, from draws of uniform counts: each square times
    (1/L) / q(m), which is unbiased for every exponent."""
    mass = torch.tensor([sum(m**-exponent for m in range(1, int(size) + 1)) for size in length], dtype=torch.float64)
    inverse = mass[:, None, None] * (share * length[:, None, None]) ** exponent / length[:, None, None]
    return float((square * inverse).mean())


def _reduction(draws: _Draws, exponent: float) -> float:
    parts = (draws.share, draws.square, draws.length)
    return second_moment(*parts, exponent) / second_moment(*parts, 0.0)


def _fit(draws: _Draws) -> tuple[float, float]:
    """a and b of E[square] = exp(a + b log share), by quasi-likelihood with a constant relative error (gamma, log
    link), so that every draw counts alike. Not the regression of log square, whose mean is not the log of the mean.
    """
    x = torch.stack([torch.ones_like(draws.share), draws.share.log()], -1).flatten(0, 2)
    y, fitted = draws.square.flatten(), torch.zeros(2, dtype=torch.float64)
    for _ in range(50):
        relative = y * (-(x @ fitted)).exp()
        hessian = (x * relative[:, None]).T @ x
        step = torch.linalg.lstsq(hessian, (x * (relative - 1)[:, None]).sum(0)).solution
        fitted = fitted + step.clamp(-1, 1)
    return float(fitted[0]), float(fitted[1])


def _bins(draws: _Draws) -> tuple[Bin, ...]:
    """Eight bins, equally wide in log share from the smallest to 1; those with draws in every replicate but one."""
    place = (draws.share.log() / draws.share.min().log().clamp(max=-1e-9) * _BINS).long().clamp(max=_BINS - 1)
    found = []
    for index in reversed(range(_BINS)):
        inside = place == index
        per_replicate = inside.sum((0, 2))
        if bool((per_replicate > 0).all()):
            sums = (draws.square * inside).sum((0, 2))
            whole = sums.sum(), per_replicate.sum()
            left_out = ((whole[0] - sums) / (whole[1] - per_replicate)).tolist()
            share = math.exp(float(draws.share.log()[inside].mean()))
            found.append(Bin(share, jackknife(float(whole[0] / whole[1]), left_out), int(whole[1])))
    return tuple(found)
