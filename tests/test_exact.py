"""Unbiasedness and variance of the plans as equalities: every outcome of the real plan through the real estimator."""

from math import log

import pytest
import torch
from torch import Tensor

from tests import exact
from tests.build import Row, copies, make_tokens
from tests.loops import each
from vrpo.draws import FixedCount
from vrpo.estimator import elbo, exact_elbo
from vrpo.plans import Bernoulli, Enumerate
from vrpo.types import Estimate, Tokens

pytestmark = pytest.mark.usefixtures("no_global_randomness")
ROW = Row((2, 0), (1, 0, 2))
SHORT = Row((1,), (2, 0))
BUDGETS = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1)]


@pytest.fixture(scope="module")
def table() -> exact.Table:
    return exact.Table()


def estimate_all(table: exact.Table, tokens: Tokens, plan: FixedCount | Bernoulli) -> tuple[Tensor, Tensor, Tensor]:
    """Value, terms and groups of every row."""
    with torch.no_grad():
        estimate = elbo(table, tokens, plan(tokens))
    return estimate.value, estimate.terms, estimate.group


@each("row", [ROW, SHORT, Row((), (0, 1, 2, 0)), Row((0, 1), (2,))])
def test_enumeration_is_the_mean_over_all_orders(table: exact.Table, row: Row) -> None:
    """Two roads to the bound that share no weight: kills a wrong subset law in the oracle itself, and in Enumerate."""
    assert exact.bound(table, row) == pytest.approx(exact.order_bound(table, row), abs=1e-12)
    with torch.no_grad():
        value = exact_elbo(table, make_tokens([row])).value
    assert float(value) == pytest.approx(exact.bound(table, row), abs=1e-12)


def test_exact_elbo_of_a_ragged_batch(table: exact.Table) -> None:
    """Kills: prompt masked; weights of the batch's longest response; another row's subsets; padding seen."""
    rows = [ROW, SHORT, Row((), (0, 1, 2, 0)), Row((0, 1), (2,))]
    expected = torch.tensor([exact.bound(table, row) for row in rows], dtype=torch.float64)
    for align in ("left", "right"):
        tokens = make_tokens(rows, left=1, right=2, align=align)
        torch.testing.assert_close(exact_elbo(table, tokens).value, expected, rtol=0, atol=1e-12)


def test_the_bound_is_a_lower_bound(table: exact.Table) -> None:
    """exp(B) sums to less than 1 over all responses: every order's model is a normalised law (Jensen)."""
    total = sum(torch.tensor(exact.bound(table, Row((2,), (a, b)))).exp() for a in range(3) for b in range(3))
    assert total < 1


@each(("num_times", "num_masks"), BUDGETS)
@each("row", [ROW, SHORT], ids=["L3", "L2"])
def test_fixed_count_is_unbiased_with_the_variance_of_lemma_5(
    table: exact.Table, row: Row, num_times: int, num_masks: int
) -> None:
    """Over all outcomes: mean = B and Var = V_t / n_t + V_y / (n_t n_y), to rounding.

    Kills: weight without L / m, without 1 / K or doubled (twice the ELBO); mean over tokens for the sum; off-by-one and
    rounded m; a common m where times should differ and the reverse; a forced minimum mask; the prompt masked.
    """
    law = exact.moments(exact.subset_sums(table, row))
    assert min(law.between, law.within) > 0.1  # so that n_t and n_y are told apart
    with exact.every_outcome(row, num_times, num_masks) as tokens:
        value, _, _ = estimate_all(table, tokens, FixedCount(num_times, num_masks))
    assert float(value.mean()) == pytest.approx(law.bound, abs=1e-11)
    assert float(value.var(correction=0)) == pytest.approx(law.variance(num_times, num_masks), rel=1e-11)


@each(("num_times", "num_masks"), [(2, 1), (2, 2), (3, 1)])
def test_group_variance_is_unbiased(table: exact.Table, num_times: int, num_masks: int) -> None:
    """Mean over all outcomes of the estimated variance = the true variance, as an equality.

    Kills: standard error from all draws instead of groups (wrong for num_masks = 2, where masks share their m).
    """
    law = exact.moments(exact.subset_sums(table, ROW))
    with exact.every_outcome(ROW, num_times, num_masks) as tokens:
        _, terms, group = estimate_all(table, tokens, FixedCount(num_times, num_masks))
    estimated = Estimate(terms, group).variance
    assert float(estimated.mean()) == pytest.approx(law.variance(num_times, num_masks), rel=1e-11)


def test_one_time_and_many_masks_never_beats_many_times(table: exact.Table) -> None:
    """Proposition 1: at a given number of draws, num_masks = 1 is best."""
    law = exact.moments(exact.subset_sums(table, ROW))
    assert law.variance(4, 1) < law.variance(2, 2) < law.variance(1, 4)


def every_bernoulli_outcome(row: Row, t_min: float, nodes: int = 64) -> tuple[Tokens, Tensor, Tensor, Tensor]:
    """Tokens, times, bits and probabilities: Gauss-Legendre nodes in t by all 2^L masks."""
    length = len(row.response)
    node, node_weight = gauss_legendre(nodes)
    pattern = torch.tensor([[bits >> p & 1 for p in range(length)] for bits in range(1 << length)]).bool()
    probability = (t_min + (1 - t_min) * node)[:, None, None]
    law = torch.where(pattern, probability, 1 - probability).prod(-1) * node_weight[:, None]
    time = node.repeat_interleave(len(pattern))[:, None]
    bits = torch.where(pattern, 0, -1).repeat(nodes, 1)[:, None]  # uniform(0) = 0 is masked, uniform(-1) = 1- is not
    return copies(row, len(time)), time, bits, law.flatten()


def gauss_legendre(nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1], from the eigenvectors of the Jacobi matrix (Golub and Welsch 1969)."""
    k = torch.arange(1, nodes, dtype=torch.float64)
    off = k / (4 * k * k - 1).sqrt()
    value, vector = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return (value + 1) / 2, vector[0].square()


@each("t_min", [0.05, 0.3])
def test_bernoulli_has_its_exact_mean_and_variance(table: exact.Table, t_min: float) -> None:
    """Quadrature over the real plan = closed-form integrals. The bias of t_min is what the formula says, and not 0.

    Kills: mask probability clamped but the weight not (and the reverse); a forced minimum mask.
    """
    mean, variance = exact.bernoulli_moments(exact.subset_sums(table, ROW), t_min)
    tokens, time, bits, law = every_bernoulli_outcome(ROW, t_min)
    with exact.fed(tokens, time, bits):
        value, _, _ = estimate_all(table, tokens, Bernoulli(t_min, num_times=1))
    assert float((law * value).sum()) == pytest.approx(mean, abs=1e-10)
    assert float((law * value.square()).sum()) - mean**2 == pytest.approx(variance, rel=1e-8)


def test_bernoulli_is_biased_by_t_min_and_diverges_without_it(table: exact.Table) -> None:
    """METHODS section 1: mean -> B and variance -> infinity like log(1 / t_min) as t_min -> 0."""
    sums = exact.subset_sums(table, ROW)
    law = exact.moments(sums)
    assert abs(exact.bernoulli_moments(sums, 0.3)[0] - law.bound) > 1e-3
    assert exact.bernoulli_moments(sums, 1e-8)[0] == pytest.approx(law.bound, abs=1e-6)
    variance = {t_min: exact.bernoulli_moments(sums, t_min)[1] for t_min in (1e-3, 1e-5, 1e-8)}
    singles = sum(f * f for subset, f in sums.items() if len(subset) == 1)
    assert variance[1e-8] - variance[1e-5] == pytest.approx(singles * log(1e3), rel=1e-3)
    assert law.variance(1, 1) < variance[1e-3] < variance[1e-5] < variance[1e-8]


def test_enumerate_refuses_long_responses() -> None:
    tokens = make_tokens([SHORT, Row((1,), (0,) * 13)])
    with pytest.raises(ValueError, match="row 1 has 13 response tokens"):
        Enumerate()(tokens)


def test_enumerate_marks_draws_that_a_short_row_does_not_use() -> None:
    draws = Enumerate()(make_tokens([ROW, SHORT]))
    assert draws.group[0].tolist() == [0] * 7
    assert draws.group[1].tolist() == [0] * 3 + [-1] * 4
    assert not draws.scored[1, 3:].any()
