"""Plans: the exact law of what they mask and how they weigh it, replay, and the quality of the keyed hash.

Keys are fixed, so no test here is ever flaky: a false-alarm rate says how likely a correct hash was to fail when the
test was written.
"""

from collections import Counter
from collections.abc import Callable
from itertools import product
from math import comb

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.build import Row, copies, in_response, make_tokens
from tests.exact import bernoulli_integral
from tests.loops import each
from tests.stat import ALARM, assert_law, assert_mean
from vrpo.draws import FixedCount, draw_key, fold, mix, rekeyed, uniform
from vrpo.plans import BalancedMasks, Bernoulli, Enumerate, IndependentMasks, Levels
from vrpo.types import Draws, Plan, Tokens

pytestmark = pytest.mark.usefixtures("no_global_randomness")
PLANS: dict[str, Callable[[], Plan]] = {
    "fixed-8x1": lambda: FixedCount(8),
    "fixed-2x3": lambda: FixedCount(2, 3),
    "bernoulli": lambda: Bernoulli(0.05, 4, 2),
    "stratified": lambda: IndependentMasks(Levels(6, 2)),
    "importance": lambda: IndependentMasks(Levels(4, 4, exponent=0.5)),
    "balanced": lambda: BalancedMasks(Levels(6, 2)),
}
every_plan = each("plan", [make() for make in PLANS.values()], ids=list(PLANS))


def many(length: int, count: int = 60_000) -> Tokens:
    """`count` examples with consecutive ids and one response length."""
    tokens = copies(Row((1,), (2,) * length), count)
    ids = torch.arange(count)
    return Tokens(tokens.ids, tokens.response, tokens.attention, draw_key(7, ids, torch.zeros_like(ids), 0))


def subset_code(tokens: Tokens, draws: Draws) -> Tensor:
    """[N, K]: the masked subset as the integer with bit p for response position p."""
    length = int(tokens.length[0])
    masked = draws.masked[:, :, -length:]  # `many` puts the response last
    return (masked.long() << torch.arange(length)).sum(-1)


def size(code: int) -> int:
    return bin(code).count("1")


# Laws -----------------------------------------------------------------------------------------------------------------


def test_fixed_count_draws_the_law_of_equation_14() -> None:
    """m ~ U{1..L}, then every subset of size m alike: P(S) = 1 / (L C(L, m)). Odd L, where rounding shows.

    Kills: round-half-even m (P(m = L) halves or m = 0 appears); a forced minimum mask; biased orders; L + 1 counts.
    """
    length = 5
    tokens = many(length)
    law = torch.tensor([0.0] + [1 / (length * comb(length, size(code))) for code in range(1, 1 << length)])
    codes = subset_code(tokens, FixedCount(3)(tokens))
    for k in range(3):
        assert_law(codes[:, k].bincount(minlength=1 << length), law, resolution=0.03)
    sizes = torch.tensor([size(code) for code in range(1 << length)])[codes[:, 0]]
    assert_law(sizes.bincount(minlength=length + 1), torch.tensor([0] + [1 / length] * length), resolution=0.03)


def test_fixed_count_cuts_the_unit_interval_into_equal_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an equality: on an even grid of times every m comes equally often. Kills round-half-even and off-by-one m."""
    grid = ((torch.arange(3000) + 0.5) / 3000).double()[:, None]
    monkeypatch.setattr("vrpo.draws.times", lambda tokens, *_: (grid, torch.zeros(3000, 1, dtype=torch.long)))
    for length in (1, 2, 3, 5, 6):
        count = FixedCount(1)(copies(Row((0,), (1,) * length), 3000)).masked.sum(-1).flatten()
        assert count.bincount(minlength=length + 1).tolist() == [0] + [3000 // length] * length


def test_draws_of_a_row_are_independent_across_times() -> None:
    """Joint law of the first two subsets, L = 2: a product. Kills one m, or one mask, for all draws of a row."""
    tokens = many(2)
    codes = subset_code(tokens, FixedCount(2)(tokens))
    law = torch.tensor([0.0, 0.25, 0.25, 0.5])
    assert_law((codes[:, 0] * 4 + codes[:, 1]).bincount(minlength=16), torch.outer(law, law), resolution=0.03)


def test_masks_at_one_time_share_m_and_nothing_else() -> None:
    """Joint law of two masks in one group, L = 3: same size, independent given the size.

    Kills: masks of a group drawn with different m; complementary or repeated masks inside a group.
    """
    tokens = many(3)
    codes = subset_code(tokens, FixedCount(1, 2)(tokens))
    law = torch.zeros(8, 8)
    for a, b in product(range(1, 8), repeat=2):
        if size(a) == size(b):
            law[a, b] = 1 / 3 / comb(3, size(a)) ** 2
    assert_law((codes[:, 0] * 8 + codes[:, 1]).bincount(minlength=64), law, resolution=0.03)


def test_rows_are_independent() -> None:
    """Joint law over consecutive examples, over the sides of an example, and over epochs. Kills one t for the batch."""
    ids = torch.arange(60_000)
    base = copies(Row((1,), (2, 2)), len(ids))
    law = torch.tensor([0.0, 0.25, 0.25, 0.5])

    def codes(seed: int, example: Tensor, side: int, epoch: int) -> Tensor:
        key = draw_key(seed, example, torch.full_like(example, side), epoch)
        tokens = Tokens(base.ids, base.response, base.attention, key)
        return subset_code(tokens, FixedCount(1)(tokens))[:, 0]

    first = codes(3, 2 * ids, 0, 0)
    for other in (
        codes(3, 2 * ids + 1, 0, 0),
        codes(3, 2 * ids, 1, 0),
        codes(3, 2 * ids, 0, 1),
        codes(4, 2 * ids, 0, 0),
    ):
        assert_law((first * 4 + other).bincount(minlength=16), torch.outer(law, law), resolution=0.03)


def test_bernoulli_draws_its_law() -> None:
    """P(S) = integral over t of t^m (1 - t)^(L - m), the empty set included. Kills a forced minimum mask."""
    t_min, length = 0.2, 3
    tokens = many(length)
    law = torch.tensor(
        [bernoulli_integral(t_min, size(c), length - size(c)) / (1 - t_min) for c in range(8)], dtype=torch.float64
    )
    codes = subset_code(tokens, Bernoulli(t_min, 1)(tokens))[:, 0]
    assert_law(codes.bincount(minlength=8), law, resolution=0.03)


def test_bernoulli_times_are_uniform_above_t_min() -> None:
    """1 / weight = t ~ U(t_min, 1): mean (1 + t_min) / 2. Long responses, so that some token is masked."""
    t_min = 0.2
    tokens = many(64, 20_000)
    weight = Bernoulli(t_min, 1)(tokens).weight.amax((-1, -2))
    t = 1 / weight[weight > 0]
    assert len(t) > 19_990
    assert_mean(t, (1 + t_min) / 2, t_min, 1, resolution=0.04)


# Weights and where they are not ---------------------------------------------------------------------------------------


@each(("num_times", "num_masks"), [(1, 1), (4, 1), (3, 2), (1, 4)])
def test_fixed_count_weighs_by_length_over_count(num_times: int, num_masks: int) -> None:
    """weight = L / m / K on masked tokens in float64, 0 elsewhere; one m per group.

    Kills: 1 / K missing or twice (complementary-mask bug: twice the ELBO); division by the padded length; a weight in
    float32 (3 and 7 do not divide exactly).
    """
    rows = [Row((0, 1), (2,) * 7, 1), Row((1,), (2,) * 3, 2), Row((), (0,), 3)]
    tokens = make_tokens(rows, left=1, right=2)
    draws = FixedCount(num_times, num_masks)(tokens)
    assert draws.weight.dtype == torch.float64
    assert torch.equal(draws.weight != 0, draws.masked)
    for n, row in enumerate(rows):
        count = draws.masked[n].sum(-1)
        assert ((count >= 1) & (count <= len(row.response))).all()
        expected = len(row.response) / count.double() / (num_times * num_masks)
        assert torch.allclose(draws.weight[n].amax(-1), expected, rtol=1e-15, atol=0)
        assert draws.group[n].tolist() == [j for j in range(num_times) for _ in range(num_masks)]
        assert (count.reshape(num_times, num_masks) == count.reshape(num_times, num_masks)[:, :1]).all()


def test_bernoulli_weighs_by_its_own_mask_probability() -> None:
    """All masked tokens of one draw weigh 1 / t / K with t in (t_min, 1). Kills: probability clamped, weight not."""
    draws = Bernoulli(0.5, 4, 2)(many(16, 500))
    assert torch.equal(draws.weight != 0, draws.masked)
    heaviest = draws.weight.amax(-1)
    assert ((draws.weight == heaviest[..., None]) | ~draws.masked).all()
    used = heaviest[heaviest > 0] * 8
    assert ((used >= 1) & (used <= 2)).all()
    assert draws.group.tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]] * 500


@every_plan
def test_only_the_response_is_masked_and_weighed(plan: Plan) -> None:
    """Kills: prompt masked; padding masked and scored as answer."""
    rows = [Row((0, 1, 2), (2,) * 6, key) for key in range(50)] + [Row((), (1,), 50), Row((1,) * 8, (0, 1), 51)]
    tokens = make_tokens(rows, left=2, right=3)
    draws = plan(tokens)
    outside = ~tokens.response[:, None]
    assert not (draws.masked & outside).any()
    assert not draws.weight[outside.expand_as(draws.weight)].any()


def test_enumerate_sums_to_one_per_token() -> None:
    """Over all subsets sum_k weight_k * 1[i in S_k] = 1 for every token: a constant log p is returned as its sum."""
    tokens = make_tokens([Row((0,), (1,) * length) for length in (1, 2, 5)], left=1)
    total = Enumerate()(tokens).weight.sum(1)
    assert torch.allclose(total, tokens.response.double(), atol=1e-14)


@each(
    "make",
    [
        lambda: FixedCount(0),
        lambda: FixedCount(1, 0),
        lambda: Bernoulli(0.1, 0),
        lambda: Bernoulli(0.0),
        lambda: Bernoulli(1.0),
    ],
)
def test_impossible_plans_are_refused(make: Callable[[], Plan]) -> None:
    with pytest.raises(ValueError, match=r"at least 1|t_min"):
        make()


# Replay ---------------------------------------------------------------------------------------------------------------

rows_strategy = st.lists(
    st.builds(
        Row,
        st.lists(st.integers(0, 2), max_size=4).map(tuple),
        st.lists(st.integers(0, 2), min_size=1, max_size=7).map(tuple),
        st.integers(-(2**63), 2**63 - 1),
    ),
    min_size=1,
    max_size=4,
)


def seen(tokens: Tokens, plan: Plan) -> list[tuple[Tensor, Tensor, Tensor]]:
    """What each row's draws look like without padding and prompt."""
    draws = plan(tokens)
    return list(zip(in_response(tokens, draws.masked), in_response(tokens, draws.weight), draws.group, strict=True))


def assert_same(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> None:
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@every_plan
@settings(max_examples=40, deadline=None)
@given(rows=rows_strategy, left=st.integers(0, 3), right=st.integers(0, 3), data=st.data())
def test_draws_depend_on_key_and_response_length_alone(
    plan: Plan, rows: list[Row], left: int, right: int, data: st.DataObject
) -> None:
    """Bit for bit: independent of padding (left, right, extra), neighbours, row order, prompt and token ids.

    Kills: fresh masks beside a cached reference (any draw not replayable); draws of a padded shape; one t per batch.
    """
    alone = [seen(make_tokens([row]), plan)[0] for row in rows]
    align = data.draw(st.sampled_from(["left", "right"]))
    together = seen(make_tokens(rows, left=left, right=right, align=align), plan)
    order = data.draw(st.permutations(range(len(rows))))
    shuffled = seen(make_tokens([rows[n] for n in order]), plan)
    other_text = [Row((1,) * data.draw(st.integers(0, 3)), (0,) * len(row.response), row.key) for row in rows]
    rewritten = seen(make_tokens(other_text), plan)
    for n in range(len(rows)):
        assert_same(alone[n], together[n])
        assert_same(alone[n], shuffled[order.index(n)])
        assert_same(alone[n], rewritten[n])


@every_plan
def test_different_keys_give_different_draws(plan: Plan) -> None:
    """Seeds, examples, sides, epochs and `rekeyed` all matter. Kills: a part of the key that is ignored."""
    example, side = torch.tensor([5]), torch.tensor([0])
    base = make_tokens([Row((0,), (1,) * 40)])

    def drawn(key: Tensor) -> Tensor:
        return plan(Tokens(base.ids, base.response, base.attention, key)).masked

    keys = [
        draw_key(1, example, side, 0),
        draw_key(2, example, side, 0),
        draw_key(1, example + 1, side, 0),
        draw_key(1, example, side + 1, 0),
        draw_key(1, example, side, 1),
    ]
    keys.append(rekeyed(Tokens(base.ids, base.response, base.attention, keys[0])).key)
    masks = [drawn(key) for key in keys]
    for a in range(len(masks)):
        assert torch.equal(masks[a], drawn(keys[a]))
        for b in range(a):
            assert not torch.equal(masks[a], masks[b])


def test_draw_keys_do_not_collide() -> None:
    """120 000 keys of a grid all differ (at random: 4e-10 to fail). Kills: commuting key parts (side, epoch)."""
    grid = torch.cartesian_prod(torch.arange(10_000), torch.arange(3))
    keys = [draw_key(seed, grid[:, 0], grid[:, 1], epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len(torch.cat(keys).unique()) == 4 * len(grid)


def test_smaller_budgets_are_prefixes_of_larger_ones() -> None:
    """What holds: at a given num_masks, the masks of few times are the first of many (K changes only the weights).

    What does not: between different num_masks, where draw k belongs to another time.
    """
    tokens = make_tokens([Row((0,), (1,) * 9, 77)])
    for num_masks in (1, 2):
        few, many_times = FixedCount(4, num_masks)(tokens), FixedCount(8, num_masks)(tokens)
        assert torch.equal(few.masked, many_times.masked[:, : 4 * num_masks])
        assert torch.equal(few.weight, many_times.weight[:, : 4 * num_masks] * 2)
    assert not torch.equal(FixedCount(4, 2)(tokens).masked, FixedCount(8, 1)(tokens).masked)


# The hash -------------------------------------------------------------------------------------------------------------


def test_mix_is_splitmix64() -> None:
    """The published outputs of splitmix64 from seed 0: mix(golden ratio), mix(2 golden ratio), ..."""
    step = 0x9E3779B97F4A7C15
    states = [(n * step) % 2**64 for n in (1, 2, 3)]
    signed = torch.tensor([s - 2**64 if s >= 2**63 else s for s in states])
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [value % 2**64 for value in mix(signed).tolist()] == expected


def test_replay_never_changes_between_versions() -> None:
    """Frozen values: if this fails, caches and resumed runs of older versions no longer replay. Announce it."""
    key = draw_key(42, torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]), 0)
    assert key.tolist() == [-68923335673461122, -1072888797906655390, -7614095352445830404]
    assert [value.hex() for value in uniform(key).tolist()] == [
        "0x1.fe16452ec8e58p-1",
        "0x1.e238aaa53a8e4p-1",
        "0x1.2caa993c7f06fp-1",
    ]
    assert fold(torch.tensor([1, 2]), 3).tolist() == [-4841935175369521001, -7501692478903466766]
    tokens = make_tokens([Row((1, 2), (3, 4, 5, 6, 7), int(key[0]))])

    def masks(plan: Plan) -> list[str]:
        return ["".join("01"[int(bit)] for bit in row) for row in in_response(tokens, plan(tokens).masked)[0]]

    assert masks(FixedCount(4)) == ["10000", "00101", "11111", "01100"]
    assert masks(FixedCount(2, 2)) == ["10000", "00100", "11000", "01100"]
    assert masks(Bernoulli(0.1, 4)) == ["00000", "10001", "00111", "00000"]


@each("argument", ["key", "data"])
def test_fold_avalanches(argument: str) -> None:
    """Every flipped input bit flips every output bit half the time, on consecutive inputs.

    4096 frequencies at 8192 samples: deviations of 0.075 are seen. Kills: a weakened mixer.
    """
    count = 8192
    numbers = torch.arange(count)
    bit = torch.ones(64, dtype=torch.int64) << torch.arange(64)
    flipped = numbers ^ bit[:, None]
    fixed = torch.full_like(numbers, 12345)
    before = fold(numbers, fixed) if argument == "key" else fold(fixed, numbers)
    after = fold(flipped, fixed.expand(64, -1)) if argument == "key" else fold(fixed.expand(64, -1), flipped)
    difference = before ^ after
    changed = torch.stack([((difference >> out) & 1).sum(-1) for out in range(64)], -1)
    half = torch.tensor([0.5, 0.5])
    for cell in changed.flatten().tolist():
        assert_law(torch.tensor([cell, count - cell]), half, resolution=0.08, alarm=ALARM / 4096)


def test_uniform_is_uniform_on_counters() -> None:
    """64 bins per number, 16 x 16 bins per pair of neighbours in draw, position and key; bounds of float64.

    Kills: low-entropy keys, correlated neighbours, a sign bit that leaks through the shift.
    """
    key = draw_key(0, torch.arange(500), torch.zeros(500, dtype=torch.int64), 0)
    bits = fold(fold(key[:, None], torch.arange(16))[..., None], torch.arange(17))  # [500, 16, 17]
    u = uniform(bits)
    assert u.dtype == torch.float64
    assert (u >= 0).all()
    assert (u < 1).all()
    assert_law((u * 64).long().flatten().bincount(minlength=64), torch.full((64,), 1 / 64), resolution=0.02)
    cell = (u * 16).long()
    pairs = [cell[:, ::2] * 16 + cell[:, 1::2], cell[..., :16:2] * 16 + cell[..., 1:17:2], cell[::2] * 16 + cell[1::2]]
    for pair in pairs:
        assert_law(pair.flatten().bincount(minlength=256), torch.full((256,), 1 / 256), resolution=0.03)
    assert uniform(torch.tensor([0, -1])).tolist() == [0.0, 1 - 2.0**-53]


def test_masks_and_times_do_not_share_random_numbers() -> None:
    """Position 0 is masked given m with probability m / L, whatever m: times and orders are independent."""
    tokens = many(4)
    draws = FixedCount(1)(tokens)
    tally = Counter(zip(draws.masked.sum(-1).flatten().tolist(), draws.masked[:, 0, -4].tolist(), strict=True))
    law = torch.tensor([[1 / 4 * (1 - m / 4), 1 / 4 * m / 4] for m in range(1, 5)])
    assert_law(torch.tensor([[tally[m, False], tally[m, True]] for m in range(1, 5)]), law, resolution=0.03)
