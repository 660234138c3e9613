"""Temperatures: the beta of each pair, by the formula."""

from math import exp
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.objectives import LENGTH, PAIRS, REWARD, by_place, of, terms
from vrpo.losses.pairwise import DPO, Preference, Sigmoid
from vrpo.losses.temperature import Constant, Custom, RewardScaling
from vrpo.structures import Labels, Rankings
from vrpo.types import Pairs


def pair_of(*rewards: float) -> Pairs:
    return Pairs(torch.tensor([0]), torch.tensor([1]), LENGTH[:2], None, torch.tensor(rewards, dtype=torch.float64))


def beta_of(scaling: RewardScaling, *rewards: float) -> float:
    return float(scaling(pair_of(*rewards)))


def test_reward_scaling_is_its_formula() -> None:
    """beta (1 + w (1 - exp(-k d / scale))) of each pair, chosen minus rejected (MM-RLHF).

    Kills: w and k exchanged; the scale a factor; rewards of rows in the order of the batch.
    """
    w, k, scale = 0.4, 0.9, 2.5
    expected = [
        0.7 * (1 + w * (1 - exp(-k * (float(REWARD[chosen]) - float(REWARD[rejected])) / scale)))
        for chosen, rejected in ((2, 0), (1, 3), (5, 4))
    ]
    assert RewardScaling(0.7, scale, w, k)(PAIRS).tolist() == pytest.approx(expected, abs=1e-15)


def test_the_scale_is_the_unit_of_rewards() -> None:
    """In another unit the temperature is the same, with another scale alone it is not. Kills: a scale ignored."""
    assert beta_of(RewardScaling(0.7, 2.0), 3.0, 1.0) == pytest.approx(beta_of(RewardScaling(0.7, 20.0), 30.0, 10.0))
    assert beta_of(RewardScaling(0.7, 2.0), 3.0, 1.0) != pytest.approx(beta_of(RewardScaling(0.7, 1.0), 3.0, 1.0))


@pytest.mark.parametrize("worse", [0.0, -1e-9, -3.0, -1e5])
def test_a_chosen_answer_of_lower_reward_has_the_smallest_beta(worse: float) -> None:
    """Clamped to [beta, (1 + w) beta] below, also where exp(-k d) overflows. Kills: no clamp; 0 * inf."""
    for w in (0.5, 0.0):
        assert beta_of(RewardScaling(0.7, 0.1, w), worse, 0.0) == 0.7


@pytest.mark.parametrize("difference", [50.0, 1e4, 1e300])
def test_the_largest_beta(difference: float) -> None:
    assert beta_of(RewardScaling(0.7, 0.1), difference, 0.0) == pytest.approx(1.5 * 0.7, rel=1e-15)


@pytest.mark.parametrize(("w", "k"), [(0.0, 0.5), (0.5, 0.0), (0.0, 0.0)])
def test_no_scaling_is_dpo(w: float, k: float) -> None:
    """MM-DPO with w = 0 or k = 0, value and slope. Kills: 1 + w without d; a scaling that does not start at 1."""
    policy, reference = terms()
    leaf = policy.requires_grad_()
    found, plain = (
        objective(of(leaf, reference), PAIRS)
        for objective in (Preference(Sigmoid(), RewardScaling(0.7, 2.0, w, k)), DPO(0.7))
    )
    assert float(found.detach()) == pytest.approx(float(plain.detach()), abs=1e-15)
    torch.testing.assert_close(*(torch.autograd.grad(loss, leaf)[0] for loss in (found, plain)), rtol=1e-14, atol=0)


def test_each_pair_has_its_own_beta() -> None:
    """In the loss of DPO: a function of one's own, 0.1, 0.2, 0.3. Kills: betas exchanged, or their mean."""
    policy, reference = terms()
    found = Preference(Sigmoid(), by_place).items(of(policy, reference), PAIRS)
    alone = [DPO(beta).items(of(policy, reference), PAIRS)[place] for place, beta in enumerate((0.1, 0.2, 0.3))]
    torch.testing.assert_close(found, torch.stack(alone), rtol=1e-14, atol=0)


def test_a_temperature_has_no_gradient_of_its_own() -> None:
    """Betas are facts about pairs. Kills: rewards that became part of the graph."""
    assert not RewardScaling(0.7, 2.0)(PAIRS).requires_grad


def test_rewards_that_are_not_there() -> None:
    """Kills: a missing reward taken as 0."""
    with pytest.raises(ValueError, match="needs the rewards"):
        RewardScaling(0.7, 2.0)(Pairs(PAIRS.chosen, PAIRS.rejected, LENGTH))


def of_float32(reward: Tensor) -> Pairs:
    return Pairs(PAIRS.chosen, PAIRS.rejected, LENGTH, None, reward.float())


def test_betas_are_float64() -> None:
    """Whatever the rewards are in. Kills: a loss rounded to the rewards' precision."""
    assert RewardScaling(0.7, 2.0)(of_float32(REWARD)).dtype == torch.float64


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_wrong_numbers_are_refused(wrong: float) -> None:
    """Kills: comparisons that NaN passes."""
    with pytest.raises(ValueError, match="beta"):
        Constant(wrong)
    with pytest.raises(ValueError, match="beta"):
        RewardScaling(wrong, 1.0)
    with pytest.raises(ValueError, match="scale"):
        RewardScaling(0.2, wrong)


@pytest.mark.parametrize(("w", "k"), [(-0.1, 0.5), (0.5, -0.1), (float("nan"), 0.5), (0.5, float("nan"))])
def test_w_and_k_are_not_negative(w: float, k: float) -> None:
    with pytest.raises(ValueError, match="w and k"):
        RewardScaling(0.2, 1.0, w, k)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (0.3, "2 betas is wanted, not float"),
        (torch.full((4,), 0.3), r"2 betas is wanted, not \(4,\)"),
        (torch.full((2, 1), 0.3), r"2 betas is wanted, not \(2, 1\)"),
        (torch.tensor([0.3, -0.3]), "must be positive and finite"),
        (torch.tensor([0.3, float("nan")]), "must be positive and finite"),
    ],
)
def test_a_function_that_returns_no_betas_is_refused(given: Any, said: str) -> None:
    """Kills: a column that broadcasts to all pairs with all; a beta below 0, which prefers the rejected answer."""
    structure = Pairs(torch.tensor([0, 1]), torch.tensor([2, 3]), torch.full((4,), 5))
    with pytest.raises(ValueError, match=f"temperature mine: .*{said}"):
        Custom(lambda pairs: given, "mine")(structure)


def test_a_function_gives_a_beta_to_each_item_of_any_structure() -> None:
    """Pairs, lists and labels. Kills: the rows of a structure taken for its items."""
    length, both = torch.full((5,), 2), torch.tensor([0.1, 0.2])
    pairs = Pairs(torch.tensor([0, 1]), torch.tensor([2, 3]), length)
    lists = Rankings(torch.tensor([[0, 1, 4], [2, 3, -1]]), length)
    labels = Labels(torch.tensor([0, 1]), torch.tensor([True, False]), torch.tensor([2, 3]), length)
    for structure in (pairs, lists, labels):
        assert torch.equal(Custom(lambda one: both, "mine")(structure), both)


@pytest.mark.parametrize("fields", [{"w": float("inf")}, {"k": float("inf")}, {"w": float("nan")}])
def test_an_endless_scaling_is_refused(fields: dict[str, float]) -> None:
    """Kills: inf * 0, a loss that is NaN at the first pair of equal rewards."""
    with pytest.raises(ValueError, match="w and k must not be negative, and finite"):
        RewardScaling(0.2, 1.0, **fields)
