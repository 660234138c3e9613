"""Quotas, proposals and their confidence, and the law of Gumbel-max sampling."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.loops import each
from tests.stat import assert_law
from vrpo.decoding.select import Proposer, Quota, Threshold, guided, quotas, rank

LOGITS = torch.tensor([1.5, 0.0, -1.0, 0.7, -3.0], dtype=torch.float64)


@given(count=st.integers(1, 300), steps=st.integers(1, 300))
def test_quotas(count, steps):
    """Kills: a remainder dropped or given to the last steps; rounding instead of floor."""
    shares = quotas(count, steps)
    assert len(shares) == steps
    assert sum(shares) == count
    assert shares == sorted(shares, reverse=True)
    assert max(shares) - min(shares) <= 1


@each("temperature", [0.4, 1.0, 2.5])
def test_gumbel_max_draws_from_the_tempered_softmax(temperature):
    """Kills: temperature inverted, ignored or applied to the noise's logarithm twice; exponential or normal noise."""
    propose = Proposer(temperature, measure="low_confidence", banned=(), demoted=())
    token, _ = propose(LOGITS.expand(40_000, -1), torch.Generator().manual_seed(1))
    assert_law(token.bincount(minlength=5), (LOGITS / temperature).softmax(-1), resolution=0.03)


def test_banned_tokens_leave_the_law_of_the_others():
    """Kills: a ban applied after sampling, or by a large finite number that noise can overcome."""
    propose = Proposer(1.0, measure="low_confidence", banned=(0,), demoted=())
    token, confidence = propose(LOGITS.expand(40_000, -1), torch.Generator().manual_seed(2))
    rest = torch.cat((torch.zeros(1, dtype=torch.float64), LOGITS[1:].softmax(-1)))
    assert not (token == 0).any()
    assert_law(token.bincount(minlength=5), rest, resolution=0.03)
    torch.testing.assert_close(confidence, rest[token])


def test_confidence_is_untempered():
    """Kills: confidence from softmax(logits / temperature), or of the argmax instead of the proposed token."""
    propose = Proposer(0.5, measure="low_confidence", banned=(), demoted=())
    token, confidence = propose(LOGITS.expand(1000, -1), torch.Generator().manual_seed(3))
    assert len(token.unique()) > 1
    torch.testing.assert_close(confidence, LOGITS.softmax(-1)[token])


def test_demoted_tokens_are_proposed_with_confidence_zero():
    """Kills: demotion before the argmax, confidence -inf, and no renormalisation of the others."""
    other = torch.tensor([0.0, 2.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    propose = Proposer(0.0, measure="low_confidence", banned=(), demoted=(0, 3))
    token, confidence = propose(torch.stack((LOGITS, other)), None)
    assert token.tolist() == [0, 1]
    assert confidence[0] == 0
    torch.testing.assert_close(confidence[1], other[[1, 2, 4]].softmax(-1)[0])


def test_confidence_tells_apart_what_float32_cannot():
    """Kills: confidence in float32, where both are 1 and the tie goes to the worse position."""
    logits = torch.tensor([[20.0, 0.0], [30.0, 0.0]])
    _, confidence = Proposer(0.0, measure="low_confidence", banned=(), demoted=())(logits, None)
    assert confidence[0] < confidence[1]


def test_arguments_are_not_modified():
    """Kills: writing -inf into the model's own logits."""
    logits = LOGITS.clone().expand(2, -1).contiguous()
    before = logits.clone()
    Proposer(0.0, measure="low_confidence", banned=(1,), demoted=(0,))(logits, None)
    assert torch.equal(logits, before)


def test_random_confidence_is_uniform_and_ignores_logits():
    propose = Proposer(0.0, measure="random", banned=(), demoted=())
    token, confidence = propose(LOGITS.expand(40_000, -1), torch.Generator().manual_seed(4))
    assert set(token.tolist()) == {0}
    tenth = torch.full((10,), 0.1, dtype=torch.float64)
    assert_law((confidence * 10).long().bincount(minlength=10), tenth, resolution=0.03)


def test_guidance_scale():
    """Kills: scale in place of scale + 1, and the halves swapped."""
    conditional, unconditional = torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 2.0]])
    assert guided(conditional, unconditional, 0.5).tolist() == [[4.0, 0.5]]
    assert guided(conditional, unconditional, 0.0).tolist() == conditional.tolist()


def test_ties_go_to_the_left():
    """Kills: an unstable sort, and zero confidence confused with no candidate."""
    confidence = torch.tensor([[-torch.inf, 0.0, 0.5, 0.0, 0.5, 0.0]], dtype=torch.float64)
    assert rank(confidence).tolist() == [[5, 2, 0, 3, 1, 4]]
    long = torch.zeros(1, 5000, dtype=torch.float64)
    assert rank(long).tolist() == [list(range(5000))]


def test_margin_and_entropy():
    """Kills: the margin to the third best, of logits, or of the sampled token; entropy with the sign of uncertainty."""
    logits = torch.stack((LOGITS, torch.zeros(5, dtype=torch.float64)))
    p = LOGITS.softmax(-1)
    _, margin = Proposer(0.0, "margin", banned=(), demoted=())(logits, None)
    torch.testing.assert_close(margin, torch.stack((p[0] - p[3], torch.zeros((), dtype=torch.float64))))
    _, certain = Proposer(0.0, "entropy", banned=(), demoted=())(logits, None)
    expected = torch.tensor([float((p * p.log()).sum()), -math.log(5)], dtype=torch.float64)
    torch.testing.assert_close(certain, expected)
    _, without = Proposer(0.0, "entropy", banned=(4,), demoted=())(logits, None)
    assert without[1] == pytest.approx(-math.log(4))


CONFIDENCE = torch.tensor([[-torch.inf, 0.2, 0.9, 0.5], [0.1, 0.3, -torch.inf, 0.2]], dtype=torch.float64)


def test_a_quota_is_of_each_rows_own_step():
    """Kills: one share for all rows; a column that cannot be written kept to fill it; a block that never ends."""
    rule = Quota((2, 1))
    kept = rule.kept(CONFIDENCE, torch.tensor([0, 1]))
    assert kept.tolist() == [[False, False, True, True], [False, True, False, False]]
    assert Quota((4,)).kept(CONFIDENCE, torch.tensor([0, 0])).sum(-1).tolist() == [3, 3]
    assert rule.done(torch.tensor([1, 2]), kept).tolist() == [False, True]


def test_a_threshold_keeps_all_above_and_at_least_one():
    """Kills: strictly above; a step that writes nothing; a block over while something of it is hidden."""
    kept = Threshold(0.5).kept(CONFIDENCE, torch.tensor([0, 0]))
    assert kept.tolist() == [[False, False, True, True], [False, True, False, False]]
    nothing = torch.full((1, 3), -torch.inf, dtype=torch.float64)
    assert not Threshold(0.5).kept(nothing, torch.tensor([0])).any()
    left = torch.tensor([[False, True], [False, False]])
    assert Threshold(0.5).done(torch.tensor([7, 1]), left).tolist() == [False, True]
