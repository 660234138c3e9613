"""A causal model's likelihood as the estimator that has no noise: one draw, nothing masked, everything scored."""

from dataclasses import replace
from itertools import pairwise
from math import log

import pytest
import torch

from tests import exact
from tests.build import Row, draws_of
from tests.objectives import PAIRS, ROWS, TOKENS, Case, every_case, of
from vrpo.draws import FixedCount
from vrpo.estimator import elbo
from vrpo.losses.corrections import CrossFit, Jackknife
from vrpo.losses.pairwise import DPO
from vrpo.losses.pools import Fixed, Pooled, geometric
from vrpo.plans import Exact
from vrpo.preference import backward_by_draw, preference_loss
from vrpo.reference import ExactReference, FrozenReference, NoReference, Reference, Several
from vrpo.types import Draws

pytestmark = pytest.mark.usefixtures("no_global_randomness")


def log_likelihood(model: exact.Bigram, row: Row) -> float:
    """sum_i log p(y_i | y_{i-1}), the first after the last token of the prompt; plain Python."""
    table = model.logits.detach().exp().tolist()
    text = (row.prompt[-1], *row.response)
    return sum(log(table[a][b] / sum(table[a])) for a, b in pairwise(text))


def test_the_exact_plan_is_the_log_likelihood() -> None:
    """Of a causal model, whatever the keys and the padding. Kills: answers that are masked; a mean over tokens; the
    prompt or padding scored; the first token of the answer left out."""
    model = exact.Bigram()
    estimate = elbo(model, TOKENS, Exact()(TOKENS))
    assert estimate.terms.shape == (6, 1)
    assert estimate.value.tolist() == pytest.approx([log_likelihood(model, row) for row in ROWS], abs=1e-14)


def test_the_exact_plan_draws_nothing() -> None:
    """Equal for every key. Kills: a plan that uses randomness; a draw without a group."""
    draws = Exact()(TOKENS)
    assert not draws.masked.any()
    assert torch.equal(draws.weight[:, 0], TOKENS.response.double())
    assert draws.group.tolist() == [[0]] * 6


def ragged() -> Draws:
    """Two draws, of which rows 0 and 3 use one."""
    masks = [torch.ones(1 if n in (0, 3) else 2, len(row.response)) for n, row in enumerate(ROWS)]
    return draws_of(TOKENS, masks)


def test_an_exact_reference_is_spread_over_the_draws_in_use() -> None:
    """Terms of log p / K that add up to log p, and 0 where a draw is not in use.

    Kills: log p once per draw; a share of draws that are not there.
    """
    model, draws = exact.Bigram(), ragged()
    terms = ExactReference(model)(TOKENS, draws, PAIRS)
    known = torch.tensor([log_likelihood(model, row) for row in ROWS], dtype=torch.float64)
    torch.testing.assert_close(terms.sum(-1)[:, 0], known, rtol=1e-14, atol=0)
    assert not terms[:, 0][~draws.in_use].any()
    assert torch.equal(terms[1, 0, 0], terms[1, 0, 1])


def test_leaving_draws_out_leaves_an_exact_reference_what_it_is() -> None:
    """So CrossFit and Jackknife take it beside a policy with draws: slopes are those of the other group's policy terms
    and the whole log-likelihood. Kills: half a likelihood for half of the draws."""
    policy, model, draws = exact.Table(), exact.Bigram(), FixedCount(2)(TOKENS)
    reference = ExactReference(model)(TOKENS, draws, PAIRS)
    terms = elbo(policy, TOKENS, draws).terms.detach()
    leaf = terms.clone().requires_grad_()
    (crossed,) = torch.autograd.grad(CrossFit(DPO(1.5), 2)(of(leaf, reference), PAIRS), leaf)
    for own in (0, 1):
        other = (2 * terms[:, 1 - own : 2 - own]).requires_grad_()
        loss = DPO(1.5)(of(other, reference.sum(-1, keepdim=True)), PAIRS)
        torch.testing.assert_close(crossed[:, own], torch.autograd.grad(loss, other)[0][:, 0], rtol=1e-12, atol=0)
    constant = [Jackknife(DPO(1.5), 2), DPO(1.5)]
    quiet = terms.mean(-1, True).expand(6, 2)
    found = [float(objective(of(quiet, reference), PAIRS)) for objective in constant]
    assert found[0] == pytest.approx(found[1], rel=1e-13)


def references_of(case: Case) -> Reference:
    models = tuple(ExactReference(exact.Bigram(seed=1 + k)) for k in range(case.references))
    return Several(models) if models else NoReference()


@every_case()
def test_every_objective_aligns_a_causal_model_exactly(case: Case) -> None:
    """The same engine, one draw: loss and gradient are those of the log-likelihoods in plain autograd.

    Kills: a plan or engine that needs something masked; a loss that divides by the number of draws.
    """
    policy, plain = exact.Bigram(), exact.Bigram()
    draws, reference = Exact()(TOKENS), references_of(case)
    step = backward_by_draw(policy, reference, TOKENS, case.structure, draws, case.objective)
    rows = []
    for row in ROWS:
        text = torch.tensor((row.prompt[-1], *row.response))
        rows.append(plain.logits.log_softmax(-1)[text[:-1], text[1:]].sum())
    known = [[log_likelihood(exact.Bigram(seed=1 + k), row) for k in range(case.references)] for row in ROWS]
    theirs = torch.tensor(known, dtype=torch.float64).reshape(6, case.references, 1)
    loss = case.objective(of(torch.stack(rows)[:, None], theirs), case.structure)
    loss.backward()
    assert float(step.loss) == pytest.approx(float(loss.detach()), rel=1e-12)
    torch.testing.assert_close(policy.logits.grad, plain.logits.grad, rtol=1e-10, atol=1e-13)


def test_a_causal_reference_beside_a_diffusion_one() -> None:
    """In one pool: terms on the same draws, the causal one's without noise. Kills: references of unequal shapes."""
    policy, draws = exact.Table(), FixedCount(2)(TOKENS)
    frozen = exact.Table(seed=9)
    several = Several((ExactReference(exact.Bigram()), FrozenReference(frozen)))
    pool = Pooled(geometric, Fixed((0.25, 0.75)))
    step = preference_loss(policy, several, TOKENS, PAIRS, draws, replace(DPO(0.7), pool=pool))
    ratio = pool(of(step.terms.policy.detach(), step.terms.reference), PAIRS)
    known = [log_likelihood(exact.Bigram(), row) for row in ROWS]
    bound = elbo(frozen, TOKENS, draws).value.tolist()
    expected = [
        ours - 0.25 * exactly - 0.75 * estimated
        for ours, exactly, estimated in zip(step.terms.policy.sum(-1).tolist(), known, bound, strict=True)
    ]
    assert ratio.tolist() == pytest.approx(expected, abs=1e-12)


def test_an_exact_policy_at_its_reference_has_no_noise() -> None:
    """Score exactly 0, and DPO's loss log 2 for every pair. Kills: noise of draws in an exact reference."""
    step = preference_loss(exact.Bigram(), ExactReference(exact.Bigram()), TOKENS, PAIRS, Exact()(TOKENS), DPO(0.7))
    assert torch.equal(step.terms.policy.detach(), step.terms.reference[:, 0])
    assert float(step.loss.detach()) == pytest.approx(log(2), abs=1e-16)
