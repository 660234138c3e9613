"""The estimator as a sum: what one item contributes depends on nothing but that item."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests import exact
from tests.build import Row, draws_of, make_tokens, two_pairs
from tests.loops import each
from vrpo.draws import FixedCount
from vrpo.estimator import ENGINE, Engine, elbo, exact_elbo, plan_packs
from vrpo.types import Draws, Estimate, Tokens

pytestmark = pytest.mark.usefixtures("no_global_randomness")
TABLE = exact.Table()
ROWS = two_pairs()[0]


class Recorder(nn.Module):
    """A denoiser that remembers the calls made to it."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner
        self.calls: list[dict[str, Tensor]] = []
        self.with_graph: list[bool] = []

    def forward(self, **arguments: Tensor) -> Tensor:
        self.calls.append(arguments)
        self.with_graph.append(torch.is_grad_enabled())
        return self.inner(**arguments)


def value(tokens: Tokens, draws: Draws, engine: Engine = ENGINE) -> Tensor:
    with torch.no_grad():
        return elbo(TABLE, tokens, draws, engine).terms


def test_a_term_is_the_weighted_sum_over_tokens() -> None:
    """Against row-by-row evaluation of (L / m) f(S) / K.

    Kills: mean over tokens; division by response length or by padded length; the prompt masked.
    """
    tokens = make_tokens(ROWS, left=1, right=2)
    draws = FixedCount(3)(tokens)
    expected = torch.zeros(4, 3, dtype=torch.float64)
    for n, row in enumerate(ROWS):
        for k, mask in enumerate(draws.masked[n][:, tokens.response[n]]):
            hidden = tuple(mask.nonzero()[:, 0].tolist())
            expected[n, k] = len(row.response) / len(hidden) * exact.token_logp(TABLE, row, hidden, hidden) / 3
    torch.testing.assert_close(value(tokens, draws), expected, rtol=0, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    left=st.integers(0, 3),
    right=st.integers(0, 3),
    align=st.sampled_from(["left", "right"]),
    pad_id=st.integers(0, 2),
    max_tokens=st.one_of(st.none(), st.integers(1, 60)),
    order=st.permutations(range(4)),
)
def test_terms_do_not_depend_on_company(
    left: int, right: int, align: str, pad_id: int, max_tokens: int | None, order: list[int]
) -> None:
    """Bit for bit in float64: padding, pad id, neighbours, row order and pack size change nothing.

    Kills: padding attended, masked or scored; one t for the whole batch; terms added to the wrong row of a pack.
    """
    alone = torch.cat([value(one := make_tokens([row]), FixedCount(3)(one)) for row in ROWS])
    rows = [ROWS[n] for n in order]
    tokens = make_tokens(rows, left=left, right=right, align=align, pad_id=pad_id)
    assert torch.equal(value(tokens, FixedCount(3)(tokens), Engine(max_tokens)), alone[order])


@each("max_tokens", [1, 5, 7, 10, 16, 1000, None])
def test_packs_respect_the_budget_and_cover_everything_once(max_tokens: int | None) -> None:
    """A pack exceeds max_tokens only if it is a single item; every item with a weight is in one pack."""
    tokens = make_tokens(ROWS, left=2)
    draws = FixedCount(3)(tokens)
    recorder = Recorder(TABLE)
    elbo(recorder, tokens, draws, Engine(max_tokens))
    assert sum(len(call["input_ids"]) for call in recorder.calls) == 4 * 3
    budget = tokens.ids.numel() if max_tokens is None else max_tokens
    for call in recorder.calls:
        assert call["input_ids"].numel() <= budget or len(call["input_ids"]) == 1
        assert call["attention_mask"].any(0).all()  # columns of padding alone are cut off
    items = torch.cat(plan_packs(tokens, draws, torch.ones(4, 3, dtype=torch.bool), Engine(max_tokens)))
    assert sorted(map(tuple, items.tolist())) == [(n, k) for n in range(4) for k in range(3)]


def test_rows_of_different_length_do_not_share_a_pack() -> None:
    """No item is shorter than 4/5 of its pack's longest, if there is a limit; without one they fill a rectangle.
    Kills: padding up to the budget; a pack that leaves out what is as long as 4/5."""
    tokens = make_tokens([Row((1,), tuple([2] * length), length) for length in (9, 7, 6, 4, 3)])
    draws = FixedCount(1)(tokens)
    for limit, expected in ((100, [[10, 8], [7], [5, 4]]), (None, [[10, 8, 7, 5, 4]])):
        packs = plan_packs(tokens, draws, draws.in_use, Engine(limit))
        assert [tokens.size[pack[:, 0]].tolist() for pack in packs] == expected


def test_empty_packs_only_add_calls() -> None:
    """`agree` asks for 3 packs more: 3 calls more, the same terms and the same gradient."""
    tokens = make_tokens(ROWS)
    draws = FixedCount(2)(tokens)
    results = []
    for extra in (0, 3):
        recorder = Recorder(exact.Table())
        terms = elbo(recorder, tokens, draws, Engine(8, agree=lambda packs, extra=extra: packs + extra)).terms
        terms.sum().backward()
        results.append((len(recorder.calls), terms.detach(), recorder.inner.table.grad))
    assert results[1][0] == results[0][0] + 3
    assert torch.equal(results[0][1], results[1][1])
    assert torch.equal(results[0][2], results[1][2])


def test_draws_without_weight_are_not_computed() -> None:
    tokens = make_tokens(ROWS[:2])
    draws = draws_of(tokens, [torch.tensor([[1, 0, 0]]), torch.tensor([[1, 1, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1]])])
    recorder = Recorder(TABLE)
    elbo(recorder, tokens, draws)
    assert sum(len(call["input_ids"]) for call in recorder.calls) == 1 + 3


def test_ragged_budgets_are_the_same_sum() -> None:
    """One row with 1 draw beside one with 3: each as if alone, errors from the used draws."""
    masks = [torch.tensor([[1, 0, 1], [0, 1, 0]]), torch.tensor([[1, 1, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1]])]
    tokens = make_tokens(ROWS[:2], right=1)
    with torch.no_grad():
        together = elbo(TABLE, tokens, draws_of(tokens, masks))
        for n in range(2):
            one = make_tokens([ROWS[n]])
            alone = elbo(TABLE, one, draws_of(one, [masks[n]]))
            assert float(together.value[n]) == pytest.approx(float(alone.value), abs=1e-14)
            assert float(together.standard_error[n]) == pytest.approx(float(alone.standard_error), rel=1e-12)


def test_a_causal_model_is_masked_nowhere_and_scored_everywhere() -> None:
    """The same sum gives log p(y | x) exactly: over all responses of a length the probabilities add up to 1."""
    bigram = exact.Bigram()
    rows = [Row((1, 2), response) for response in product(range(3), repeat=3)]
    tokens = make_tokens(rows, left=1)
    weight = tokens.response[:, None].double()
    draws = Draws(torch.zeros_like(weight, dtype=torch.bool), weight, torch.zeros(len(rows), 1, dtype=torch.long))
    with torch.no_grad():
        logp = elbo(bigram, tokens, draws).value
    assert float(logp.exp().sum()) == pytest.approx(1, abs=1e-12)
    expected = bigram.logits.log_softmax(-1)[[2, 0, 1], [0, 1, 2]].sum()
    assert float(logp[5]) == pytest.approx(float(expected.detach()), abs=1e-12)  # rows[5] is (0, 1, 2)


def test_a_bound_over_many_draws_approaches_the_exact_one() -> None:
    """4 000 draws by keys: the whole chain from key to value, within 6 standard errors (false alarm 2e-9).

    Kills: anything that biases the mean while the enumerated plan is right, such as times and orders that correlate.
    """
    tokens = make_tokens([Row((2, 0), (1, 0, 2), 5)])
    with torch.no_grad():
        estimate = elbo(TABLE, tokens, FixedCount(4_000)(tokens))
        expected = exact_elbo(TABLE, tokens).value
    assert float(estimate.standard_error) < 0.06
    assert abs(float(estimate.value - expected)) < 6 * float(estimate.standard_error)


# Standard errors ------------------------------------------------------------------------------------------------------


def test_group_variance_by_hand() -> None:
    """Groups {1 + 2, 4, -1}: G / (G - 1) sum (S_g - mean)^2 = 3 / 2 * 14. Kills: standard error from all draws."""
    terms = torch.tensor([[1.0, 2.0, 4.0, -1.0]], dtype=torch.float64)
    estimate = Estimate(terms, torch.tensor([[0, 0, 1, 2]]))
    assert float(estimate.value) == 6
    assert float(Estimate(estimate.terms, estimate.group).variance) == pytest.approx(21)
    assert float(estimate.standard_error) == pytest.approx(21**0.5)


def test_group_variance_ignores_surplus_draws() -> None:
    """Draws of group -1 count for nothing, whatever they hold; group numbers may have gaps."""
    terms = torch.tensor([[1.0, 99.0, 2.0, 4.0, -1.0]], dtype=torch.float64)
    assert float(Estimate(terms, torch.tensor([[1, -1, 1, 0, 4]])).variance) == pytest.approx(21)


@each("group", [[0, 0], [0, -1], [-1, -1]])
def test_a_variance_needs_two_groups(group: list[int]) -> None:
    """An error, not a NaN: one m with many masks cannot estimate its own noise."""
    terms = torch.ones(2, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="row 1 has"):
        _ = Estimate(terms, torch.tensor([[0, 1], group])).variance
