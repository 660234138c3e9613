"""Statistics of noise: unbiased by enumeration of samples, and the exact law on all outcomes of a plan."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from tests import exact
from tests.diagnostics.laws import CHOSEN, REJECTED, SKETCH, replicates, tables
from vrpo.diagnostics.replicates import Replicates, replicated
from vrpo.diagnostics.statistics import (
    averaged,
    inner_mean,
    jackknife,
    left_out_numbers,
    noise,
    ratio,
    squared_mean,
    total_variance,
)
from vrpo.diagnostics.summary import least_squares
from vrpo.draws import FixedCount, fold, uniform

pytestmark = pytest.mark.usefixtures("no_global_randomness")
BETA = 0.7
VALUES = torch.tensor([[1.0, 0.0], [-2.0, 1.0], [4.0, 3.0]], dtype=torch.float64)
PARTNERS = torch.tensor([[0.5, -1.0], [3.0, 1.0], [1.0, 1.0]], dtype=torch.float64)


def test_vector_statistics_are_unbiased() -> None:
    """The mean over all 27 equally likely samples of three vectors is the truth.

    Kills: division by B, the plug-in |mean|^2, the inner product of dependent partners left in.
    """
    samples = [list(places) for places in product(range(3), repeat=3)]
    mean, partner = VALUES.mean(0), PARTNERS.mean(0)
    truth = (
        (total_variance, (VALUES - mean).square().sum() / 3),
        (squared_mean, mean @ mean),
    )
    for statistic, expected in truth:
        found = sum(statistic(VALUES[sample]) for sample in samples) / 27
        assert found == pytest.approx(float(expected))
    found = sum(inner_mean(VALUES[sample], PARTNERS[sample]) for sample in samples) / 27
    assert found == pytest.approx(float(mean @ partner))


def test_the_jackknife_of_a_mean_is_students_interval() -> None:
    """Kills: the jackknife's factor; a normal quantile for few replicates."""
    values = [3.0, 1.0, 4.0, 1.5]
    sample = torch.tensor(values, dtype=torch.float64)
    left_out = [(sum(values) - value) / 3 for value in values]
    found = jackknife(float(sample.mean()), left_out)
    half = 3.1824463 * float(sample.std()) / 2
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half))
    with pytest.raises(ValueError, match="at least two"):
        jackknife(1.0, [1.0])


def test_jackknife_coverage() -> None:
    """95 % intervals of the ratio of two means, from 8 replicates: right in 95 % of 4000 fixed samples, up to 2 %."""
    bits = fold(torch.arange(4000)[:, None], torch.arange(16))
    sample = uniform(bits).unflatten(1, (2, 8)) + 1
    above, below = sample.unbind(1)
    inside = 0
    for a, b in zip(above, below, strict=True):
        left_out = ((a.sum() - a) / (b.sum() - b)).tolist()
        found = jackknife(float(a.sum() / b.sum()), left_out)
        inside += found.low <= 1 <= found.high
    assert abs(inside / 4000 - 0.95) < 0.02


def outcomes(num_masks: int) -> Replicates:
    """One replicate for each of the equally likely outcomes of FixedCount(1, num_masks) on both answers."""
    orders = [torch.tensor(bits) for bits in product(((0, 1), (1, 0)), repeat=num_masks)]
    single = [(cell, order) for cell in (0.25, 0.75) for order in orders]
    joint = list(product(single, repeat=2))
    sides = [[outcome[side] for outcome in joint] for side in (0, 1)]
    time = torch.tensor([cell for side in sides for cell, _ in side], dtype=torch.float64)
    bits = torch.stack([order for side in sides for _, order in side])
    tokens, _ = replicated(exact.copies(CHOSEN, 2), len(joint))
    with exact.fed(tokens, time[:, None].expand(-1, num_masks), bits):
        return replicates(FixedCount(1, num_masks), len(joint))


def gradient_moments() -> tuple[float, float]:
    """V_t and V_y of the sketched gradient of the margin: sums over coordinates and, by independence, answers."""
    policy, _ = tables()
    between = within = 0.0
    for row in (CHOSEN, REJECTED):
        by_subset = {subset: gradient(policy, row, subset) for subset in exact.subsets(2)}
        for coordinate in range(SKETCH.size):
            found = exact.moments({subset: float(value[coordinate]) for subset, value in by_subset.items()})
            between, within = between + found.between, within + found.within
    return between, within


def gradient(policy: exact.Table, row: exact.Row, subset: tuple[int, ...]) -> Tensor:
    ids = torch.tensor([row.prompt + row.response])
    hidden = torch.zeros_like(ids, dtype=torch.bool)
    hidden[0, [len(row.prompt) + place for place in subset]] = True
    value = policy(input_ids=ids, attention_mask=torch.ones_like(hidden), masked=hidden, scored=hidden).sum()
    return SKETCH(torch.autograd.grad(value, list(policy.parameters())))


def test_variances_and_their_split_are_exact() -> None:
    """On all outcomes of one time with one and with two masks: V(n_y) = V_t + V_y / n_y with the enumerated V_t, V_y,
    for bounds, scores and gradients (Lemma 5).

    Kills: V_t and V_y exchanged, scores without the reference or beta, gradients without beta, one answer only.
    """
    policy, reference = tables()
    laws = []
    for row in (CHOSEN, REJECTED):
        own, other = exact.subset_sums(policy, row), exact.subset_sums(reference, row)
        laws.append((exact.moments(own), exact.moments({subset: own[subset] - other[subset] for subset in own})))
    split = gradient_moments()
    expected = {
        "elbo_variance": (sum(law.between for law, _ in laws) / 2, sum(law.within for law, _ in laws) / 2),
        "score_variance": tuple(
            BETA**2 * part for part in (sum(d.between for _, d in laws), sum(d.within for _, d in laws))
        ),
        "score_gradient_variance": (BETA**2 * split[0], BETA**2 * split[1]),
    }
    found = {num_masks: outcomes(num_masks) for num_masks in (1, 2)}
    solve = least_squares([1, 2])
    for name, parts in expected.items():
        exact_variance = [
            getattr(noise(law, BETA), name) * (len(law.policy) - 1) / len(law.policy) for law in found.values()
        ]
        assert solve(exact_variance) == pytest.approx(parts, rel=1e-9)


def test_least_squares_over_more_than_two_numbers_of_masks() -> None:
    assert least_squares([1, 2, 4, 8])([3 + 5 / n for n in (1, 2, 4, 8)]) == pytest.approx((3, 5))


def test_noise_of_hand_made_replicates() -> None:
    """Kills: a slope of the wrong sign or at the wrong score, correlations by replicate, biases from too few."""
    policy = torch.tensor([[[3.0], [1.0]], [[5.0], [1.0]], [[1.0], [1.5]]], dtype=torch.float64)
    reference = torch.tensor([[[2.0], [1.0]], [[4.0], [3.0]], [[0.0], [2.0]]], dtype=torch.float64)
    gradient = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]], [[1.0, 1.0]]], dtype=torch.float64)
    whole = Replicates(policy, reference, gradient)
    found = noise(whole, BETA)
    score = BETA * torch.tensor([1.0, 3.0, 1.5], dtype=torch.float64)
    slope = -torch.sigmoid(-score)[:, None]
    loss = -torch.nn.functional.logsigmoid(score)
    assert found.score_variance == pytest.approx(float(score.var()))
    assert found.loss_variance == pytest.approx(float(loss.var()))
    assert 0 < found.loss_bias < found.bias_bound == pytest.approx(float(score.var() / 8))
    own = BETA * slope * gradient[:, 0]
    assert found.loss_gradient_variance == pytest.approx(float(own.var(0).sum()))
    assert found.gradient_squared == pytest.approx(squared_mean(own))
    assert math.isnan(found.gradient_bias_squared)  # of four, two make a couple and two a standard error
    expected = torch.stack([torch.corrcoef(torch.stack([policy[:, i, 0], reference[:, i, 0]]))[0, 1] for i in (0, 1)])
    assert found.correlation == pytest.approx(float(expected.mean()))
    for r, numbers in enumerate(left_out_numbers(whole, BETA)):
        others = noise(whole.without(r), BETA)
        assert numbers == pytest.approx({name: getattr(others, name) for name in numbers}, nan_ok=True)
    assert noise(Replicates(5 * policy, reference, gradient), BETA).saturated == pytest.approx(2 / 3)


def test_an_answer_without_noise_has_no_correlation() -> None:
    """Kills: a whole pair without a correlation because one of its answers is one token long."""
    policy = torch.tensor([[[3.0], [1.0]], [[5.0], [1.0]], [[1.0], [1.0]]], dtype=torch.float64)
    one = Replicates(policy, policy.roll(1, 0), torch.zeros(3, 1, 1, dtype=torch.float64))
    both = noise(one, BETA).correlation
    assert both == pytest.approx(
        float(torch.corrcoef(torch.stack([policy[:, 0, 0], policy.roll(1, 0)[:, 0, 0]]))[0, 1])
    )
    assert math.isnan(noise(Replicates(policy[:1].expand(3, 2, 1), policy, one.gradient), BETA).correlation)


def test_averages_and_ratios() -> None:
    """Kills: pairs that are not summed before the ratio; the interval over pairs instead of replicates."""
    one, other = replicates(FixedCount(2), 4), replicates(FixedCount(3), 4)

    def variance(part: Replicates) -> float:
        return noise(part, BETA).score_variance

    found = ratio([one, other], variance, [other, other], variance)
    assert found.value == pytest.approx((variance(one) + variance(other)) / (2 * variance(other)))
    mean = averaged([one, other], variance)
    assert mean.value == pytest.approx((variance(one) + variance(other)) / 2)
    assert averaged([one, one], variance) == averaged([one], variance)


BY_CHANCE = {"with the score": 1.0, "apart from it": 0.0}


def means_over_samples(offset: float, slant: float, count: int) -> dict[str, float]:
    """Mean of each number over all samples of `count` estimates whose score is 1 -+ offset, equally likely, and whose
    gradient is (1, 0) -+ slant (1, 1)."""
    signs = torch.tensor(list(product((-1.0, 1.0), repeat=count)), dtype=torch.float64)
    margin = (1 + offset * signs) / BETA
    policy = torch.stack([margin, torch.zeros_like(margin)], 1)
    gradient = torch.stack([1 + slant * signs, slant * signs], -1)
    found = [
        noise(Replicates(policy[i].T[..., None], 0 * policy[i].T[..., None], gradient[i][:, None]), BETA)
        for i in range(len(signs))
    ]
    names = ("loss_bias", "gradient_bias_squared", "true_squared", "score_variance")
    means = {name: sum(getattr(one, name) for one in found) / len(found) for name in names}
    return means | {"true_gradient": float(sum(one.true_gradient[0] for one in found)) / len(found)}


@pytest.mark.parametrize("slant", BY_CHANCE.values(), ids=BY_CHANCE.keys())
def test_biases_are_unbiased(slant: float) -> None:
    """Against the truth of both outcomes, up to 2 % of what a mean score that holds its own estimate adds.

    Kills: the true slope at the mean of the same scores; no correction for the noise of the others' mean; f^2 corrected
    as the square of the corrected f; the loss at a noisy mean.
    """
    offset, count = 0.2, 6
    found = means_over_samples(offset, slant, count)
    scores = torch.tensor([1 - offset, 1 + offset], dtype=torch.float64)
    gradients = torch.tensor([[1 - slant, -slant], [1 + slant, slant]], dtype=torch.float64)
    expected = (-BETA * torch.sigmoid(-scores)[:, None] * gradients).mean(0)
    slope = -BETA / (1 + math.exp(1))
    true = slope * gradients.mean(0)
    loss_bias = float(torch.nn.functional.softplus(-scores).mean()) - math.log1p(math.exp(-1))
    first = slope * (1 - 1 / (1 + math.exp(1)))  # |f'|
    spoilt = first**2 * offset**2 / count
    assert found["score_variance"] == pytest.approx(offset**2)
    assert found["gradient_bias_squared"] == pytest.approx(float((expected - true).square().sum()), abs=0.02 * spoilt)
    assert found["true_squared"] == pytest.approx(float(true.square().sum()), abs=0.02 * spoilt)
    assert found["true_gradient"] == pytest.approx(float(true[0]), abs=0.02 * abs(first) * offset**2 / count)
    assert found["loss_bias"] == pytest.approx(loss_bias, rel=0.005)  # a sixth is missing at a noisy mean


def test_the_bias_of_simulated_pairs_is_that_of_their_law() -> None:
    """Normal scores, and gradients along with them, of 8 replicates of 16 draws, at 4 and at 16 draws, against
    E[f(s) g] - f(E s) E g of the normal law by quadrature: up to 4.5 standard errors (false alarm 1e-5) and 2 % of
    what the mean of the same scores would take off, which is more than 9 errors. Kills: biases that differ by 1/B.
    """
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(300, 8, 16, 3, generator=generator, dtype=torch.float64)
    margin = (0.5 + 1.5 * normal[..., 0]) / BETA
    gradient = torch.stack([1 + 0.5 * normal[..., 0] + 0.3 * normal[..., 1], 0.3 * normal[..., 2]], -1)
    policy = torch.stack([margin, torch.zeros_like(margin)], 2)
    pairs = [Replicates(a, torch.zeros_like(a), b) for a, b in zip(policy, gradient, strict=True)]
    for n in (4, 16):
        found = torch.tensor([noise(pair.at(n), BETA).gradient_bias_squared for pair in pairs], dtype=torch.float64)
        error = float(found.std()) / 300**0.5
        x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
        mass = (-x.square() / 2).exp()
        slope = -BETA * torch.sigmoid(-(0.5 + 1.5 * x / n**0.5))
        mean = float((slope * (1 + 0.5 * x / n**0.5) * mass).sum() / mass.sum())
        true = -BETA / (1 + math.exp(0.5))
        spoilt = (true / (1 + math.exp(-0.5)) * 1.5) ** 2 / 128
        assert abs(float(found.mean()) - (mean - true) ** 2) < 4.5 * error + 0.02 * spoilt < spoilt / 2
