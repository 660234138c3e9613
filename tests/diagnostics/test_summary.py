"""The report: which pairs a mean is over, which plan an advice is for, and where a picture puts its points."""

import pytest
import torch

from vrpo.diagnostics.advice import advice, recommendation
from vrpo.diagnostics.designs import Design, allocations
from vrpo.diagnostics.plots import budget_picture, scores_picture
from vrpo.diagnostics.replicates import Replicates
from vrpo.diagnostics.report import report_cell
from vrpo.diagnostics.statistics import left_out_numbers, noise
from vrpo.diagnostics.summary import Row, decompositions
from vrpo.draws import FixedCount

BETA = 0.2


def row(pairs: list[Replicates], design: Design = allocations([1])[0], draws: int = 1) -> Row:  # noqa: B008
    left_out = [list(part) for part in zip(*(left_out_numbers(pair, BETA) for pair in pairs), strict=True)]
    return Row(design, draws, True, [noise(pair, BETA) for pair in pairs], left_out)


def test_pairs_without_a_correlation_are_not_counted() -> None:
    """One pair of three has answers of one token, whose bounds have no noise; all other means are over all three.

    Kills: a column of nan because of one pair; a mean over the others that does not say so.
    """
    policy = torch.tensor([[[3.0], [1.0]], [[5.0], [2.0]], [[1.0], [4.0]], [[2.0], [0.0]]], dtype=torch.float64)
    gradient = torch.ones(4, 1, 2, dtype=torch.float64)
    noisy = Replicates(policy, policy + policy.roll(1, 0), gradient)
    quiet = Replicates(policy[:1].expand(4, 2, 1), policy[:1].expand(4, 2, 1), gradient)
    found = row([noisy, quiet, noisy])
    assert found.mean("correlation") == row([noisy]).mean("correlation")
    assert found.counted("correlation") == [0, 2]
    assert found.mean("score_variance").value == pytest.approx(2 / 3 * noise(noisy, BETA).score_variance)
    assert report_cell(found, "correlation").endswith("(2 pairs)")
    assert "pairs" not in report_cell(found, "score_variance")
    assert report_cell(row([quiet]), "correlation") == "not resolved (0 pairs)"
    assert found.as_json()["correlation"]["counted"] == 2


PAPER = allocations([1, 2, 4])[0]
BALANCED = Design("balanced", FixedCount(2, 2), 4, 2, (2, 4))


def rows_of(design: Design, variance: float) -> list[Row]:
    """Of six pairs whose gradients have a variance of about 1 between them, and this one within for each group."""
    source = torch.Generator().manual_seed(0)
    centre = 2 + torch.randn(6, 1, 1, 8, dtype=torch.float64, generator=source) / 8**0.5
    groups = design.draws // design.per_group
    error = torch.randn(6, 8, groups, 8, dtype=torch.float64, generator=source) * (variance / 8) ** 0.5
    zeros = torch.zeros(8, 2, groups, dtype=torch.float64)
    pairs = [Replicates(zeros, zeros, (2 / BETA) * gradient) for gradient in centre + error]
    return [row([pair.at(design.groups(n)) for pair in pairs], design, n) for n in design.budgets]


def test_each_plan_has_its_own_advice() -> None:
    """Draws that balance each other in couples leave 0.2 where two independent ones leave 4.

    Kills: the curves of the paper's plan, and the n that they lead to, given for every plan; budgets in draws taken for
    budgets in groups.
    """
    plans = decompositions([*rows_of(PAPER, 8.0), *rows_of(BALANCED, 0.2)], 0.0)
    assert [(part.plan, part.group, list(part.free["share"])) for part in plans] == [
        ("fixed_count", 1, [1, 2, 4]),
        ("balanced", 2, [2, 4]),
    ]
    said = {part.plan: one for part in plans if (one := advice(part)) is not None}
    assert said["balanced"].given.value == 2
    paper = said["fixed_count"].given.value
    assert paper is not None
    assert paper >= 8
    assert "extrapolated" in said["fixed_count"].answers()[1]
    share = {part.plan: part.free["share"][4].value for part in plans}
    assert share["balanced"] < 0.2 < 0.5 < share["fixed_count"]
    last = recommendation(plans, said, ("balanced", 4)).sentences[-1]
    assert f"num_times = 4: {100 * share['balanced']:.0f} % of the variance" in last


def test_points_stand_at_their_budget() -> None:
    """Kills: plans set so far apart sideways that they seem better or worse than the line 1 / n."""
    found = [*rows_of(PAPER, 8.0), *rows_of(BALANCED, 0.2)]
    gradient = budget_picture(found).axes[1]
    places = [list(part.lines[0].get_xdata()) for part in gradient.containers]
    assert places[0] == [1, 2, 4]
    assert places[1] == pytest.approx([2, 4], rel=0.0301)
    assert places[1] != [2, 4]


def test_the_axis_of_scores_follows_them() -> None:
    """Kills: three bars in the middle of an axis made for saturated scores; saturation out of sight where scores come
    near it, or a share of it that is not that of its budget."""
    near = [i / 100 for i in range(-50, 51)]
    panel = scores_picture({1: near, 8: [value / 2 for value in near]}).axes[0]
    assert panel.get_xlim() == pytest.approx((-0.53, 0.53))
    assert sum(bar.get_height() > 0 for bar in panel.containers[0]) > 40
    assert "out of this picture" in panel.get_xlabel()
    panel = scores_picture({1: [0.0, 1.0, 3.9, 4.5], 8: [0.0, 1.0, 2.0, 3.9]}).axes[0]
    assert panel.get_xlim() == pytest.approx((-0.135, 5))
    assert [text.get_text() for text in panel.get_legend().get_texts()] == [
        "n = 1, 25 % saturated",
        "n = 8, 0 % saturated",
    ]
    assert "shaded" in panel.get_xlabel()
    assert scores_picture({1: [0.0] * 3, 8: [0.0] * 3}).axes[0].get_xlim() == (-0.5, 0.5)
