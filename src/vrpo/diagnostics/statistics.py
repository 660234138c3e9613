"""What replicates say about noise: variances, biases, Lemma 5, and where compute should go. Pure functions of arrays.

Intervals are jackknife intervals, over replicates where the pairs are given and over pairs where they are a sample.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from scipy.stats import t as student
from torch import Tensor
from torch.nn.functional import softplus

from vrpo.diagnostics.replicates import Replicates

SATURATED = 4.0  # |score| beyond which the loss is as good as linear or flat; training/metrics.py has the same number


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
    half = float(student.ppf(0.975, count - 1)) * error
    return Interval(whole, whole - half, whole + half)


@dataclass(frozen=True)
class Noise:
    """The noise of one pair's estimate at one budget. Scores and gradients carry beta; gradients are sketched.

    `*_variance`: of one estimate; of a gradient the trace of its covariance. `correlation`: of policy and reference
    bounds, mean of the answers where both vary (an answer of one token has no noise); nan if neither answer's do.
    `score_mean`, `loss_mean`: over replicates. `loss_bias`: of -log sigmoid of a noisy score against the loss at the
    expected score; at most `bias_bound` = score variance / 8 (Jensen, 1/4-smoothness). `gradient_squared`: |E g|^2 of
    the loss gradient, unbiased; `gradient_bias_squared`: of E g minus the true gradient, the one at the expected score,
    of which `true_squared` is |.|^2. The expected score is known by a mean only, so that biases are unbiased up to
    1/B^2, may come out below 0, and are nan with fewer than four estimates. `loss_gradient`, `true_gradient`: the
    means, for what pairs have in common. `saturated`: share of |score| > 4.
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
    saturated: float
    loss_gradient: Float[Tensor, " D"]
    true_gradient: Float[Tensor, " D"]


def noise(replicates: Replicates, beta: float) -> Noise:
    """The noise of an estimate made of all groups of a replicate. At least two replicates (or blocks of `at`)."""
    gradient = replicates.gradient.flatten(0, 1)
    score = scores(replicates, beta)
    numbers = _numbers(*_estimates(replicates), score, gradient @ gradient.T, beta)
    true, _ = _true_slope(*_mean_of_others(score, torch.arange(len(score))[:, None]), beta)
    means = [(weight[:, None] * gradient).mean(0) for weight in (_slope(score, beta), true)]
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


def _slope(score: Float[Tensor, " *shape"], beta: float) -> Float[Tensor, " *shape"]:
    """f(s) = d/dm -log sigmoid(beta m) at s = beta m: what the margin's gradient is multiplied by."""
    return -beta * torch.sigmoid(-score)


def _mean_of_others(
    score: Float[Tensor, " B"], left_out: Int[Tensor, "*shape k"]
) -> tuple[Float[Tensor, " *shape"], Float[Tensor, " *shape"]]:
    """Mean of all scores but the k left out, and its squared standard error; nan if fewer than two remain.

    A reference point must not contain the score it is compared with: of B of them, their mean would follow each by 1/B
    and seem closer than it is. All budgets of a run share their draws, and so, but for k estimates, this point.
    """
    count = len(score) - left_out.shape[-1]
    if count < 2:
        nothing = torch.full(left_out.shape[:-1], math.nan, dtype=score.dtype, device=score.device)
        return nothing, nothing
    centred = score - score.mean()
    gone = centred[left_out]
    shift = -gone.sum(-1) / count
    squares = centred.square().sum() - gone.square().sum(-1) - count * shift.square()
    return score.mean() + shift, squares.clamp(min=0) / (count * (count - 1))


def _true_slope(
    mean: Float[Tensor, " *shape"], error: Float[Tensor, " *shape"], beta: float
) -> tuple[Float[Tensor, " *shape"], Float[Tensor, " *shape"]]:
    """f and f^2 at the expected score, from an independent mean of squared standard error v, unbiased up to v^2:
    f(mean) - f'' v / 2, and f(mean)^2 - (f'^2 + f f'') v, which is not the square of the former."""
    slope, p = _slope(mean, beta), torch.sigmoid(-mean)
    first = beta * p * (1 - p)
    second = -first * (1 - 2 * p)
    return slope - second * error / 2, slope.square() - (first.square() + slope * second) * error


def _numbers(
    policy: Float[Tensor, "B 2"],
    reference: Float[Tensor, "B 2"],
    score: Float[Tensor, " B"],
    gram: Float[Tensor, "B B"],
    beta: float,
) -> dict[str, float]:
    """All of `Noise` that is a number; `gram`: inner products of the margin's gradients."""
    index = torch.arange(len(score))
    slope, couples = _slope(score, beta), torch.cartesian_prod(index, index).unflatten(0, (len(score), len(score)))
    true, true_square = _true_slope(*_mean_of_others(score, couples), beta)
    both, either, loss = slope[:, None] * slope, slope[:, None] + slope, softplus(-score)
    return {
        "elbo_variance": float(policy.var(0).mean()),
        "score_mean": float(score.mean()),
        "score_variance": float(score.var()),
        "correlation": float(torch.stack([_correlation(policy[:, i], reference[:, i]) for i in (0, 1)]).nanmean()),
        "loss_mean": float(loss.mean()),
        "loss_variance": float(loss.var()),
        "loss_bias": float(loss.mean()) - _true_loss(score),
        "bias_bound": float(score.var() / 8),
        "score_gradient_variance": beta**2 * _variance(gram, torch.ones_like(score)),
        "loss_gradient_variance": _variance(gram, slope),
        "gradient_squared": _different(gram, both),
        "gradient_bias_squared": _different(gram, both - either * true + true_square),
        "true_squared": _different(gram, true_square),
        "saturated": float((score.abs() > SATURATED).double().mean()),
    }


def _true_loss(score: Float[Tensor, " B"]) -> float:
    """-log sigmoid of the expected score: at the mean score less l'' Var / 2B, which the mean's own noise adds."""
    mean = score.mean()
    curvature = torch.sigmoid(mean) * torch.sigmoid(-mean)
    return float(softplus(-mean) - curvature * score.var() / (2 * len(score)))


def _variance(gram: Float[Tensor, "B B"], weight: Float[Tensor, " B"]) -> float:
    """Unbiased trace of the covariance of the vectors weight_b g_b, from the inner products of g."""
    count = len(weight)
    return float((weight.square() @ gram.diagonal() - weight @ gram @ weight / count) / (count - 1))


def _different(gram: Float[Tensor, "B B"], weight: Float[Tensor, "B B"]) -> float:
    """Mean of weight_bc <g_b, g_c> over b != c: a U-statistic, without what an estimate has in common with itself."""
    count = len(gram)
    weighted = gram * weight
    return float((weighted.sum() - weighted.diagonal().sum()) / (count * (count - 1)))


def scores(replicates: Replicates, beta: float) -> Float[Tensor, " B"]:
    """beta times the margin of log-ratios, one for each estimate."""
    margin = (replicates.policy - replicates.reference).transpose(1, 2) @ replicates.policy.new_tensor([1.0, -1.0])
    return beta * margin.flatten()


def _correlation(a: Float[Tensor, " B"], b: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """nan where one of them does not vary."""
    a, b = a - a.mean(), b - b.mean()
    return (a @ b) / (a.square().sum() * b.square().sum()).sqrt()


def total_variance(vectors: Float[Tensor, "B D"]) -> float:
    """Unbiased trace of the covariance of independent vectors."""
    centred = vectors - vectors.mean(0)  # for the sake of rounding only
    return _variance(centred @ centred.T, vectors.new_ones(len(vectors)))


def squared_mean(vectors: Float[Tensor, "B D"]) -> float:
    """Unbiased |E v|^2 from independent vectors: the mean inner product of different ones. May be below 0."""
    return inner_mean(vectors, vectors)


def inner_mean(one: Float[Tensor, "B D"], other: Float[Tensor, "B D"]) -> float:
    """Unbiased <E v, E w> from independent couples (v_b, w_b), dependent inside a couple: the mean over b != c of
    <v_b, w_c>."""
    return _different(one @ other.T, one.new_ones(len(one), len(one)))


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
