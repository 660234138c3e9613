"""The bound of block diffusion: block by block by enumeration, unbiased draws as equalities, its two limits."""

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations, product
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import vrpo.draws
from tests import exact
from tests.build import Row, copies, in_response, make_tokens
from tests.loops import each
from tests.stat import assert_law
from vrpo.coupling import Paired
from vrpo.draws import FixedCount, draw_key, fold
from vrpo.estimator import elbo
from vrpo.plans import BalancedMasks, Enumerate, Levels, PerBlock, within_blocks
from vrpo.types import Pairs, Plan, Tokens

pytestmark = pytest.mark.usefixtures("no_global_randomness")
PLANS: dict[str, Callable[[], Plan]] = {
    "fixed": lambda: FixedCount(4, 2),
    "balanced": lambda: BalancedMasks(Levels(6, 2)),
}
every_plan = each("plan", [make() for make in PLANS.values()], ids=list(PLANS))
ROWS = [Row((2, 0), (1, 0, 2), 1), Row((1,), (2, 0, 1, 1), 2), Row((0, 0, 1), (1, 2), 3), Row((), (2,), 4)]


class BlockTable(nn.Module):
    """A table model of block diffusion: of a block it sees what is not masked, of earlier blocks all, of later none."""

    def __init__(self, block_size: int):
        super().__init__()
        self.table, self.block_size = exact.Table(length=6), block_size

    def forward(self, *, input_ids: Tensor, attention_mask: Tensor, masked: Tensor, scored: Tensor) -> Tensor:
        block = (attention_mask.cumsum(-1) - 1) // self.block_size
        found = torch.zeros(input_ids.shape, dtype=torch.float64)
        for number in range(int(block.max()) + 1):
            own = block == number
            values = self.table(
                input_ids=input_ids,
                attention_mask=attention_mask & (block <= number),
                masked=masked & own,
                scored=scored & own,
            )
            found = found.masked_scatter(scored & own, values)
        return found[scored]


def blocks_of(row: Row, size: int) -> list[tuple[int, ...]]:
    """The response positions of each block, blocks counted from the beginning of the row."""
    start = len(row.prompt)
    blocks: dict[int, list[int]] = {}
    for place in range(len(row.response)):
        blocks.setdefault((start + place) // size, []).append(place)
    return [tuple(block) for block in blocks.values()]


def block_moments(denoiser: BlockTable, row: Row) -> list[exact.Moments]:
    """Of every block: the bound of its log-probability given what is before it, by enumeration, and its variances."""
    return [
        exact.moments(
            {
                subset: exact.token_logp(denoiser, row, chosen, chosen)
                for subset in exact.subsets(len(block))
                for chosen in [tuple(block[place] for place in subset)]
            }
        )
        for block in blocks_of(row, denoiser.block_size)
    ]


@each("size", [1, 2, 3, 10])
@each("row", ROWS, ids=lambda row: f"{len(row.prompt)}+{len(row.response)}")
def test_the_bound_is_the_sum_over_blocks(row: Row, size: int) -> None:
    """Enumerated within each block, all blocks in one draw; and, as dear as it is, over the whole response: what a plan
    masks in a block has the same weighted law as the block's own, so any plan is unbiased for it.

    Kills: blocks counted from the response; a weight of the whole response in a block; blocks left out.
    """
    denoiser = BlockTable(size)
    expected = sum(each.bound for each in block_moments(denoiser, row))
    with torch.no_grad():
        for plan in (PerBlock(Enumerate(), size), Enumerate()):
            tokens = make_tokens([row, *ROWS], left=1)
            assert float(elbo(denoiser, tokens, plan(tokens)).value[0]) == pytest.approx(expected, abs=1e-12)


def test_enumeration_of_blocks_costs_the_longest_block() -> None:
    tokens = make_tokens([Row((0, 1), (0, 1, 2, 0, 1, 2))])
    assert PerBlock(Enumerate(), 2)(tokens).masked.shape[1] == 3 < Enumerate()(tokens).masked.shape[1]


@each("row", [Row((2, 0), (1, 0, 2, 1)), Row((1,), (0, 2, 1))], ids=["2+2", "1+2"])
def test_draws_are_unbiased_and_their_variance_is_the_sum_over_blocks(row: Row) -> None:
    """Over all outcomes of the random numbers of all blocks, each equally likely: the mean is the bound, the variance
    sum_b (V_t + V_y) of the blocks. Kills: L_b / m_b of another block, one count for all blocks."""
    denoiser, blocks = BlockTable(2), blocks_of(row, 2)
    cells = [
        list(product([(part + 0.5) / len(block) for part in range(len(block))], permutations(range(len(block)))))
        for block in blocks
    ]
    outcomes = [one for outcome in product(*cells) for one in outcome]  # row-major: (outcome, block)
    time = torch.tensor([[one[0]] for one in outcomes], dtype=torch.float64)
    bits = torch.zeros(len(outcomes), 1, 2, dtype=torch.int64)
    for at, (_, order) in enumerate(outcomes):
        bits[at, 0, : len(order)] = torch.tensor(order)
    tokens = copies(row, len(outcomes) // len(blocks))
    with (
        mock.patch.object(vrpo.draws, "times", return_value=(time, torch.zeros_like(time, dtype=torch.long))),
        mock.patch.object(vrpo.draws, "mask_bits", return_value=bits),
        torch.no_grad(),
    ):
        values = elbo(denoiser, tokens, PerBlock(FixedCount(1), 2)(tokens)).value
    parts = block_moments(denoiser, row)
    assert float(values.mean()) == pytest.approx(sum(each.bound for each in parts), abs=1e-12)
    expected = sum(each.variance(1, 1) for each in parts)
    assert float(values.var(correction=0)) == pytest.approx(expected, abs=1e-12)
    assert expected > 0.01


def test_one_count_for_all_blocks_is_noisier() -> None:
    """Over all outcomes of one draw: the paper's plan over the whole answer has the same mean, and much more
    variance. Why a block diffusion model has plans of blocks."""
    denoiser, row = BlockTable(2), Row((2, 0), (1, 0, 2, 1))
    parts = block_moments(denoiser, row)
    with exact.every_outcome(row, 1, 1) as tokens, torch.no_grad():
        values = elbo(denoiser, tokens, FixedCount(1)(tokens)).value
    assert float(values.mean()) == pytest.approx(sum(each.bound for each in parts), abs=1e-12)
    assert float(values.var(correction=0)) > 1.5 * sum(each.variance(1, 1) for each in parts)


@each("name", ["fixed", "balanced"])
def test_blocks_of_one_token_are_the_likelihood_without_noise(name: str) -> None:
    """Every draw scores every token given all before it: log p(y | x), and over all answers p sums to 1."""
    denoiser, answers = BlockTable(1), list(product(range(3), repeat=2))
    rows = [Row((1, 0), answer, key) for key, answer in enumerate(answers)]
    tokens = make_tokens(rows)
    with torch.no_grad():
        estimate = elbo(denoiser, tokens, PerBlock(PLANS[name](), 1)(tokens))
    expected = [sum(exact.token_logp(denoiser, row, (place,), (place,)) for place in range(2)) for row in rows]
    torch.testing.assert_close(estimate.value, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)
    assert float(estimate.standard_error.max()) < 1e-12
    assert float(estimate.value.exp().sum()) == pytest.approx(1, abs=1e-12)


@every_plan
def test_one_block_is_the_plan_itself(plan: Plan) -> None:
    """Bit for bit the draws of other keys. Kills: weights or masks that blocks change by themselves."""
    tokens = make_tokens(ROWS, left=2, align="right")
    key = fold(fold(tokens.key, 4), torch.zeros_like(tokens.key))
    ours, theirs = PerBlock(plan, 100)(tokens), plan(replace(tokens, key=key))
    for mine, other in zip(in_response(tokens, ours.masked), in_response(tokens, theirs.masked), strict=True):
        assert torch.equal(mine, other)
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=0, atol=0)
    assert torch.equal(ours.group, theirs.group)


@every_plan
@settings(max_examples=25, deadline=None)
@given(left=st.integers(0, 3), right=st.integers(0, 3), align=st.sampled_from(["left", "right"]), data=st.data())
def test_draws_do_not_depend_on_padding_or_neighbours(
    plan: Plan, left: int, right: int, align: str, data: st.DataObject
) -> None:
    """Bit for bit, whatever the rows beside it. Kills: blocks counted in columns; a key of the row of a batch."""
    order = data.draw(st.permutations(range(len(ROWS))))
    together = make_tokens([ROWS[n] for n in order], left=left, right=right, align=align)
    draws = PerBlock(plan, 2)(together)
    for at, n in enumerate(order):
        alone = make_tokens([ROWS[n]])
        expected = PerBlock(plan, 2)(alone)
        assert torch.equal(draws.masked[at][:, together.response[at]], expected.masked[0][:, alone.response[0]])
        assert torch.equal(draws.weight[at][:, together.response[at]], expected.weight[0][:, alone.response[0]])
        assert torch.equal(draws.group[at], expected.group[0])
    outside = ~together.response[:, None]
    assert not (draws.masked & outside).any()
    assert not draws.weight[outside.expand_as(draws.weight)].any()


def test_blocks_of_a_row_are_independent() -> None:
    """Counts of two blocks of two tokens, jointly uniform on 2 x 2. Kills: one key for all blocks."""
    tokens = copies(Row((1, 1), (2,) * 4), 60_000)
    ids = torch.arange(60_000)
    tokens = replace(tokens, key=draw_key(7, ids, torch.zeros_like(ids), 0))
    counts = PerBlock(FixedCount(1), 2)(tokens).masked[:, 0, 2:].view(-1, 2, 2).sum(-1) - 1
    assert_law((2 * counts[:, 0] + counts[:, 1]).bincount(minlength=4), torch.full((4,), 0.25), resolution=0.03)


def test_draws_depend_on_where_a_prompt_ends_in_a_block_alone() -> None:
    """Kills: keys by a block's number in the row."""
    tokens = make_tokens([Row((1,) * length, (2,) * 7, 9) for length in (1, 3, 5, 2)], align="right")
    draws = in_response(tokens, PerBlock(BalancedMasks(Levels(4)), 2)(tokens).masked)
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[3])


def test_a_pair_shares_its_blocks() -> None:
    """Equal answers of a pair have equal draws; pairs go around blocks, not into them."""
    rows = [Row((1, 0, 2), (2, 0, 1, 1, 0), 5), Row((1, 0, 2), (2, 0, 1, 1, 0), 6)]
    tokens = make_tokens(rows)
    pairs = Pairs(torch.tensor([0]), torch.tensor([1]), tokens.length)
    draws = Paired(PerBlock(BalancedMasks(Levels(4)), 2))(tokens, pairs)
    assert torch.equal(draws.masked[0], draws.masked[1])
    assert not torch.equal(*PerBlock(BalancedMasks(Levels(4)), 2)(tokens).masked)
    with pytest.raises(ValueError, match=r"Paired\(PerBlock\(plan\)\)"):
        PerBlock(Paired(FixedCount()), 2)


def test_what_is_not_a_block_is_an_error() -> None:
    with pytest.raises(ValueError, match="block_size must be at least 1"):
        PerBlock(FixedCount(), 0)
    with pytest.raises(ValueError, match="row 1 has no response token"):
        PerBlock(FixedCount(), 2)(make_tokens([Row((1,), (2,)), Row((1,), ())]))
    plan = FixedCount(2)
    assert within_blocks(plan, None) is plan
    assert within_blocks(plan, 4) == PerBlock(plan, 4)


def test_rows_of_many_tokens() -> None:
    """Memory of the order of the draws: 4 rows of 20,000 tokens in blocks of 4. Kills: a table of blocks times
    columns."""
    shape = (4, 20_000)
    whole = torch.ones(shape, dtype=torch.bool)
    tokens = Tokens(torch.zeros(shape, dtype=torch.long), whole, whole, torch.arange(4))
    draws = PerBlock(FixedCount(1), 4)(tokens)
    assert int(draws.masked.view(4, -1, 4).sum(-1).min()) == 1
    assert float(draws.weight.sum() / whole.sum()) == pytest.approx(1, abs=0.02)
