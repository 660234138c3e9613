"""Objectives and references that change slopes only: what they do to loss and gradient, exactly, over all outcomes."""

import pytest
import torch
from torch import Tensor

from tests import exact
from tests.build import Row
from tests.objectives import PAIRS, terms
from vrpo.draws import Enumerate, FixedCount
from vrpo.estimator import elbo
from vrpo.losses import DPO, SFT, Objective, Preference, WeightedSum
from vrpo.pair_losses import IPO
from vrpo.pools import log_ratios
from vrpo.reference import ControlledReference, FrozenReference
from vrpo.slopes import CrossFit, Jackknife
from vrpo.temperature import Constant
from vrpo.types import Draws, Pairs, Rows, Tokens, group_variance

pytestmark = pytest.mark.usefixtures("no_global_randomness")
ROW = Row((1,), (0, 2), 11)
LINEAR = WeightedSum(((0.7, SFT()), (0.1, SFT())))
SHARP = DPO(1.5)
SQUARE = Preference(IPO(), Constant(0.7))  # ipo_sum


def slope_of(objective: Objective, policy: Tensor, reference: Tensor) -> Tensor:
    leaf = policy.clone().requires_grad_()
    return torch.autograd.grad(objective(leaf, reference, PAIRS), leaf)[0]


# By hand --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", [CrossFit, Jackknife])
@pytest.mark.parametrize("num_groups", [2, 3, 6])
def test_a_linear_objective_stays_what_it_is(wrapper: type, num_groups: int) -> None:
    """Leaving out and scaling up is unbiased. Kills: G / (G - 1) left out; a wrong weight of the parts without a group;
    slopes of all groups added up for every draw."""
    policy, reference = terms(draws=6)
    wrapped = wrapper(LINEAR, num_groups)
    plain = LINEAR(policy, reference, PAIRS)
    assert float(wrapped(policy, reference, PAIRS)) == pytest.approx(float(plain), abs=1e-14)
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
        value = CrossFit(SHARP, 2)(policy, reference, PAIRS)
    assert torch.equal(value, SHARP(policy, reference, PAIRS))


@pytest.mark.parametrize("seed", range(3))
def test_jackknife_slopes_by_finite_differences(seed: int) -> None:
    """Kills: parts detached."""
    policy, reference = terms(seed=seed, draws=6)
    wrapped = Jackknife(SHARP, 3)
    assert torch.autograd.gradcheck(lambda leaf: wrapped(leaf, reference, PAIRS), policy.requires_grad_())


def test_jackknife_of_two_groups() -> None:
    """2 L(all) - (L(first) + L(second)) / 2, by the formula. Kills: groups that interleave; (G - 1) / G left out."""
    policy, reference = terms(draws=6)
    parts = [SHARP(2 * policy[:, part], 2 * reference[..., part], PAIRS) for part in (slice(0, 3), slice(3, 6))]
    expected = 2 * SHARP(policy, reference, PAIRS) - (parts[0] + parts[1]) / 2
    assert float(Jackknife(SHARP, 2)(policy, reference, PAIRS)) == pytest.approx(float(expected), abs=1e-14)


def test_jackknife_of_a_square_in_two_groups_is_a_product() -> None:
    """(h_1 - c)(h_2 - c) of each pair's two halves, c = 1 / (2 beta): IPO's two-half option, exactly, slopes
    too. Kills: halves that interleave; the square of the mean kept."""
    policy, reference = terms(draws=6)
    leaf = policy.requires_grad_()
    halves = [log_ratios(2 * leaf[:, part], 2 * reference[..., part])[:, 0] for part in (slice(0, 3), slice(3, 6))]
    first, second = (half[PAIRS.chosen] - half[PAIRS.rejected] - 1 / (2 * 0.7) for half in halves)
    losses = [Jackknife(SQUARE, 2)(leaf, reference, PAIRS), (first * second).mean()]
    assert float(losses[0].detach()) == pytest.approx(float(losses[1].detach()), rel=1e-13)
    torch.testing.assert_close(*(torch.autograd.grad(loss, leaf)[0] for loss in losses), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("num_groups", [2, 3, 6])
def test_jackknife_of_a_square_subtracts_the_estimated_variance(num_groups: int) -> None:
    """(h - c)^2 - Var^ h, Var^ of the margin's independent groups (`types.group_variance`), exactly: the U-statistic.
    Kills: the variance of single draws; G instead of G - 1."""
    policy, reference = terms(draws=6)
    margin = (policy - reference[:, 0])[PAIRS.chosen] - (policy - reference[:, 0])[PAIRS.rejected]
    group = torch.arange(num_groups).repeat_interleave(6 // num_groups).expand_as(margin)
    expected = (margin.sum(-1) - 1 / (2 * 0.7)).square() - group_variance(margin, group)
    found = Jackknife(SQUARE, num_groups)(policy, reference, PAIRS)
    assert float(found) == pytest.approx(float(expected.mean()), rel=1e-13)


@pytest.mark.parametrize("wrapper", [CrossFit, Jackknife])
def test_groups_must_fit(wrapper: type) -> None:
    policy, reference = terms(draws=3)
    with pytest.raises(ValueError, match="num_groups must be at least 2, not 1"):
        wrapper(SHARP, 1)
    with pytest.raises(ValueError, match="3 draws do not form num_groups = 2"):
        wrapper(SHARP, 2)(policy, reference, PAIRS)


# Over all outcomes of the draws ---------------------------------------------------------------------------------------


def outcomes(num_times: int) -> tuple[Tokens, Draws, Pairs]:
    """Every outcome of the draws of one answer, as the chosen rows of pairs; rejected rows are the same ones, whose
    terms will be set to a constant."""
    with exact.every_outcome(ROW, num_times, 1) as tokens:
        draws = FixedCount(num_times)(tokens)
    index = torch.arange(len(tokens.key))
    return tokens, draws, Pairs(index, index + len(index), tokens.length.repeat(2))


def values(policy: exact.Table, tokens: Tokens, draws: Draws, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Terms of policy and reference; rejected rows have terms of 0."""
    ours = elbo(policy, tokens, draws).terms
    theirs = FrozenReference(exact.Table(seed=9))(tokens, draws, pairs)
    return torch.cat([ours, torch.zeros_like(ours)]), torch.cat([theirs, torch.zeros_like(theirs)])


def gradient(objective: Objective, num_times: int) -> Tensor:
    """E grad of the loss of `num_times` draws: a mean over outcomes is what a mean over pairs is."""
    policy, (tokens, draws, pairs) = exact.Table(), outcomes(num_times)
    return torch.autograd.grad(objective(*values(policy, tokens, draws, pairs), pairs), policy.table)[0]


def independent_product(num_times: int) -> Tensor:
    """E[slope of an estimate of `num_times` draws] * grad of the bound itself."""
    policy, (tokens, draws, pairs) = exact.Table(), outcomes(num_times)
    leaf, theirs = values(policy, tokens, draws, pairs)
    leaf = leaf.detach().requires_grad_()
    (slope,) = torch.autograd.grad(SHARP(leaf, theirs, pairs), leaf)
    one = Tokens(*(part[:1] for part in (tokens.ids, tokens.response, tokens.attention, tokens.key)))
    bound = elbo(policy, one, Enumerate()(one)).value.sum()
    return slope[pairs.chosen, 0].sum() * torch.autograd.grad(bound, policy.table)[0]


@pytest.mark.parametrize("num_groups", [2, 3])
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
        return float(objective(*values(policy, tokens, draws, pairs), pairs))


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


@pytest.mark.parametrize("num_groups", [2, 3])
def test_the_bias_of_a_square_is_the_variance_and_goes_away(num_groups: int) -> None:
    """Over all outcomes: E (h^ - c)^2 is too large by Var h^ exactly; with the jackknife it is (h - c)^2 of the exact
    bounds, gradients too. CrossFit has the unbiased gradient and the biased value.

    Kills: the correction for another variance; a product of dependent halves.
    """
    policy, (tokens, draws, pairs) = exact.Table(), outcomes(num_groups)
    ours, theirs = values(policy, tokens, draws, pairs)
    ratio = log_ratios(ours, theirs)[pairs.chosen, 0]
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


# The reference as a control variate -----------------------------------------------------------------------------------


def controlled(coefficient: float) -> tuple[Tensor, Tensor]:
    """The log-ratio of every outcome of two draws, with this coefficient; and the exact one."""
    with exact.every_outcome(ROW, 2, 1) as tokens:
        draws = FixedCount(2)(tokens)
    structure = Rows(tokens.length)
    frozen, policy = exact.Table(seed=9), exact.Table()
    bound = exact.bound(frozen, ROW)
    known = torch.full((len(tokens.key),), bound, dtype=torch.float64)
    reference = ControlledReference(FrozenReference(frozen), known, coefficient)
    with torch.no_grad():
        ratio = log_ratios(elbo(policy, tokens, draws).terms, reference(tokens, draws, structure))[:, 0]
    return ratio, torch.tensor(exact.bound(policy, ROW) - bound, dtype=torch.float64)


@pytest.mark.parametrize("coefficient", [0.0, 0.5, 1.0, 1.3])
def test_a_controlled_reference_is_unbiased(coefficient: float) -> None:
    """Kills: (1 - c) * B missing, of the wrong sign, or counted once per draw."""
    ratio, true = controlled(coefficient)
    torch.testing.assert_close(ratio.mean(), true, rtol=0, atol=1e-12)


def test_the_best_coefficient_has_the_least_variance() -> None:
    """A parabola in c with its minimum at Cov / Var, below the value at c = 1. Kills: a coefficient without effect."""
    variance = {c: float(controlled(c)[0].var(correction=0)) for c in (0.0, 0.5, 1.0)}
    square = 2 * (variance[0.0] + variance[1.0] - 2 * variance[0.5])  # of c: Var of the reference
    best = (variance[0.0] - variance[1.0]) / square / 2 + 0.5
    least = variance[0.0] - square * best**2
    assert float(controlled(best)[0].var(correction=0)) == pytest.approx(least, rel=1e-9)
    assert least < min(variance.values())


def test_coefficient_one_is_the_reference_bit_for_bit() -> None:
    """And a bound may be a function of the rows. Kills: a score that is not exactly 0 at the reference."""
    with exact.every_outcome(ROW, 1, 1) as tokens:
        draws = FixedCount(1)(tokens)
    frozen, structure = FrozenReference(exact.Table()), Rows(tokens.length)
    plain = frozen(tokens, draws, structure)
    assert torch.equal(ControlledReference(frozen, plain[:, 0, 0], 1.0)(tokens, draws, structure), plain)
    by_key = ControlledReference(frozen, lambda tokens: tokens.key.double(), 0.0)(tokens, draws, structure)
    assert torch.equal(by_key[:, 0].sum(-1), tokens.key.double())


def test_a_bound_is_one_number_per_row() -> None:
    with exact.every_outcome(ROW, 1, 1) as tokens:
        draws = FixedCount(1)(tokens)
    one = ControlledReference(FrozenReference(exact.Table()), torch.zeros(1, dtype=torch.float64), 0.5)
    with pytest.raises(ValueError, match=r"bound has shape \(1,\), for 4 rows"):
        one(tokens, draws, Rows(tokens.length))
