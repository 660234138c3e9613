"""Objectives and references that change slopes only: what they do to loss and gradient, exactly, over all outcomes."""

import pytest
import torch
from torch import Tensor

from tests import exact
from tests.build import Row
from tests.loops import each
from tests.objectives import PAIRS, of, terms
from vrpo.draws import FixedCount
from vrpo.estimator import elbo
from vrpo.losses.corrections import CrossFit, Jackknife
from vrpo.losses.objective import Objective, WeightedSum
from vrpo.losses.pairwise import DPO, IPO, Preference
from vrpo.losses.pools import log_ratios
from vrpo.losses.setwise import SFT
from vrpo.losses.temperature import Constant
from vrpo.plans import Enumerate
from vrpo.reference import FrozenReference
from vrpo.types import Draws, Estimate, Pairs, Terms, Tokens

pytestmark = pytest.mark.usefixtures("no_global_randomness")
ROW = Row((1,), (0, 2), 11)
LINEAR = WeightedSum(((0.7, SFT()), (0.1, SFT())))
SHARP = DPO(1.5)
SQUARE = Preference(IPO(), Constant(0.7))  # ipo_sum


def slope_of(objective: Objective, policy: Tensor, reference: Tensor) -> Tensor:
    leaf = policy.clone().requires_grad_()
    return torch.autograd.grad(objective(of(leaf, reference), PAIRS), leaf)[0]


# By hand --------------------------------------------------------------------------------------------------------------


@each("wrapper", [CrossFit, Jackknife])
@each("num_groups", [2, 3, 6])
def test_a_linear_objective_stays_what_it_is(wrapper: type, num_groups: int) -> None:
    """Leaving out and scaling up is unbiased. Kills: G / (G - 1) left out; a wrong weight of the parts without a group;
    slopes of all groups added up for every draw."""
    policy, reference = terms(draws=6)
    wrapped = wrapper(LINEAR, num_groups)
    plain = LINEAR(of(policy, reference), PAIRS)
    assert float(wrapped(of(policy, reference), PAIRS)) == pytest.approx(float(plain), abs=1e-14)
    torch.testing.assert_close(
        slope_of(wrapped, policy, reference), slope_of(LINEAR, policy, reference), rtol=0, atol=1e-15
    )


def test_cross_fit_keeps_a_reference_of_other_draws_whole() -> None:
    """Kills: a reference that is left out group by group although its draws are not the policy's."""
    policy, reference = terms(draws=4)
    summed = reference.sum(-1, keepdim=True)
    slope = slope_of(CrossFit(SHARP, 2), policy, summed)
    torch.testing.assert_close(slope[:, :2], slope_of(SHARP, 2 * policy[:, 2:], summed), rtol=1e-13, atol=0)


def test_cross_fit_has_a_value_without_gradients() -> None:
    """Evaluation runs without gradients. Kills: slopes taken under no_grad, which raises."""
    policy, reference = terms(draws=4)
    with torch.no_grad():
        value = CrossFit(SHARP, 2)(of(policy, reference), PAIRS)
    assert torch.equal(value, SHARP(of(policy, reference), PAIRS))


@each("seed", range(3))
def test_jackknife_slopes_by_finite_differences(seed: int) -> None:
    """Kills: parts detached."""
    policy, reference = terms(seed=seed, draws=6)
    wrapped = Jackknife(SHARP, 3)
    assert torch.autograd.gradcheck(lambda leaf: wrapped(of(leaf, reference), PAIRS), policy.requires_grad_())


def test_jackknife_of_two_groups() -> None:
    """2 L(all) - (L(first) + L(second)) / 2, by the formula. Kills: groups that interleave; (G - 1) / G left out."""
    policy, reference = terms(draws=6)
    parts = [SHARP(of(2 * policy[:, part], 2 * reference[..., part]), PAIRS) for part in (slice(0, 3), slice(3, 6))]
    expected = 2 * SHARP(of(policy, reference), PAIRS) - (parts[0] + parts[1]) / 2
    assert float(Jackknife(SHARP, 2)(of(policy, reference), PAIRS)) == pytest.approx(float(expected), abs=1e-14)


def test_jackknife_of_a_square_in_two_groups_is_a_product() -> None:
    """(h_1 - c)(h_2 - c) of each pair's two halves, c = 1 / (2 beta): IPO's two-half option, exactly, slopes
    too. Kills: halves that interleave; the square of the mean kept."""
    policy, reference = terms(draws=6)
    leaf = policy.requires_grad_()
    halves = [log_ratios(of(2 * leaf[:, part], 2 * reference[..., part]))[:, 0] for part in (slice(0, 3), slice(3, 6))]
    first, second = (half[PAIRS.chosen] - half[PAIRS.rejected] - 1 / (2 * 0.7) for half in halves)
    losses = [Jackknife(SQUARE, 2)(of(leaf, reference), PAIRS), (first * second).mean()]
    assert float(losses[0].detach()) == pytest.approx(float(losses[1].detach()), rel=1e-13)
    torch.testing.assert_close(*(torch.autograd.grad(loss, leaf)[0] for loss in losses), rtol=1e-12, atol=1e-14)


@each("num_groups", [2, 3, 6])
def test_jackknife_of_a_square_subtracts_the_estimated_variance(num_groups: int) -> None:
    """(h - c)^2 - Var^ h, Var^ of the margin's independent groups (`types.Estimate`), exactly: the U-statistic.
    Kills: the variance of single draws; G instead of G - 1."""
    policy, reference = terms(draws=6)
    margin = (policy - reference[:, 0])[PAIRS.chosen] - (policy - reference[:, 0])[PAIRS.rejected]
    group = torch.arange(num_groups).repeat_interleave(6 // num_groups).expand_as(margin)
    expected = (margin.sum(-1) - 1 / (2 * 0.7)).square() - Estimate(margin, group).variance
    found = Jackknife(SQUARE, num_groups)(of(policy, reference), PAIRS)
    assert float(found) == pytest.approx(float(expected.mean()), rel=1e-13)


@each("wrapper", [CrossFit, Jackknife])
def test_groups_must_fit(wrapper: type) -> None:
    policy, reference = terms(draws=3)
    with pytest.raises(ValueError, match="num_groups must be at least 2, not 1"):
        wrapper(SHARP, 1)
    with pytest.raises(ValueError, match="3 independent groups of draws do not form num_groups = 2"):
        wrapper(SHARP, 2)(of(policy, reference), PAIRS)


# Over all outcomes of the draws ---------------------------------------------------------------------------------------


def outcomes(num_times: int) -> tuple[Tokens, Draws, Pairs]:
    """Every outcome of the draws of one answer, as the chosen rows of pairs; rejected rows are the same ones, whose
    terms will be set to a constant."""
    with exact.every_outcome(ROW, num_times, 1) as tokens:
        draws = FixedCount(num_times)(tokens)
    index = torch.arange(len(tokens.key))
    return tokens, draws, Pairs(index, index + len(index), tokens.length.repeat(2))


def values(policy: exact.Table, tokens: Tokens, draws: Draws, pairs: Pairs) -> Terms:
    """Terms of policy and reference; rejected rows have terms of 0."""
    ours = elbo(policy, tokens, draws).terms
    theirs = FrozenReference(exact.Table(seed=9))(tokens, draws, pairs)
    return of(torch.cat([ours, torch.zeros_like(ours)]), torch.cat([theirs, torch.zeros_like(theirs)]))


def gradient(objective: Objective, num_times: int) -> Tensor:
    """E grad of the loss of `num_times` draws: a mean over outcomes is what a mean over pairs is."""
    policy, (tokens, draws, pairs) = exact.Table(), outcomes(num_times)
    return torch.autograd.grad(objective(values(policy, tokens, draws, pairs), pairs), policy.table)[0]


def independent_product(num_times: int) -> Tensor:
    """E[slope of an estimate of `num_times` draws] * grad of the bound itself."""
    policy, (tokens, draws, pairs) = exact.Table(), outcomes(num_times)
    found = values(policy, tokens, draws, pairs)
    leaf = found.policy.detach().requires_grad_()
    (slope,) = torch.autograd.grad(SHARP(of(leaf, found.reference), pairs), leaf)
    one = Tokens(*(part[:1] for part in (tokens.ids, tokens.response, tokens.attention, tokens.key)))
    bound = elbo(policy, one, Enumerate()(one)).value.sum()
    return slope[pairs.chosen, 0].sum() * torch.autograd.grad(bound, policy.table)[0]


@each("num_groups", [2, 3])
def test_cross_fit_removes_the_covariance_of_slope_and_gradient(num_groups: int) -> None:
    """E gradient = E[slope of G - 1 draws] * grad of the bound, as an equality; the plain gradient of the same draws
    differs from E[slope of G draws] * grad of the bound by their covariance.

    Kills: slope from all groups; a group's slope from its own draws.
    """
    size = float(independent_product(num_groups).abs().max())
    crossed = gradient(CrossFit(SHARP, num_groups), num_groups)
    assert float((crossed - independent_product(num_groups - 1)).abs().max()) < 1e-12 * size
    plain = gradient(SHARP, num_groups)
    assert float((plain - independent_product(num_groups)).abs().max()) > 1e-2 * size


def loss(objective: Objective, num_times: int) -> float:
    policy, (tokens, draws, pairs) = exact.Table(), outcomes(num_times)
    with torch.no_grad():
        return float(objective(values(policy, tokens, draws, pairs), pairs))


def test_jackknife_removes_the_first_order_of_the_bias() -> None:
    """E loss - loss of the exact margin, over all outcomes. Kills: a jackknife that adds the correction instead."""
    with torch.no_grad():
        tokens, _, _ = outcomes(1)
        one = Tokens(*(part[:1] for part in (tokens.ids, tokens.response, tokens.attention, tokens.key)))
        margin = [elbo(exact.Table(seed=seed), one, Enumerate()(one)).value.sum() for seed in (2, 9)]
        true = float(-torch.nn.functional.logsigmoid(1.5 * (margin[0] - margin[1])))
    for num_groups in (2, 3):
        plain, corrected = loss(SHARP, num_groups) - true, loss(Jackknife(SHARP, num_groups), num_groups) - true
        assert plain > 0
        assert abs(corrected) < plain / 3


@each("num_groups", [2, 3])
def test_the_bias_of_a_square_is_the_variance_and_goes_away(num_groups: int) -> None:
    """Over all outcomes: E (h^ - c)^2 is too large by Var h^ exactly; with the jackknife it is (h - c)^2 of the exact
    bounds, gradients too. CrossFit has the unbiased gradient and the biased value.

    Kills: the correction for another variance; a product of dependent halves.
    """
    policy, (tokens, draws, pairs) = exact.Table(), outcomes(num_groups)
    ratio = log_ratios(values(policy, tokens, draws, pairs))[pairs.chosen, 0]
    true = exact.bound(policy, ROW) - exact.bound(exact.Table(seed=9), ROW)
    variance = float(ratio.detach().var(correction=0))
    assert variance > 0.1
    assert float(ratio.mean().detach()) == pytest.approx(true, abs=1e-12)
    square = (true - 1 / (2 * 0.7)) ** 2
    assert loss(SQUARE, num_groups) == pytest.approx(square + variance, rel=1e-12)
    assert loss(Jackknife(SQUARE, num_groups), num_groups) == pytest.approx(square, rel=1e-11)
    (of_bound,) = torch.autograd.grad(ratio.mean(), policy.table)
    expected = 2 * (true - 1 / (2 * 0.7)) * of_bound
    for wrapper in (Jackknife, CrossFit):
        found = gradient(wrapper(SQUARE, num_groups), num_groups)
        assert float((found - expected).abs().max()) < 1e-11 * float(expected.abs().max())
    plain = gradient(SQUARE, num_groups)
    assert float((plain - expected).abs().max()) > 1e-2 * float(expected.abs().max())
