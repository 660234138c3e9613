"""Which answers are compared, and win rates."""

import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrpo.rewards.comparisons import Comparison, schedule, win_rates
from vrpo.rewards.pairing import Key

samples = st.lists(st.integers(0, 30), unique=True, min_size=2, max_size=9)


@given(samples, st.one_of(st.none(), st.integers(1, 40)), st.integers(0, 3))
def test_a_budget_is_spread_evenly(indices: list[int], budget: int | None, seed: int) -> None:
    """Kills: comparisons made twice or with itself, a budget that is overrun, answers that are left out."""
    found = schedule(indices, budget, Key(seed, 7))
    everything = set(combinations(sorted(indices), 2))
    assert len(found) == len(set(found)) == min(len(everything), budget or len(everything))
    assert set(found) <= everything
    assert found == schedule(indices[::-1], budget, Key(seed, 7))
    counts = [sum(index in pair for pair in found) for index in indices]
    assert max(counts) - min(counts) <= 2
    if len(found) >= len(indices) - 1:
        reached = {indices[0]}
        for _ in indices:
            reached |= {index for pair in found if reached & set(pair) for index in pair}
        assert reached == set(indices)


def test_a_budget_depends_on_the_prompt() -> None:
    assert len({tuple(schedule(range(6), 3, Key(0, prompt))) for prompt in range(9)}) > 1
    with pytest.raises(ValueError, match="at least 1"):
        schedule([0, 1], 0, Key(0, 0))


def test_win_rates() -> None:
    """Kills: the second answer given the first one's result, a missing result counted as a loss or a tie."""
    compared = [(0, 1), (0, 2), (1, 2), (0, 3)]
    results = [Comparison((1.0, 1.0)), Comparison((0.0, 1.0)), Comparison((None, 1.0)), Comparison((None, None))]
    found = win_rates([0, 1, 2, 3], compared, results)
    assert [verdict.reward for verdict in found[:3]] == [0.75, 0.0, 0.5]
    assert math.isnan(found[3].reward)
    assert found[3].reason == "no comparison has a result"
    assert found[0].reason == "won 1.5 of 2 comparisons"


def test_a_comparison() -> None:
    """Mean of both orders. Kills: only one order, an unreadable reply that is silently a tie or a loss."""
    assert Comparison((1.0, 0.0)).value == 0.5
    assert Comparison((1.0, 0.5)).value == 0.75
    assert math.isnan(Comparison((1.0, None)).value)
    assert Comparison((1.0, None), unreadable_is_tie=True).value == 0.75
