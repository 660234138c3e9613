"""Likelihoods of requests: against enumeration and the estimator, whatever the batch."""

import dataclasses
from itertools import product

import pytest
import torch

import vrpo
from tests import exact
from tests.build import Row
from vrpo.draws import FixedCount, draw_key
from vrpo.evals.likelihood import Request, exact_up_to, likelihoods, number_of, tokens_of, written_greedily
from vrpo.models.hf import HFDenoiser
from vrpo.plans import Enumerate

PLAN = FixedCount(8)
REQUESTS = [
    Request([10, 20, 30], [40, 50], 1),
    Request([11], [41, 51, 61, 71], 2),
    Request([12, 22, 32, 42, 52], [62], 2),
    Request([13, 23], [33, 43, 53], -7),
]


def test_the_estimate_is_of_the_enumerated_bound(model: HFDenoiser) -> None:
    """With all masks as draws, to 1e-5: the bound by enumeration, written twice. Kills: the context masked, padding
    attended, a mean over tokens, requests' values in order of length."""
    found = likelihoods(model, REQUESTS, Enumerate(), seed=0, batch_size=3)
    for request, value in zip(REQUESTS, found, strict=True):
        row = Row(tuple(request.context), tuple(request.continuation))
        assert value.elbo == pytest.approx(exact.bound(model.module, row), abs=1e-5)
        with torch.no_grad():
            one = vrpo.exact_elbo(model, tokens_of([request], 0, model.pad_id))
        assert value.elbo == pytest.approx(float(one.value), abs=1e-5)
        assert value.standard_error == 0
        assert value.length == len(request.continuation)


def test_short_ones_are_enumerated(model: HFDenoiser) -> None:
    """Up to `exact` tokens; the others are sampled as ever. Kills: the limit off by one, values mixed up."""
    sampled = likelihoods(model, REQUESTS, PLAN, seed=0, batch_size=8)
    enumerated = likelihoods(model, REQUESTS, Enumerate(), seed=0, batch_size=8)
    found = likelihoods(model, REQUESTS, PLAN, seed=0, batch_size=8, exact=2)
    for request, one, rough, true in zip(REQUESTS, found, sampled, enumerated, strict=True):
        short = len(request.continuation) <= 2
        assert one.elbo == pytest.approx((true if short else rough).elbo, abs=1e-5)
        assert one.plan == ("Enumerate(max_length=2)" if short else repr(PLAN))
    assert [exact_up_to(n) for n in (1, 2, 3, 6, 7, 127, 128, 254, 255, 10**9)] == [1, 1, 2, 2, 3, 7, 7, 7, 8, 12]


def test_the_estimate_is_the_estimators(model: HFDenoiser) -> None:
    """For the key hash(seed, about, window, 0), which is reported. Kills: a seed that is ignored, another plan."""
    found = likelihoods(model, REQUESTS, PLAN, seed=5, batch_size=16)
    tokens = tokens_of(REQUESTS, 5, model.pad_id)
    about = torch.tensor([request.about for request in REQUESTS])
    assert torch.equal(tokens.key, draw_key(5, about, torch.zeros_like(about), 0))
    with torch.no_grad():
        expected = vrpo.elbo(model, tokens, PLAN(tokens))
    assert [one.elbo for one in found] == pytest.approx(expected.value.tolist(), abs=1e-5)
    assert [one.standard_error for one in found] == pytest.approx(expected.standard_error.tolist(), abs=1e-5)
    assert [one.key for one in found] == tokens.key.tolist()


def test_neighbours_do_not_matter(model: HFDenoiser) -> None:
    """Kills: draws by position in the batch, draws from a generator, order of packs."""
    together = likelihoods(model, REQUESTS, PLAN, seed=1, batch_size=5)
    for at, request in enumerate(REQUESTS):
        (alone,) = likelihoods(model, [request], PLAN, seed=1, batch_size=1)
        assert alone.elbo == pytest.approx(together[at].elbo, abs=1e-5)
        assert alone.key == together[at].key
    backwards = likelihoods(model, REQUESTS[::-1], PLAN, seed=1, batch_size=2)
    assert [one.elbo for one in backwards[::-1]] == pytest.approx([one.elbo for one in together], abs=1e-5)


def test_requests_about_one_thing_have_common_draws() -> None:
    """Choices of a question of equal length are masked alike; other questions and other windows are not."""
    asked = [Request([1], [5, 6, 7], 4), Request([2, 2], [8, 6, 9], 4), Request([1], [5, 6, 7], 5)]
    asked.append(dataclasses.replace(asked[0], window=1))
    tokens = tokens_of(asked, 0, 0)
    masked = [PLAN(tokens).masked[row][:, tokens.response[row]] for row in range(4)]
    assert torch.equal(masked[0], masked[1])
    assert not torch.equal(masked[0], masked[2])
    assert not torch.equal(masked[0], masked[3])


def test_nothing_has_likelihood_one(model: HFDenoiser) -> None:
    found = likelihoods(model, [Request([1], [], 0), REQUESTS[0]], PLAN, seed=0, batch_size=4)
    assert (found[0].elbo, found[0].length) == (0.0, 0)
    assert found[1].length == 2
    (single,) = likelihoods(model, REQUESTS[:1], FixedCount(1), seed=0, batch_size=4)
    assert single.standard_error is None


def test_texts_have_numbers_of_their_own() -> None:
    numbers = [number_of(text) for text in ("", "a", "b", "ab")]
    assert len(set(numbers)) == 4
    assert all(-(2**63) <= number < 2**63 for number in numbers)
    assert number_of("a") == numbers[1]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_greedy_is_what_decoding_writes(model: HFDenoiser, batch_size: int) -> None:
    """Of `vrpo.generate` itself: its own answers, and answers with one token changed. Kills: teacher forcing (each
    token given the true rest), only the first step looked at, rows mixed up when one leaves."""
    contexts = [[5 * i + 10, 9 * i + 11] for i in range(6)]
    asked, expected = [], []
    for context, length in product(contexts, (1, 2, 5)):
        (written,) = vrpo.generate(model, [context], max_new_tokens=length)
        asked.append(Request(context, written.ids, 0))
        expected.append(model.mask_id not in written.ids)
        for place in range(length):
            changed = list(written.ids)
            changed[place] = (changed[place] + 1) % 200 + 20
            asked.append(Request(context, changed, 0))
            expected.append(changed == written.ids)
    assert sum(expected) >= 12
    asked.append(Request([1], [], 0))
    assert written_greedily(model, asked, batch_size=batch_size) == [*expected, True]
