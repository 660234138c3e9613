"""Plans beyond the paper's: unbiased as equalities, their variances by formula, what they couple and what they leave.

What every plan must do besides (padding, neighbours, replay) is the battery of tests/test_draws.py.
"""

from collections.abc import Callable
from dataclasses import replace
from math import comb

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests import exact
from tests.build import Row, in_response, make_tokens
from tests.loops import each
from tests.stat import assert_law
from vrpo.coupling import Paired, shared_tokens
from vrpo.draws import FixedCount, draw_key
from vrpo.estimator import elbo
from vrpo.plans import BalancedMasks, IndependentMasks, Levels
from vrpo.structures import Rows
from vrpo.types import Draws, Estimate, Pairs, Plan, Tokens

pytestmark = pytest.mark.usefixtures("no_global_randomness")
ROW = Row((2, 0), (1, 0, 2))
SHORT = Row((1,), (2, 0))
LEVELS = {
    "one": Levels(1),
    "strata": Levels(2),
    "groups": Levels(2, 2),
    "strata-in-groups": Levels(4, 2),
    "few-masks": Levels(2, exponent=0.5),
    "many-masks": Levels(2, 2, exponent=-0.75),
}
MASKS: dict[str, Callable[[Levels], Plan]] = {
    "independent": IndependentMasks,
    "balanced": BalancedMasks,
}


@pytest.fixture(scope="module")
def table() -> exact.Table:
    return exact.Table()


def law_of(table: torch.nn.Module, row: Row, plan: Plan, levels: Levels, orders: int) -> tuple[Tensor, Tensor, Tensor]:
    """Value, estimated variance (0 where there is one group) and probability of every outcome."""
    cells = exact.cells_of(levels, len(row.response))
    with exact.weighted_outcomes(row, cells, levels.num_times, 1, orders) as (tokens, probability), torch.no_grad():
        estimate = elbo(table, tokens, plan(tokens))
    several = levels.num_groups > 1
    guessed = Estimate(estimate.terms, estimate.group).variance if several else torch.zeros_like(estimate.value)
    return estimate.value, guessed, probability


def mean_variance(values: Tensor, probability: Tensor) -> tuple[float, float]:
    mean = float(values @ probability)
    return mean, float((values - mean).square() @ probability)


@each("masks", MASKS)
@each("levels", [name for name in LEVELS if name != "strata-in-groups"])
@each("row", [ROW, SHORT], ids=["L3", "L2"])
def test_every_plan_is_unbiased(table: exact.Table, row: Row, levels: str, masks: str) -> None:
    """Over all outcomes the mean is the bound, whatever the law, the strata, the cut.

    Kills: an importance weight without its normaliser or of the wrong sign; strata that do not tile.
    """
    drawn = LEVELS[levels]
    plan = MASKS[masks](drawn)
    orders = drawn.num_times if masks == "independent" else drawn.num_groups
    values, _, probability = law_of(table, row, plan, drawn, orders)
    assert float(probability.sum()) == pytest.approx(1, abs=1e-12)
    assert float(values @ probability) == pytest.approx(exact.bound(table, row), abs=1e-11)


def test_strata_within_groups(table: exact.Table) -> None:
    """Two groups of two: unbiased, twice as good as one group, and the groups' own estimate of the variance is exact.

    Kills: strata across groups; arcs across groups; a group id per draw.
    """
    levels = LEVELS["strata-in-groups"]
    values, guessed, probability = law_of(table, SHORT, BalancedMasks(levels), levels, 2)
    mean, variance = mean_variance(values, probability)
    alone, _, weight = law_of(table, SHORT, BalancedMasks(Levels(2)), Levels(2), 1)
    assert mean == pytest.approx(exact.bound(table, SHORT), abs=1e-11)
    assert variance == pytest.approx(mean_variance(alone, weight)[1] / 2, rel=1e-10)
    assert float(guessed @ probability) == pytest.approx(variance, rel=1e-10)


@each("exponent", [0.0, 0.5, -0.75])
def test_importance_sampling_has_its_variance(table: exact.Table, exponent: float) -> None:
    """Var = (sum_m p(m)^2 / q(m) E[A_m^2] - B^2) / n by enumeration of subsets. Kills: counts not from q."""
    sums, law = exact.subset_sums(table, ROW), exact.count_law(exponent, 3)
    second = 0.0
    for m in (1, 2, 3):
        values = [3 / m * f for subset, f in sums.items() if len(subset) == m]
        second += sum(v * v for v in values) / len(values) / 9 / law[m - 1]
    bound = exact.bound(table, ROW)
    levels = Levels(2, 2, exponent)
    values, guessed, probability = law_of(table, ROW, IndependentMasks(levels), levels, 2)
    assert mean_variance(values, probability)[1] == pytest.approx((second - bound**2) / 2, rel=1e-10)
    assert float(guessed @ probability) == pytest.approx((second - bound**2) / 2, rel=1e-10)


def test_stratified_counts_lose_the_variance_between_strata(table: exact.Table) -> None:
    """One draw per stratum: V_y and what V_t has inside strata stay, L = 2: V_t goes. Kills: strata never reached."""
    law = exact.moments(exact.subset_sums(table, SHORT))
    values, _, probability = law_of(table, SHORT, IndependentMasks(Levels(2)), Levels(2), 2)
    assert law.between > 0.1
    assert mean_variance(values, probability)[1] == pytest.approx(law.within / 2, rel=1e-10)


def test_balanced_masks_mask_every_token_alike() -> None:
    """Within a group the numbers of masks of any two tokens differ by at most 1. Kills: an order per draw."""
    tokens = make_tokens([Row((0,), (1,) * 9, key) for key in range(30)])
    times = BalancedMasks(Levels(8, 2))(tokens).masked.unflatten(1, (2, 4)).sum(2)[..., 1:]
    assert (times.amax(-1) - times.amin(-1) <= 1).all()


def test_one_group_per_draw_is_the_paper_s_plan() -> None:
    """The same numbers, bit for bit. Kills: counts off by one; a second meaning of the same keys."""
    tokens = make_tokens([Row((0, 1), (2,) * 7, 1), Row((1,), (2,) * 3, 2)], left=1, right=2)
    for field in ("masked", "weight", "group"):
        one, other = (getattr(plan(tokens), field) for plan in (FixedCount(8), IndependentMasks(Levels(8, 8))))
        torch.testing.assert_close(one, other, rtol=1e-15, atol=0)


# Pairs ----------------------------------------------------------------------------------------------------------------


def pair_of(chosen: tuple[int, ...], rejected: tuple[int, ...], keys: int = 1, **padding: int) -> tuple[Tokens, Pairs]:
    rows = [Row((0,), answer, 0) for answer in (chosen, rejected) for _ in range(keys)]
    tokens = make_tokens(rows, **padding)
    example, side = torch.arange(keys).repeat(2), torch.arange(2).repeat_interleave(keys)
    index = torch.arange(keys)
    return replace(tokens, key=draw_key(7, example, side, 0)), Pairs(index, index + keys, tokens.length)


def longest(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Length of the longest common subsequence, by its recursion."""
    if not a or not b:
        return 0
    same = longest(a[1:], b[1:]) + 1 if a[0] == b[0] else 0
    return max(same, longest(a[1:], b), longest(a, b[1:]))


answers = st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(answers, answers), min_size=1, max_size=3), left=st.integers(0, 2))
def test_shared_tokens_are_a_longest_common_subsequence(
    rows: list[tuple[tuple[int, ...], tuple[int, ...]]], left: int
) -> None:
    """Equal tokens, increasing places, as many as the recursion says, whatever the padding and the other pairs.

    Kills: a match outside the response, crossing matches, a table of the neighbour.
    """
    tokens = make_tokens([Row((0, 1), answer) for pair in zip(*rows, strict=True) for answer in pair], left=left)
    index = torch.arange(len(rows))
    found = shared_tokens(tokens, Pairs(index, index + len(rows), tokens.length))
    assert (found[~tokens.response[len(rows) :]] == -1).all()
    for p, (chosen, rejected) in enumerate(rows):
        place = found[p][tokens.response[len(rows) + p]].tolist()
        kept = [(a, b) for b, a in enumerate(place) if a >= 0]
        assert [chosen[a] for a, _ in kept] == [rejected[b] for _, b in kept]
        assert [a for a, _ in kept] == sorted({a for a, _ in kept})
        assert len(kept) == longest(chosen, rejected)


@each("align", [False, True])
@each("answer", [(1, 2, 2, 0), (2, 0)])
def test_pairing_leaves_each_answer_its_law(align: bool, answer: tuple[int, ...]) -> None:
    """P(S) = 1 / (L C(L, m)) for the rejected answer, which shares tokens with the chosen one, and for the chosen one.

    Kills: a slot used twice (two tokens masked together), orders of the chosen answer cut to the rejected one's length.
    """
    count = 60_000
    tokens, pairs = pair_of((2, 1, 0), answer, count)
    draws = Paired(FixedCount(1), align)(tokens, pairs)
    for length, rows in ((3, slice(0, count)), (len(answer), slice(count, None))):
        masked = draws.masked[rows, 0, 1 : 1 + length]
        codes = (masked.long() << torch.arange(length)).sum(-1)
        law = [0.0] + [1 / (length * comb(length, code.bit_count())) for code in range(1, 1 << length)]
        assert_law(codes.bincount(minlength=1 << length), torch.tensor(law), resolution=0.03)


def test_equal_answers_get_equal_draws() -> None:
    """Quantile and order in common: the margin of an answer against itself has no noise. Kills: keys not in common."""
    tokens, pairs = pair_of((2, 1, 0, 1), (2, 1, 0, 1))
    draws = Paired(BalancedMasks(Levels(4)))(tokens, pairs)
    assert torch.equal(draws.masked[0], draws.masked[1])
    assert torch.equal(draws.weight[0], draws.weight[1])
    apart = BalancedMasks(Levels(4))(tokens, pairs)
    assert not torch.equal(apart.masked[0], apart.masked[1])


def test_aligned_tokens_come_in_one_order() -> None:
    """The rejected answer is the chosen one with a token inserted at the front: the shared tail keeps its order.

    By place alone it would not. Kills: alignment computed and not used.
    """
    chosen, rejected = (1, 2, 0, 1, 2, 2), (0, 1, 2, 0, 1, 2, 2)
    tokens, pairs = pair_of(chosen, rejected, 200)
    for align in (True, False):
        draws = Paired(FixedCount(1), align)(tokens, pairs)
        first, second = draws.masked[:200, 0, 1:7], draws.masked[200:, 0, 2:8]
        ordered = ((first | ~second).all(-1)) | ((second | ~first).all(-1))  # two cuts of one order are nested
        assert ordered.all() == align


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(st.tuples(answers, answers), min_size=1, max_size=3), left=st.integers(0, 3), right=st.integers(0, 3)
)
def test_paired_draws_depend_on_their_pair_alone(
    rows: list[tuple[tuple[int, ...], tuple[int, ...]]], left: int, right: int
) -> None:
    """Bit for bit, whatever the padding and the other pairs. Kills: slots numbered by the padded width."""
    plan = Paired(BalancedMasks(Levels(4, 2)))

    def drawn(chosen: list[Row], rejected: list[Row], left: int, right: int) -> list[tuple[Tensor, Tensor]]:
        tokens = make_tokens([*chosen, *rejected], left=left, right=right)
        index = torch.arange(len(chosen))
        draws: Draws = plan(tokens, Pairs(index, index + len(chosen), tokens.length))
        return list(zip(in_response(tokens, draws.masked), in_response(tokens, draws.weight), strict=True))

    sides = [[Row((0,), pair[side], 10 * p + side) for p, pair in enumerate(rows)] for side in (0, 1)]
    together = drawn(*sides, left, right)
    for p in range(len(rows)):
        alone = drawn([sides[0][p]], [sides[1][p]], 0, 0)
        for side, place in ((0, p), (1, len(rows) + p)):
            assert all(torch.equal(a, b) for a, b in zip(alone[side], together[place], strict=True))


def test_pairing_needs_pairs() -> None:
    tokens, _ = pair_of((1,), (2,))
    for structure in (None, Rows(tokens.length)):
        with pytest.raises(ValueError, match="needs Pairs"):
            Paired(FixedCount(1))(tokens, structure)


def test_a_row_of_two_pairs_is_refused() -> None:
    tokens = make_tokens([Row((0,), (1, 2), key) for key in range(3)])
    shared = Pairs(torch.tensor([0, 0]), torch.tensor([1, 2]), tokens.length)
    with pytest.raises(ValueError, match="without a row in common"):
        Paired(FixedCount(1))(tokens, shared)


@each(
    ("make", "message"),
    [
        (lambda: Levels(6, 4), "num_groups = 4"),
        (lambda: Levels(0), "at least 1"),
        (lambda: Levels(8, 0), "num_groups must be at least 1"),
        (lambda: Levels(8, exponent=float("nan")), "exponent"),
        (lambda: Levels(8, exponent=50.0), "exponent"),
    ],
)
def test_impossible_plans_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
