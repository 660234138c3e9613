"""What replicates say about noise: variances, biases, Lemma 5, and where compute should go. Pure functions of arrays.

Intervals are jackknife intervals, over replicates where the pairs are given and over pairs where they are a sample.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from vrpo.diagnostics.replicates import Replicates

SATURATED = 4.0  # |score| beyond which the loss is as good as linear or flat
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def jackknife(whole: float, left_out: Sequence[float]) -> Interval:
    """Student's interval from the delete-one jackknife (Tukey 1958): Var = (F-1)/F sum (theta_f - mean)^2."""
    count = len(left_out)
    if count < 2:
        raise ValueError("an interval needs at least two replicates (or pairs)")
    mean = sum(left_out) / count
    error = math.sqrt((count - 1) / count * sum((value - mean) ** 2 for value in left_out))
    half = (_T95[count - 2] if count - 2 < len(_T95) else 1.96 + 2.5 / (count - 1)) * error
    return Interval(whole, whole - half, whole + half)


@dataclass(frozen=True)
class Noise:
    """The noise of one pair's estimate at one budget. Scores and gradients carry beta; gradients are sketched.

    `*_variance`: of one estimate; of a gradient the trace of its covariance. `correlation`: of policy and reference
    bounds (mean of both answers). `score_mean`, `loss_mean`: over replicates. `loss_bias`: of -log sigmoid of a noisy
    score against the loss at the mean score; at most `bias_bound` = score variance / 8 (Jensen, 1/4-smoothness).
    `gradient_squared`: |E g|^2 of the loss gradient, unbiased; `gradient_bias_squared`: of E g minus the gradient at
    the mean score, the true one, of which `true_squared` is |.|^2 and `signal` its inner product with E g.
    `loss_gradient`, `true_gradient`: the means, for what pairs have in common. `saturated`: share of |score| > 4.
    """

    elbo_variance: float
    score_mean: float
    score_variance: float
    correlation: float
    loss_mean: float
    loss_variance: float
    loss_bias: float
    bias_bound: float
    score_gradient_variance: float
    loss_gradient_variance: float
    gradient_squared: float
    gradient_bias_squared: float
    true_squared: float
    signal: float
    saturated: float
    loss_gradient: Float[Tensor, " D"]
    true_gradient: Float[Tensor, " D"]


def noise(replicates: Replicates, beta: float) -> Noise:
    """The noise of an estimate made of all groups of a replicate. At least two replicates (or blocks of `at`)."""
    gradient = replicates.gradient.flatten(0, 1)
    score = scores(replicates, beta)
    slope = _slopes(score, beta)
    numbers = _numbers(*_estimates(replicates), score, gradient @ gradient.T, beta)
    means = [(weight[:, None] * gradient).mean(0) for weight in slope]
    return Noise(**numbers, loss_gradient=means[0], true_gradient=means[1])


def left_out_numbers(replicates: Replicates, beta: float) -> list[dict[str, float]]:
    """The numbers of `noise` with each replicate left out: what a jackknife over replicates needs, inner products of
    gradients being computed once."""
    gradient = replicates.gradient.flatten(0, 1)
    gram, score = gradient @ gradient.T, scores(replicates, beta)
    policy, reference = _estimates(replicates)
    owner = torch.arange(len(replicates.policy)).repeat_interleave(replicates.policy.shape[2])
    found = []
    for r in range(len(replicates.policy)):
        keep = (owner != r).nonzero()[:, 0]
        found.append(_numbers(policy[keep], reference[keep], score[keep], gram[keep][:, keep], beta))
    return found


def _estimates(replicates: Replicates) -> tuple[Float[Tensor, "B 2"], Float[Tensor, "B 2"]]:
    policy, reference = (part.transpose(1, 2).flatten(0, 1) for part in (replicates.policy, replicates.reference))
    return policy, reference


def _slopes(score: Float[Tensor, " B"], beta: float) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """What the margin's gradients are multiplied by: at each estimate's own score, and at the mean score."""
    return -beta * torch.sigmoid(-score), -beta * torch.sigmoid(-score.mean()).expand_as(score)


def _numbers(
    policy: Float[Tensor, "B 2"],
    reference: Float[Tensor, "B 2"],
    score: Float[Tensor, " B"],
    gram: Float[Tensor, "B B"],
    beta: float,
) -> dict[str, float]:
    """All of `Noise` that is a number; `gram`: inner products of the margin's gradients."""
    slope, true = _slopes(score, beta)
    loss, at_mean = softplus(-score), softplus(-score.mean())
    return {
        "elbo_variance": float(policy.var(0).mean()),
        "score_mean": float(score.mean()),
        "score_variance": float(score.var()),
        "correlation": float(torch.stack([_correlation(policy[:, i], reference[:, i]) for i in (0, 1)]).mean()),
        "loss_mean": float(loss.mean()),
        "loss_variance": float(loss.var()),
        "loss_bias": float(loss.mean() - at_mean),
        "bias_bound": float(score.var() / 8),
        "score_gradient_variance": beta**2 * _variance(gram, torch.ones_like(score)),
        "loss_gradient_variance": _variance(gram, slope),
        "gradient_squared": _inner(gram, slope, slope),
        "gradient_bias_squared": _inner(gram, slope - true, slope - true),
        "true_squared": _inner(gram, true, true),
        "signal": _inner(gram, slope, true),
        "saturated": float((score.abs() > SATURATED).double().mean()),
    }


def _variance(gram: Float[Tensor, "B B"], weight: Float[Tensor, " B"]) -> float:
    """`total_variance` of the vectors weight_b g_b."""
    count = len(weight)
    return float((weight.square() @ gram.diagonal() - weight @ gram @ weight / count) / (count - 1))


def _inner(gram: Float[Tensor, "B B"], one: Float[Tensor, " B"], other: Float[Tensor, " B"]) -> float:
    """`inner_mean` of the vectors one_b g_b and other_b g_b."""
    count = len(one)
    return float((one @ gram @ other - (one * other) @ gram.diagonal()) / (count * (count - 1)))


def scores(replicates: Replicates, beta: float) -> Float[Tensor, " B"]:
    """beta times the margin of log-ratios, one for each estimate."""
    margin = (replicates.policy - replicates.reference).transpose(1, 2) @ replicates.policy.new_tensor([1.0, -1.0])
    return beta * margin.flatten()


def _correlation(a: Float[Tensor, " B"], b: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    a, b = a - a.mean(), b - b.mean()
    return (a @ b) / (a.square().sum() * b.square().sum()).sqrt()


def total_variance(vectors: Float[Tensor, "B D"]) -> float:
    """Unbiased trace of the covariance of independent vectors."""
    return float((vectors - vectors.mean(0)).square().sum() / (len(vectors) - 1))


def squared_mean(vectors: Float[Tensor, "B D"]) -> float:
    """Unbiased |E v|^2 from independent vectors: the mean inner product of different ones. May be below 0."""
    return inner_mean(vectors, vectors)


def inner_mean(one: Float[Tensor, "B D"], other: Float[Tensor, "B D"]) -> float:
    """Unbiased <E v, E w> from independent couples (v_b, w_b), dependent inside a couple: the mean over b != c of
    <v_b, w_c>."""
    count = len(one)
    covariance = ((one - one.mean(0)) * (other - other.mean(0))).sum() / (count - 1)
    return float(one.mean(0) @ other.mean(0) - covariance / count)


Statistic = Callable[[Replicates], float]


def averaged(pairs: Sequence[Replicates], statistic: Statistic) -> Interval:
    """Mean of a statistic over these pairs, its interval from replicates: the pairs are given, the draws are not."""
    return ratio(pairs, statistic, None, lambda replicates: 1.0)


def ratio(
    pairs: Sequence[Replicates], above: Statistic, others: Sequence[Replicates] | None, below: Statistic
) -> Interval:
    """Ratio of two statistics, each summed over pairs; `others`: the pairs of the denominator, replicated alike."""
    others = pairs if others is None else others
    whole = sum(map(above, pairs)) / sum(map(below, others))
    left_out = []
    for r in range(len(pairs[0].policy)):
        numerator = sum(above(pair.without(r)) for pair in pairs)
        left_out.append(numerator / sum(below(pair.without(r)) for pair in others))
    return jackknife(whole, left_out)
