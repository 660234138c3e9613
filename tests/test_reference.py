"""References: the same draws mean the same noise, exactly; other draws do not."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from tests import exact
from tests.build import Row, make_tokens, two_pairs
from tests.test_estimator import Recorder
from vrpo.draws import FixedCount, draw_key
from vrpo.losses.pairwise import DPO
from vrpo.losses.pools import log_ratios
from vrpo.losses.setwise import SFT
from vrpo.preference import Step, backward_by_draw, preference_loss
from vrpo.reference import (
    ExactReference,
    FrozenReference,
    GivenReference,
    IndependentReference,
    NoReference,
    Reference,
    Several,
)
from vrpo.types import Tokens

pytestmark = pytest.mark.usefixtures("no_global_randomness")
ROWS, PAIRS = two_pairs()
TOKENS = make_tokens(ROWS, right=1)
PLAN = FixedCount(4)


def both_steps(policy: nn.Module, reference: Reference) -> list[Step]:
    """The step of both engines."""
    draws = PLAN(TOKENS, PAIRS)
    return [engine(policy, reference, TOKENS, PAIRS, draws, DPO()) for engine in (preference_loss, backward_by_draw)]


def test_shared_draws_cancel_draw_by_draw() -> None:
    """Policy equal to reference: every term differs by exactly 0 and the loss is log 2, bit for bit.

    Kills: masks not shared with the reference; cached reference values with fresh masks.
    """
    for step in both_steps(exact.Table(), FrozenReference(exact.Table())):
        assert torch.equal(step.terms.policy, step.terms.reference[:, 0])
        assert torch.equal(step.loss.detach(), torch.tensor(2.0, dtype=torch.float64).log())


def test_independent_draws_do_not_cancel() -> None:
    """share_draws=False is what it says: no term of any row is shared, the score is not 0. Kills: rekeying a no-op."""
    for step in both_steps(exact.Table(), IndependentReference(FrozenReference(exact.Table()), PLAN)):
        assert (log_ratios(step.terms).abs() > 1e-3).any()
        assert (step.terms.policy != step.terms.reference[:, 0]).any()


def test_policy_and_reference_see_the_same_masks() -> None:
    """Call by call the same corrupted batch, where independent draws give another one."""
    policy, frozen = Recorder(exact.Table()), Recorder(exact.Table())
    both_steps(policy, FrozenReference(frozen))
    calls = {"policy": policy.calls[:4], "frozen": frozen.calls[:4]}
    for ours, theirs in zip(*calls.values(), strict=True):
        assert all(
            torch.equal(ours[name], theirs[name]) for name in ("input_ids", "attention_mask", "masked", "scored")
        )
    other = Recorder(exact.Table())
    both_steps(exact.Table(), IndependentReference(FrozenReference(other), PLAN))
    seen = [torch.cat([call["masked"].flatten() for call in recorder.calls[:4]]) for recorder in (frozen, other)]
    assert not torch.equal(*seen)


def test_independent_draws_replay() -> None:
    """They come from keys too, so evaluation and resumption are the same with share_draws=False."""
    reference = IndependentReference(FrozenReference(exact.Table()), FixedCount(2))
    draws = PLAN(TOKENS, PAIRS)
    first, second = (reference(TOKENS, draws, PAIRS) for _ in range(2))
    assert first.shape == (4, 1, 2)
    assert torch.equal(first, second)


def test_a_cached_reference_replays_at_epoch_0_and_at_no_other() -> None:
    """Cached terms cancel only against the draws they were made on: so the key of a cached run has epoch 0.

    Kills: cached reference values used with fresh masks; the epoch left out of the key.
    """
    base = make_tokens([Row(row.prompt, row.response) for row in ROWS])

    def at(epoch: int) -> Tokens:
        key = draw_key(1, torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1]), epoch)
        return Tokens(base.ids, base.response, base.attention, key)

    terms = FrozenReference(exact.Table())(at(0), PLAN(at(0)), PAIRS)

    def score(epoch: int) -> Tensor:
        step = preference_loss(exact.Table(), GivenReference(terms), at(epoch), PAIRS, PLAN(at(epoch)), DPO())
        return log_ratios(step.terms).detach()[:, 0]

    assert not score(0).any()
    assert score(1)[:3].all()  # row 3 has one token, hence one mask


class Adapted(nn.Module):
    """A table plus an adapter that can be turned off, like a peft model."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.adapter, self.on = exact.Table(), exact.Table(seed=5), True

    def forward(self, **arguments: Tensor) -> Tensor:
        return self.base(**arguments) + (self.adapter(**arguments) if self.on else 0)

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        self.on = False
        yield
        self.on = True


def test_the_policy_with_its_adapter_off_is_a_reference() -> None:
    """Evaluated under `frozen`, and turned on again for the policy. Kills: the context not entered, or not left."""
    model = Adapted()
    steps = [
        both_steps(model, FrozenReference(model, model.disabled)),
        both_steps(model, FrozenReference(exact.Table())),
    ]
    for adapter_off, copy in zip(*steps, strict=True):
        assert torch.equal(adapter_off.terms.reference, copy.terms.reference)
        assert torch.equal(adapter_off.terms.policy, copy.terms.policy)
        assert (adapter_off.terms.policy != adapter_off.terms.reference[:, 0]).all()


def test_a_reference_has_no_graph() -> None:
    reference = exact.Table()
    for step in both_steps(exact.Table(seed=9), FrozenReference(reference)):
        assert not step.terms.reference.requires_grad
    assert reference.table.grad is None


def test_given_terms_must_fit_the_draws() -> None:
    """Cached terms are returned as they are, and refused for another number of rows or draws. Kills: broadcasting."""
    draws = PLAN(TOKENS, PAIRS)
    terms = FrozenReference(exact.Table())(TOKENS, draws, PAIRS)
    assert GivenReference(terms)(TOKENS, draws, PAIRS) is terms
    for other in (terms[:1], terms[..., :1]):
        with pytest.raises(ValueError, match="do not fit"):
            GivenReference(other)(TOKENS, draws, PAIRS)


def test_no_reference_is_empty_and_a_preference_refuses_it() -> None:
    """Kills: a missing reference replaced by 0."""
    draws = PLAN(TOKENS, PAIRS)
    assert NoReference()(TOKENS, draws, PAIRS).shape == (4, 0, 4)
    preference_loss(exact.Table(), NoReference(), TOKENS, PAIRS, draws, SFT())
    with pytest.raises(ValueError, match="exactly one reference, not 0"):
        preference_loss(exact.Table(), NoReference(), TOKENS, PAIRS, draws, DPO())


def test_an_exact_reference_is_the_likelihood_whatever_the_draws() -> None:
    """Equal terms in every draw of the plan, so that a group left out takes its share. Kills: the policy's masks for a
    causal model; the whole likelihood in every draw."""
    found = ExactReference(exact.Bigram())(TOKENS, PLAN(TOKENS, PAIRS), PAIRS)
    scored = [exact.token_logp(exact.Bigram(), row, (), tuple(range(len(row.response)))) for row in ROWS]
    torch.testing.assert_close(found, torch.tensor(scored)[:, None, None].double().expand(4, 1, 4) / 4)


def test_an_exact_reference_of_some_draws_has_the_terms_of_all() -> None:
    """As an engine asks that pushes groups back one by one; other rows cost nothing. Kills: shares among the draws that
    are asked for; every row computed at each call."""
    draws = PLAN(TOKENS, PAIRS)
    recorder = Recorder(exact.Bigram())
    whole = ExactReference(recorder)(TOKENS, draws, PAIRS)
    asked = torch.zeros_like(draws.in_use)
    asked[2, 1] = True
    recorder.calls.clear()
    part = ExactReference(recorder)(TOKENS, draws.only(asked), PAIRS)
    assert torch.equal(part[2], whole[2])
    assert [call["input_ids"].shape[0] for call in recorder.calls] == [1]


def test_references_side_by_side_are_in_their_order() -> None:
    """Kills: terms of one in the place of another."""
    parts = (FrozenReference(exact.Table(seed=1)), ExactReference(exact.Bigram()), FrozenReference(exact.Table(seed=2)))
    draws = PLAN(TOKENS, PAIRS)
    found = Several(parts)(TOKENS, draws, PAIRS)
    assert found.shape == (4, 3, 4)
    for place, part in enumerate(parts):
        assert torch.equal(found[:, place], part(TOKENS, draws, PAIRS)[:, 0])
