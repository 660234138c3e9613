"""Objectives as functions of terms: values by formula, slopes by float64 gradient checks."""

from math import exp, log1p

import pytest
import torch
from torch import Tensor

from vrpo.losses import DPO, SFT, Objective, WeightedSum
from vrpo.pools import log_ratios
from vrpo.types import Pairs, Rows

PAIRS = Pairs(torch.tensor([2, 1]), torch.tensor([0, 3]), torch.tensor([3, 4, 2, 1]))
OBJECTIVES: dict[str, Objective] = {
    "dpo": DPO(0.2),
    "dpo-sharp": DPO(3.0),
    "sft": SFT(),
    "vrpo": WeightedSum(((1.0, DPO(0.2)), (0.05, SFT()))),
}
every_objective = pytest.mark.parametrize("objective", list(OBJECTIVES.values()), ids=list(OBJECTIVES))


def terms(seed: int = 0, draws: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    policy = torch.randn(4, draws, generator=generator, dtype=torch.float64)
    return policy, torch.randn(4, 1, draws, generator=generator, dtype=torch.float64)


def test_dpo_is_minus_log_sigmoid_of_the_averaged_margin() -> None:
    """Eq. 7-8 in plain Python. Kills: -log sigmoid averaged over draws; sum over pairs; chosen and rejected swapped;
    the reference added or left out; beta outside the sigmoid."""
    policy, reference = terms()
    bound, base = policy.sum(1).tolist(), reference[:, 0].sum(1).tolist()
    expected = 0.0
    for chosen, rejected in ((2, 0), (1, 3)):
        h = (bound[chosen] - base[chosen]) - (bound[rejected] - base[rejected])
        expected += log1p(exp(-0.7 * h)) / 2
    assert float(DPO(0.7)(policy, reference, PAIRS)) == pytest.approx(expected, abs=1e-14)


def test_averaging_inside_the_sigmoid_is_below_averaging_outside() -> None:
    """Jensen: loss(mean score) <= mean loss(score), equal for one draw. Our terms carry 1/K, so K * term is a score."""
    policy, reference = terms()
    inside = DPO(1.0)(policy, reference, PAIRS)
    outside = torch.stack([DPO(1.0)(3 * policy[:, k : k + 1], 3 * reference[..., k : k + 1], PAIRS) for k in range(3)])
    assert inside < outside.mean() - 0.1
    one = [part[..., :1] for part in (policy, reference)]
    assert float(DPO(1.0)(*one, PAIRS)) == pytest.approx(
        float(DPO(1.0)(one[0].expand(4, 3) / 3, one[1].expand(4, 1, 3) / 3, PAIRS)), abs=1e-14
    )


def test_dpo_does_not_know_the_length() -> None:
    """Kills: ELBO divided by response length, so that beta = 0.2 acts as 0.2 / 512."""
    policy, reference = terms()
    longer = Pairs(PAIRS.chosen, PAIRS.rejected, PAIRS.length * 100)
    assert torch.equal(DPO()(policy, reference, PAIRS), DPO()(policy, reference, longer))


def test_dpo_at_the_reference() -> None:
    """Policy equal to reference, draws in common: log 2 exactly, slopes -+ beta / 2 / P."""
    policy, _ = terms()
    leaf = policy.clone().requires_grad_()
    loss = DPO(0.2)(leaf, policy[:, None], PAIRS)
    assert torch.equal(loss.detach(), torch.tensor(2.0, dtype=torch.float64).log())
    (slope,) = torch.autograd.grad(loss, leaf)
    sign = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)  # rows 2 and 1 are chosen
    torch.testing.assert_close(slope, (0.2 / 2 / 2) * sign[:, None].expand(4, 3), rtol=1e-15, atol=0)


def test_dpo_survives_extreme_margins() -> None:
    """-log sigmoid(u) = -u for u = -1e4, and 0 for u = 1e4, without inf or NaN in value and slope."""
    for size, expected in ((1e4, 0.0), (-1e4, 1e4)):
        policy = torch.tensor([[0.0], [0.0], [size], [0.0]], dtype=torch.float64, requires_grad=True)
        pairs = Pairs(torch.tensor([2]), torch.tensor([0]), PAIRS.length)
        loss = DPO(1.0)(policy, torch.zeros(4, 1, 1, dtype=torch.float64), pairs)
        assert float(loss.detach()) == pytest.approx(expected, abs=1e-12)
        (slope,) = torch.autograd.grad(loss, policy)
        assert slope.isfinite().all()


def test_sft_is_the_bound_per_token_of_the_imitated_rows() -> None:
    """-B / L, mean over the chosen rows, or over all Rows. Kills: division by the padded length; rejected imitated."""
    policy, reference = terms()
    bound = policy.sum(1)
    chosen = -(bound[2] / 2 + bound[1] / 4) / 2
    assert float(SFT()(policy, reference[:, :0], PAIRS)) == pytest.approx(float(chosen), abs=1e-15)
    everything = -(bound / PAIRS.length).mean()
    assert float(SFT()(policy, reference[:, :0], Rows(PAIRS.length))) == pytest.approx(float(everything), abs=1e-15)


def test_weighted_sum_is_a_weighted_sum() -> None:
    policy, reference = terms()
    expected = 2 * DPO(0.3)(policy, reference, PAIRS) - 0.5 * SFT()(policy, reference, PAIRS)
    both = WeightedSum(((2.0, DPO(0.3)), (-0.5, SFT())))
    assert float(both(policy, reference, PAIRS)) == pytest.approx(float(expected), abs=1e-15)


@every_objective
@pytest.mark.parametrize("seed", range(3))
def test_slopes_by_finite_differences(objective: Objective, seed: int) -> None:
    """Kills: a slope of wrong sign; anything detached that should not be."""
    policy, reference = terms(seed)
    assert torch.autograd.gradcheck(lambda leaf: objective(leaf, reference, PAIRS), policy.requires_grad_())


@every_objective
def test_every_draw_of_a_row_has_the_same_slope(objective: Objective) -> None:
    """What backward-by-draw rests on: the loss sees the SUM of a row's terms. Kills: nonlinearity before averaging."""
    policy, reference = terms()
    (slope,) = torch.autograd.grad(objective(policy.requires_grad_(), reference, PAIRS), policy)
    torch.testing.assert_close(slope, slope[:, :1].expand(4, 3), rtol=1e-14, atol=0)


def test_a_reference_may_have_its_own_number_of_draws() -> None:
    policy, reference = terms()
    more = torch.cat([reference / 2, reference / 2], -1)
    torch.testing.assert_close(log_ratios(policy, reference), log_ratios(policy, more))


@pytest.mark.parametrize("references", [0, 2])
def test_a_missing_reference_is_an_error(references: int) -> None:
    """Kills: a missing reference value replaced by 0; the second of two references dropped in silence."""
    policy, reference = terms()
    with pytest.raises(ValueError, match="exactly one reference"):
        DPO()(policy, reference.expand(4, 2, 3)[:, :references], PAIRS)


@pytest.mark.parametrize("beta", [0.0, -0.2, float("nan")])
def test_beta_is_positive(beta: float) -> None:
    with pytest.raises(ValueError, match="beta"):
        DPO(beta)
