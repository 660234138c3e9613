"""What objectives are about besides pairs: ranked lists, labelled answers, rows to imitate. By plain formulas."""

from dataclasses import replace
from itertools import permutations
from math import exp, factorial, log

import pytest
import torch
from torch import Tensor

from tests.objectives import BETA, LABELS, LENGTH, PAIRS, RANKINGS, REWARD, WEIGHTED, by_place, of, terms
from vrpo.losses.objective import ItemObjective, WeightedSum
from vrpo.losses.pairwise import DPO, Preference, Sigmoid
from vrpo.losses.setwise import KTO, SFT, PlackettLuce
from vrpo.structures import Labels, Rankings, Rows
from vrpo.types import Pairs

LISTS = Rankings(RANKINGS.order, LENGTH)  # [2, 0, 5, 4] and [1, 3]


def s(x: float) -> float:
    return 1 / (1 + exp(-x))


def ratios(seed: int = 0) -> list[float]:
    policy, reference = terms(seed=seed)
    return [sum(p) - sum(q) for p, q in zip(policy.tolist(), reference[:, 0].tolist(), strict=True)]


def items(objective: ItemObjective, structure: object) -> list[float]:
    return objective.items(of(*terms()), structure).tolist()


# All pairs of a list --------------------------------------------------------------------------------------------------


def listed(rankings: Rankings) -> list[tuple[int, int, float, int]]:
    """(chosen, rejected, weight, list) of each pair, in order."""
    pairs = rankings.pairs
    assert pairs.weight is not None
    assert pairs.item is not None
    columns = (pairs.chosen, pairs.rejected, pairs.weight, pairs.item)
    return sorted(zip(*(column.tolist() for column in columns), strict=True), key=lambda pair: pair[::-1])


def test_all_pairs_of_lists() -> None:
    """Better before worse, padding left out, six pairs of four answers together as heavy as the one of two.

    Kills: worse before better; a pair with padding; lists counted by their pairs; a share rounded to float32.
    """
    found = listed(LISTS)
    assert sorted(pair[:2] for pair in found if pair[3] == 0) == [(0, 4), (0, 5), (2, 0), (2, 4), (2, 5), (5, 4)]
    assert [pair for pair in found if pair[3] == 1] == [(1, 3, 1.0, 1)]
    assert all(pair[2] == 1 / 6 for pair in found if pair[3] == 0)


def test_ties_are_no_pairs() -> None:
    """Answers 0 and 5 of equal reward: five pairs left, of a fifth each, times the list's weight.

    Kills: ties kept; the weight of six pairs for five; weights of lists ignored, or of another list.
    """
    reward = torch.tensor([1.0, 5.0, 3.0, 4.0, 0.0, 1.0], dtype=torch.float64)
    found = listed(replace(RANKINGS, reward=reward))
    assert sorted(pair[:2] for pair in found if pair[3] == 0) == [(0, 4), (2, 0), (2, 4), (2, 5), (5, 4)]
    assert [pair[2] for pair in found] == pytest.approx([0.5 / 5] * 5 + [2.0], rel=1e-15)


@pytest.mark.parametrize("order", [[[0, 1, 2], [3, 4, -1]], [[3, 4, -1], [0, 1, 2]]])
def test_a_list_of_ties_alone_is_refused(order: list[list[int]]) -> None:
    """Wherever it stands. Kills: a batch's mean that depends on whether it is the last one; 0 / 0."""
    reward = torch.tensor([1.0, 2.0, 3.0, 4.0, 4.0, 0.0], dtype=torch.float64)
    place = next(q for q, rows in enumerate(order) if -1 in rows)
    with pytest.raises(ValueError, match=f"list {place} has no two answers of different reward"):
        _ = Rankings(torch.tensor(order), LENGTH, reward=reward).pairs


def test_a_loss_of_pairs_on_lists_counts_each_list_once() -> None:
    """By hand: the mean over a list's pairs, times its weight; then the mean over lists.

    Kills: a mean over all pairs; list weights twice or not at all.
    """
    ratio = ratios()

    def loss(chosen: int, rejected: int) -> float:
        return -log(s(0.7 * (ratio[chosen] - ratio[rejected])))

    first = sum(loss(*pair) for pair in [(2, 0), (2, 5), (2, 4), (0, 5), (0, 4), (5, 4)]) / 6
    assert items(DPO(0.7), RANKINGS) == pytest.approx([0.5 * first, 2 * loss(1, 3)], abs=1e-14)
    assert float(DPO(0.7)(of(*terms()), LISTS)) == pytest.approx((first + loss(1, 3)) / 2, abs=1e-14)


def test_lists_of_two_are_pairs() -> None:
    """With their weights and rewards. Kills: a list that is more, or less, than its pair."""
    order = torch.stack([PAIRS.chosen, PAIRS.rejected], 1)
    both = Rankings(order, LENGTH, WEIGHTED.weight, REWARD)
    for objective in (DPO(0.7), Preference(Sigmoid(0.1), by_place), SFT()):
        assert items(objective, both) == pytest.approx(items(objective, WEIGHTED), abs=1e-15)


# Plackett-Luce --------------------------------------------------------------------------------------------------------


def plackett_luce(order: list[int], ratio: list[float], beta: float) -> float:
    """-log of prod_i exp(beta D_i) / sum over j not before i of exp(beta D_j) (DPO, Appendix A.3)."""
    score = [exp(beta * ratio[row]) for row in order]
    return -sum(log(score[i] / sum(score[i:])) for i in range(len(order)))


def test_plackett_luce_is_its_formula() -> None:
    """Ragged lists, a beta for each, weights. Kills: the sum from the wrong end; padding as an answer; the last of the
    list left out of sums; betas exchanged."""
    ratio = ratios()
    expected = [0.5 * plackett_luce([2, 0, 5, 4], ratio, 0.7), 2 * plackett_luce([1, 3], ratio, 0.7)]
    assert items(PlackettLuce(BETA), RANKINGS) == pytest.approx(expected, abs=1e-14)
    own = [plackett_luce([2, 0, 5, 4], ratio, 0.1), plackett_luce([1, 3], ratio, 0.2)]
    assert items(PlackettLuce(by_place), LISTS) == pytest.approx(own, abs=1e-14)


def test_the_probabilities_of_all_orders_add_up_to_one() -> None:
    """exp(-loss) is a law over the orders of a list; of equal answers it is uniform, log 24. Kills: a product that is
    none, such as the sum of DPO's losses over neighbours."""
    every = Rankings(torch.tensor(list(permutations([2, 0, 5, 4]))), LENGTH)
    policy, reference = terms()
    assert float((-PlackettLuce(BETA).items(of(policy, reference), every)).exp().sum()) == pytest.approx(1, abs=1e-14)
    equal = PlackettLuce(BETA).items(of(policy, policy[:, None]), every)
    torch.testing.assert_close(equal, torch.full_like(equal, log(factorial(4))), rtol=1e-14, atol=0)


def test_plackett_luce_of_two_is_dpo() -> None:
    policy, reference = terms()
    leaf = policy.requires_grad_()
    order = Rankings(torch.stack([PAIRS.chosen, PAIRS.rejected], 1), LENGTH)
    losses = [PlackettLuce(BETA)(of(leaf, reference), order), DPO(0.7)(of(leaf, reference), PAIRS)]
    assert float(losses[0].detach()) == pytest.approx(float(losses[1].detach()), abs=1e-15)
    torch.testing.assert_close(*(torch.autograd.grad(loss, leaf)[0] for loss in losses), rtol=1e-13, atol=0)


@pytest.mark.parametrize("objective", [PlackettLuce(BETA), DPO(0.7), SFT()])
def test_padding_of_lists_does_nothing(objective: ItemObjective) -> None:
    """Three more columns of -1: value and slope the same, no slope on the row that -1 would be. Kills: row -1 used."""
    wide = replace(RANKINGS, order=torch.nn.functional.pad(RANKINGS.order, (0, 3), value=-1))
    short = Rankings(torch.tensor([[1, 3, -1]]), LENGTH)
    leaf = terms()[0].requires_grad_()
    reference = terms()[1]
    losses = [objective(of(leaf, reference), each) for each in (wide, RANKINGS, short)]
    assert float(losses[0].detach()) == pytest.approx(float(losses[1].detach()), abs=1e-15)
    slope = [torch.autograd.grad(loss, leaf)[0] for loss in losses]
    torch.testing.assert_close(slope[0], slope[1], rtol=1e-13, atol=0)
    assert not slope[2][[0, 2, 4, 5]].any()


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_plackett_luce_of_extreme_margins(size: float) -> None:
    """The best answer 1e4 ahead of three equal ones, or behind: log 6 of their orders, and beta 1e4 + log 3. Kills: exp
    of 1e4."""
    policy = torch.zeros(6, 1, dtype=torch.float64)
    policy[2] = size
    leaf = policy.requires_grad_()
    one = Rankings(torch.tensor([[2, 0, 5, 4, -1]]), LENGTH)
    loss = PlackettLuce(BETA)(of(leaf, torch.zeros(6, 1, 1, dtype=torch.float64)), one)
    expected = log(6) + (0.7 * 1e4 + log(3) if size < 0 else 0)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-14)
    assert torch.autograd.grad(loss, leaf)[0].isfinite().all()


# Families -------------------------------------------------------------------------------------------------------------


def test_families_are_connected() -> None:
    """Pairs that share a row, directly or through others. Kills: one round of joining."""
    pairs = Pairs(torch.tensor([0, 4, 2, 5]), torch.tensor([3, 2, 0, 6]), torch.ones(8).long())
    assert pairs.family.tolist() == [0, 1, 0, 0, 0, 5, 5, 7]


def test_a_list_is_a_family() -> None:
    """And no coarser than its pairs'. Kills: padding that gives the last row a family."""
    assert LISTS.family.tolist() == [0, 1, 0, 1, 0, 0]
    assert LISTS.pairs.family.tolist() == [0, 1, 0, 1, 0, 0]


# Labels ---------------------------------------------------------------------------------------------------------------


def kto(structure: Labels, ratio: list[float], z0: float, sides: tuple[float, float] = (1.0, 1.0)) -> list[float]:
    """lambda_y (1 - sigmoid(+-beta (D - z0))), beta = 0.7; sides: of desirable and undesirable answers."""
    return [
        sides[0] * (1 - s(0.7 * (ratio[row] - z0))) if good else sides[1] * (1 - s(-0.7 * (ratio[row] - z0)))
        for row, good in zip(structure.row.tolist(), structure.desirable.tolist(), strict=True)
    ]


def weighted(losses: list[float]) -> list[float]:
    return [1.0 * losses[0], 0.5 * losses[1], 2.0 * losses[2]]


@pytest.mark.parametrize("seed", range(4))
def test_kto_is_its_formula(seed: int) -> None:
    """Both baselines, the weights of sides and labels; z0 = max(0, mean D of the mismatched), or the batch's mean.

    Kills: sides exchanged; sign of a label; z0 not clamped, or clamped as the batch's mean; z0 of the wrong rows;
    weights of labels ignored.
    """
    policy, reference = terms(seed=seed)
    ratio = ratios(seed)
    mean = sum(ratio[row] for row in (4, 5)) / 2
    plain = KTO(BETA, desirable_weight=1.3, undesirable_weight=0.8)
    found = plain.items(of(policy, reference), LABELS).tolist()
    assert found == pytest.approx(weighted(kto(LABELS, ratio, max(0.0, mean), (1.3, 0.8))), abs=1e-14)
    mean = sum(ratio[row] for row in (1, 0, 3)) / 3
    batch = KTO(BETA, baseline="batch_mean").items(of(policy, reference), replace(LABELS, weight=None)).tolist()
    assert batch == pytest.approx(kto(LABELS, ratio, mean), abs=1e-14)


def test_both_signs_of_the_baseline_occur() -> None:
    """So the test above sees the clamp at work, and not at work."""
    means = [sum(ratios(seed)[4:]) / 2 for seed in range(4)]
    assert min(means) < -0.1 < 0.1 < max(means)


@pytest.mark.parametrize("baseline", ["mismatched", "batch_mean"])
def test_kto_at_the_reference(baseline: str) -> None:
    """Policy equal to reference: z0 = 0 and every loss 1/2, slopes -+ beta / 4 / M. Kills: z0 with a gradient."""
    policy, _ = terms()
    leaf = policy.clone().requires_grad_()
    loss = KTO(BETA, baseline=baseline)(of(leaf, policy[:, None]), replace(LABELS, weight=None))
    assert float(loss.detach()) == 0.5
    (slope,) = torch.autograd.grad(loss, leaf)
    sign = torch.tensor([1.0, -1.0, 0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(slope, (0.7 / 4 / 3) * sign[:, None].expand(6, 3), rtol=1e-14, atol=0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("baseline", ["mismatched", "batch_mean"])
def test_the_baseline_has_no_gradient(baseline: str, seed: int) -> None:
    """The slope is that of the formula at a fixed z0. Kills: detach missing."""
    policy, reference = terms(seed=seed)
    leaf = policy.requires_grad_()
    objective = KTO(BETA, baseline=baseline)
    ratio = torch.tensor(ratios(seed), dtype=torch.float64)
    z0 = float(objective.zero(ratio, LABELS))
    fixed = torch.stack([leaf[1].sum(), -leaf[0].sum(), -leaf[3].sum()])
    base = torch.stack([reference[1].sum() + z0, -reference[0].sum() - z0, -reference[3].sum() - z0])
    by_hand = ((0.7 * (base - fixed)).sigmoid() * LABELS.weight).mean()
    losses = [objective(of(leaf, reference), LABELS), by_hand]
    torch.testing.assert_close(*(torch.autograd.grad(loss, leaf)[0] for loss in losses), rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("baseline", ["mismatched", "batch_mean"])
@pytest.mark.parametrize("seed", range(2))
def test_the_baseline_is_one_over_processes(baseline: str, seed: int) -> None:
    """Two processes of unequal size and a sum over both: each label's loss is that of one process with all rows.

    Kills: over_processes ignored; clamped before the mean over processes; a mean of means.
    """
    policy, reference = terms(seed=seed)
    whole = KTO(BETA, baseline=baseline)
    parts = [
        replace(LABELS, row=LABELS.row[cut], desirable=LABELS.desirable[cut], mismatched=mismatched, weight=None)
        for cut, mismatched in ((slice(0, 1), LABELS.mismatched[:1]), (slice(1, 3), LABELS.mismatched[1:]))
    ]
    sums: list[Tensor] = []

    def twice(own: Tensor) -> Tensor:
        """The same mean, of more than one label."""
        return 2 * own

    def heard(own: Tensor) -> Tensor:
        sums.append(own)
        return twice(own)

    for part in parts:
        replace(whole, over_processes=heard)(of(policy, reference), part)
    total = torch.stack(sums).sum(0)
    two = replace(whole, over_processes=lambda own: total)
    found = torch.cat([two.items(of(policy, reference), part) for part in parts])
    torch.testing.assert_close(
        found, whole.items(of(policy, reference), replace(LABELS, weight=None)), rtol=1e-14, atol=0
    )
    alone = torch.cat([replace(whole, over_processes=twice).items(of(policy, reference), part) for part in parts])
    assert float((found - alone).abs().max()) > 1e-3


def test_a_baseline_of_nothing_is_an_error() -> None:
    """On one process; another one may have answers to other prompts. Kills: 0 / 0; a missing number taken as 0."""
    none = replace(LABELS, mismatched=torch.tensor([], dtype=torch.long))
    with pytest.raises(ValueError, match="the batch has none"):
        KTO(BETA)(of(*terms()), none)
    elsewhere = KTO(BETA, over_processes=lambda own: own + torch.tensor([0.6, 2.0], dtype=torch.float64))
    assert elsewhere.items(of(*terms()), none).tolist() == pytest.approx(
        weighted(kto(LABELS, ratios(), 0.3)), abs=1e-14
    )
    KTO(BETA, baseline="batch_mean")(of(*terms()), none)


def test_kto_refuses_what_makes_no_sense() -> None:
    for weights in ((-1.0, 1.0), (1.0, -1.0), (float("nan"), 1.0), (1.0, float("nan"))):
        with pytest.raises(ValueError, match="must not be negative"):
            KTO(BETA, desirable_weight=weights[0], undesirable_weight=weights[1])
    with pytest.raises(ValueError, match="baseline"):
        KTO(BETA, baseline="mean")


# Imitation, and sums --------------------------------------------------------------------------------------------------


def test_sft_is_the_bound_per_token_of_the_imitated_rows() -> None:
    """-B / L of the chosen ones, the best of a list, the desirable ones, or all Rows; times the item's weight.

    Kills: division by the padded length; rejected or undesirable ones imitated; weights that weigh the preference only.
    """
    policy, _ = terms()
    each = [-sum(row) / n for row, n in zip(policy.tolist(), [3, 4, 2, 1, 3, 2], strict=True)]
    expected = [
        (PAIRS, [each[2], each[1], each[5]]),
        (WEIGHTED, [0.5 * each[2], 2 * each[1], 1.5 * each[5]]),
        (LISTS, [each[2], each[1]]),
        (RANKINGS, [0.5 * each[2], 2 * each[1]]),
        (LABELS, [each[1], 0, 0]),
        (replace(LABELS, desirable=~LABELS.desirable), [0, 0.5 * each[0], 2 * each[3]]),
        (Rows(LENGTH), each),
    ]
    for structure, values in expected:
        assert items(SFT(), structure) == pytest.approx(values, abs=1e-15)
        assert float(SFT()(of(policy, policy[:, None][:, :0]), structure)) == pytest.approx(sum(values) / len(values))


def test_imitated_rows() -> None:
    """What a supervised term is about. Kills: rows of another structure."""
    found = [structure.imitated.tolist() for structure in (PAIRS, LISTS, LABELS, Rows(LENGTH))]
    assert found == [[2, 1, 5], [2, 1], [1], [0, 1, 2, 3, 4, 5]]


def test_weighted_sum_is_a_weighted_sum() -> None:
    """Of losses and of items. Kills: weights ignored, normalised, or on another part."""
    policy, reference = terms()
    both = WeightedSum(((2.0, DPO(0.3)), (-0.5, SFT())))
    expected = 2 * DPO(0.3)(of(policy, reference), PAIRS) - 0.5 * SFT()(of(policy, reference), PAIRS)
    assert float(both(of(policy, reference), PAIRS)) == pytest.approx(float(expected), abs=1e-15)
    parts = [part.items(of(policy, reference), PAIRS) for part in (DPO(0.3), SFT())]
    torch.testing.assert_close(both.items(of(policy, reference), PAIRS), 2 * parts[0] - 0.5 * parts[1])
