"""Replicates: the numbers of the estimator and of autograd, group by group, and what can be put together from them."""

import pytest
import torch

from tests.diagnostics.laws import SKETCH, pair, replicates, tables
from vrpo.coupling import Paired
from vrpo.diagnostics.replicates import replicated
from vrpo.draws import FixedCount
from vrpo.estimator import elbo
from vrpo.plans import BalancedMasks, Bernoulli, Levels
from vrpo.types import Plan

pytestmark = pytest.mark.usefixtures("no_global_randomness")
COUNT = 3
PLANS = {
    "single": FixedCount(4),
    "masks": FixedCount(2, 2),
    "t-form": Bernoulli(0.3, 3),  # draws that mask nothing among them
    "groups": BalancedMasks(Levels(4, 2)),
    "coupled": Paired(FixedCount(3)),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_bounds_and_gradients_are_those_of_the_estimator(plan: Plan) -> None:
    """Mean over groups = the whole estimate; the gradient is the sketch of autograd of the mean margin.

    Kills: the rejected answer's sign, groups not scaled up, terms of another replicate, a plan without its pairs.
    """
    policy, reference = tables()
    found = replicates(plan, COUNT)
    tokens, pairs = replicated(pair(), COUNT)
    draws = plan(tokens, pairs)
    bounds = elbo(policy, tokens, draws).value
    torch.testing.assert_close(found.policy.mean(-1).T.flatten(), bounds.detach())
    with torch.no_grad():
        torch.testing.assert_close(found.reference.mean(-1).T.flatten(), elbo(reference, tokens, draws).value)
    for r in range(COUNT):
        margin = bounds[r] - bounds[r + COUNT]
        expected = SKETCH(torch.autograd.grad(margin, list(policy.parameters()), retain_graph=True))
        torch.testing.assert_close(found.gradient[r].mean(0), expected)


def test_budgets_are_put_together_from_groups() -> None:
    """Kills: groups that overlap or are left out; gradients merged over sketches instead of groups."""
    found = replicates(FixedCount(4), COUNT)
    merged = found.at(2)
    assert merged.policy.shape == merged.reference.shape == (COUNT, 2, 2)
    torch.testing.assert_close(merged.policy[..., 1], found.policy[..., 2:].mean(-1))
    torch.testing.assert_close(merged.reference[..., 0], found.reference[..., :2].mean(-1))
    torch.testing.assert_close(merged.gradient[:, 1], found.gradient[:, 2:].mean(1))
    assert found.at(3).policy.shape == (COUNT, 2, 1)
    with pytest.raises(ValueError, match="cannot make an estimate of 5"):
        found.at(5)


def test_independent_draws_come_from_another_replicate() -> None:
    """Kills: independent() that leaves a reference with its own policy, or that moves groups or gradients."""
    found = replicates(FixedCount(4), COUNT)
    other = found.independent()
    torch.testing.assert_close(other.reference[1], found.reference[0])
    torch.testing.assert_close(other.reference[0], found.reference[-1])
    assert torch.equal(other.policy, found.policy)
    assert torch.equal(other.gradient, found.gradient)
    assert len(found.without(1).policy) == COUNT - 1
    assert torch.equal(found.without(1).gradient[1], found.gradient[2])


def test_replicates_are_different_and_pairs_have_their_own() -> None:
    """Kills: one key for all replicates, or for both answers."""
    tokens, _ = replicated(pair(), 4)
    assert len(set(tokens.key.tolist())) == 8
