"""The faster ways to write a response: which of them change nothing, and what the others do instead."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vrpo
from tests.decoding.oracle import TableDenoiser
from tests.loops import each
from vrpo.models.llada import LLaDA, LLaDAConfig
from vrpo.models.load import adapt

PROMPTS = [[0, 1, 2], [5], [3, 3, 0, 1, 2, 4], [], [1, 4], [2, 2]]


@torch.no_grad()
def one_by_one(denoiser, prompt, *, max_new_tokens, block_size, threshold):
    """Response ids and calls, by threshold, of one row and without sharing any code; the mask token never proposed."""
    x = torch.tensor(prompt + [denoiser.mask_id] * max_new_tokens)
    calls = 0
    for begin in range(len(prompt), len(x), block_size):
        while (x[begin : begin + block_size] == denoiser.mask_id).any():
            every = torch.ones(1, len(x), dtype=torch.bool)
            logits = denoiser.logits(x[None], every, every).double().clone()
            logits[:, denoiser.mask_id] = -torch.inf
            probability, token = logits.softmax(-1).max(-1)
            calls += 1
            hidden = [i for i in range(begin, begin + block_size) if x[i] == denoiser.mask_id]
            best = max(hidden, key=lambda i: (float(probability[i]), -i))
            for i in hidden:
                if probability[i] >= threshold or i == best:
                    x[i] = token[i]
    return x[len(prompt) :].tolist(), calls


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    blocks=st.integers(1, 3),
    block_size=st.integers(1, 5),
    threshold=st.sampled_from([1e-9, 0.3, 0.6, 0.9, 1.0]),
    batch_size=st.sampled_from([None, 1, 2, 3]),
)
def test_a_threshold_equals_a_naive_decoder(seed, blocks, block_size, threshold, batch_size):
    """Rows come to different blocks, leave and make room. Kills: one block for all rows, a row that leaves early, waits
    or is given another's state, prompts that enter at another's place, calls counted for the batch."""
    denoiser = TableDenoiser(seed=seed)
    arguments = {"max_new_tokens": blocks * block_size, "block_size": block_size, "threshold": threshold}
    out = vrpo.generate(denoiser, PROMPTS, **arguments, batch_size=batch_size)
    assert [(row.ids, row.nfe) for row in out] == [one_by_one(denoiser, prompt, **arguments) for prompt in PROMPTS]


def test_those_that_are_done_make_room_at_once():
    """Kills: a batch that waits for its slowest row; rows in flight without a hidden token; more rows than asked."""
    denoiser = TableDenoiser(seed=5)
    out = vrpo.generate(denoiser, PROMPTS * 4, max_new_tokens=8, block_size=4, threshold=0.6, batch_size=3)
    rows = [len(ids) for ids, _, _ in denoiser.calls]
    assert sum(rows) == sum(row.nfe for row in out)
    assert max(rows) == 3
    assert all(count == 3 for count in rows[: -max(row.nfe for row in out)])
    assert all(wanted.any(-1).all() for _, _, wanted in denoiser.calls)
    widths = [ids.shape[1] for ids, _, _ in denoiser.calls]
    assert widths == sorted(widths, reverse=True)  # padding that no row needs is cut


@pytest.mark.slow
@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    end_bias=st.sampled_from([0.0, 1.5, 3.0]),
    mask_bias=st.sampled_from([-4.0, 1.0]),
    block_size=st.sampled_from([2, 4, 12]),
    temperature=st.sampled_from([0.0, 0.8]),
    batch_size=st.sampled_from([None, 2]),
)
def test_stopping_at_the_end_changes_no_text(seed, end_bias, mask_bias, block_size, temperature, batch_size):
    """Kills: a stop while something before the end is hidden; what was written cut off; masks left in the rest."""
    denoiser = TableDenoiser(seed=seed, end_bias=end_bias, mask_bias=mask_bias)
    arguments = {"max_new_tokens": 12, "block_size": block_size, "temperature": temperature, "batch_size": batch_size}
    full = vrpo.generate(denoiser, PROMPTS, **arguments, generator=torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed)
    stopped = vrpo.generate(denoiser, PROMPTS, **arguments, generator=generator, stop_at_end=True)
    for one, other in zip(full, stopped, strict=True):
        first = next((i for i, token in enumerate(other.ids) if token in (6, 7)), 12)
        assert other.ids[: first + 1] == one.ids[: first + 1]
        assert other.nfe <= one.nfe
        if other.nfe < one.nfe:
            assert first < 12
            assert [i for i, call in enumerate(other.written) if call == 0 and other.ids[i] != denoiser.eos_id] == []
            assert denoiser.mask_id not in other.ids


def test_stopping_at_the_end_saves_calls():
    """The property above is worth something: most rows stop early on a model that likes to end."""
    denoiser = TableDenoiser(seed=1, end_bias=3.0)
    out = vrpo.generate(denoiser, PROMPTS, max_new_tokens=12, block_size=2, stop_at_end=True)
    assert sum(row.nfe < 12 for row in out) >= len(PROMPTS) / 2


def model(layers, seed=0):
    torch.manual_seed(seed)
    config = LLaDAConfig(
        hidden_size=32, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
        vocab_size=40, max_position_embeddings=256, mask_token_id=39, eos_token_id=38, pad_token_id=38,
        bos_token_id=None, initializer_range=0.4,
    )  # fmt: skip
    return adapt(LLaDA(config).double().eval(), None)


TEXTS = [[5, 9, 33, 7, 2], [11], [10, 31, 12, 13, 14, 15, 16, 17], [1, 2, 3]]
WAYS = [
    {"steps": 16, "block_size": 4},
    {"steps": 6, "block_size": 8},
    {"threshold": 0.5, "block_size": 4},
    {"threshold": 0.4, "block_size": 8, "cfg_scale": 0.7},
]


@each("cache", ["prefix", "dual"])
@each("way", WAYS)
@each("batch_size", [None, 2])
def test_a_cache_is_exact_where_columns_do_not_depend_on_each_other(cache, way, batch_size):
    """Keys and values of a first layer are those of its own token: with one layer nothing is approximated.

    Kills: columns seen twice or not at all, positions of the padded batch, stale columns of an earlier block, rows of
    the cache mixed up when rows leave and enter, halves of guidance mixed up.
    """
    denoiser = model(layers=1)
    way = {"max_new_tokens": 16, **way, "batch_size": batch_size}
    exact = vrpo.generate(denoiser, TEXTS, **way, cache=cache, refresh=1)
    kept = vrpo.generate(denoiser, TEXTS, **way, cache=cache)
    assert [(row.ids, row.written) for row in kept] == [(row.ids, row.written) for row in exact]
    for one, other in zip(kept, exact, strict=True):
        assert one.confidence == pytest.approx(other.confidence, abs=1e-9)


@each("cache", ["prefix", "dual"])
@each("way", WAYS[2:])
def test_a_cache_computed_at_every_step_is_no_cache(cache, way):
    """Kills: logits of another forward than `logits`; a refresh that does not come."""
    denoiser = model(layers=3)
    plain = vrpo.generate(denoiser, TEXTS, max_new_tokens=16, **way)
    cached = vrpo.generate(denoiser, TEXTS, max_new_tokens=16, **way, cache=cache, refresh=1)
    assert cached == plain


@each("cache", ["prefix", "dual"])
@each("way", WAYS)
def test_cached_rows_of_a_batch_equal_rows_alone(cache, way):
    """With layers that do depend on each other, where a wrong row or a wrong moment of the cache would show."""
    denoiser = model(layers=3)
    way = {"max_new_tokens": 16, **way, "cache": cache, "refresh": 3}
    together = vrpo.generate(denoiser, TEXTS * 2, **way, batch_size=3)
    assert together == [vrpo.generate(denoiser, [prompt], **way)[0] for prompt in TEXTS * 2]
    assert together != vrpo.generate(denoiser, TEXTS * 2, **{**way, "refresh": 1})  # it is an approximation


def test_columns_computed_again_are_those_of_the_whole():
    """With nothing changed since they were kept, all columns come out as before. Kills: masks that hide or double."""
    denoiser = model(layers=3)
    ids = torch.randint(0, 38, (3, 12), generator=torch.Generator().manual_seed(0))
    attention = torch.arange(12) >= torch.tensor([[0], [3], [5]])
    wanted = attention.clone()
    with torch.no_grad():
        plain = denoiser.logits(ids, attention, wanted)
        logits, kept = denoiser.logits_and_columns(ids, attention, wanted)
        torch.testing.assert_close(logits, plain, atol=1e-4, rtol=0)  # rotations are float32, and from other positions
        column = torch.tensor([[4, 5, 9], [3, 11, 7], [5, 6, 8]])
        every = torch.ones_like(column, dtype=torch.bool)
        again = denoiser.logits_of_columns(ids.gather(1, column), column, attention, every, kept)
    full = torch.zeros(3, 12, 40, dtype=torch.float64)
    full[wanted] = logits
    expected = full.gather(1, column[:, :, None].expand(-1, -1, 40))
    torch.testing.assert_close(again.view(3, 3, 40), expected)


def test_what_a_cache_computes():
    """Kills: a whole forward at every step; the suffix computed with "dual", or left out with "prefix"."""
    denoiser, calls = model(layers=2), []
    denoiser.module.model.register_forward_pre_hook(
        lambda module, args, given: calls.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    arguments = {"max_new_tokens": 12, "block_size": 4, "steps": 9}
    vrpo.generate(denoiser, [[1, 2]], **arguments, cache="dual")
    assert calls == [14, 4, 4, 14, 4, 4, 14, 4, 4]
    calls.clear()
    vrpo.generate(denoiser, [[1, 2]], **arguments, cache="prefix", refresh=2)
    assert calls == [14, 12, 14, 14, 8, 14, 14, 4, 14]


@each(
    ("arguments", "message"),
    [
        ({"threshold": 0.5, "steps": 8}, "steps and threshold exclude each other"),
        ({"threshold": 0.0}, r"threshold must be in \(0, 1\]"),
        ({"threshold": 0.5, "remasking": "entropy"}, "threshold is of a probability"),
        ({"cache": "all"}, "cache must be one of none, prefix, dual, not 'all'"),
        ({"refresh": 2}, "refresh must be"),
        ({"refresh": 0, "cache": "dual"}, "refresh must be"),
        ({"cache": "dual"}, "cache dual: a TableDenoiser cannot"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    denoiser = TableDenoiser()
    with pytest.raises(ValueError, match=message):
        vrpo.generate(denoiser, [[0]], max_new_tokens=8, **arguments)
    assert denoiser.calls == []


@each("attention", ["flex_attention", "flash_attention_2"])
def test_attention_that_takes_no_cache(attention):
    denoiser = model(layers=1)
    denoiser.module.config._attn_implementation = attention
    with pytest.raises(ValueError, match=f"a cache needs attn_implementation sdpa or eager, not {attention}"):
        vrpo.generate(denoiser, [[1]], max_new_tokens=4, cache="dual")


def test_eager_attention_takes_a_cache():
    """Kills: a boolean mask, which eager attention would add to its scores."""
    denoiser = model(layers=2)
    arguments = {"max_new_tokens": 12, "block_size": 4, "cache": "dual"}
    one = vrpo.generate(denoiser, TEXTS, **arguments)
    denoiser.module.set_attn_implementation("eager")
    assert one == vrpo.generate(denoiser, TEXTS, **arguments)


def test_the_way_is_recorded():
    """Kills: calls counted from 0; a position recorded when its slot was spent on the mask token."""
    denoiser = TableDenoiser(seed=2)
    seen = []
    [out] = vrpo.generate(denoiser, [[0, 1]], max_new_tokens=6, block_size=3, on_step=lambda f: seen.append(f.canvas))
    assert sorted(out.written) == [1, 2, 3, 4, 5, 6]
    for call, canvas in enumerate(seen, start=1):
        assert (canvas.response[0] != denoiser.mask_id).tolist() == [written <= call for written in out.written]
    assert all(0 < each <= 1 for each in out.confidence)
    spent = replace(denoiser, mask_bias=2.0)
    [out] = vrpo.generate(spent, [[0, 1]], max_new_tokens=12, block_size=4, steps=6)
    assert [at for at, token in enumerate(out.ids) if token == 8] == [
        at for at, call in enumerate(out.written) if not call
    ]


@each("way", [{}, {"threshold": 0.5}])  # in this order: without the check, the second does not end
@each("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_refused(way, bad):
    """Kills: a threshold that waits for ever for a confidence that is not there; masks left over without a word."""

    class Broken(TableDenoiser):
        def logits(self, input_ids, attention_mask, wanted):
            found = super().logits(input_ids, attention_mask, wanted)
            found[input_ids[:, :1].eq(5).expand_as(wanted)[wanted], 0] = bad
            return found

    with pytest.raises(ValueError, match=r"prompts\[1\]: the model's logits are not numbers"):
        vrpo.generate(Broken(), [[0], [5], [1]], max_new_tokens=4, **way)


@each("cache", ["none", "prefix", "dual"])
@each("way", [{"temperature": 0.9}, {"remasking": "random"}, {"temperature": 0.7, "threshold": 0.3}])
def test_samples_do_not_depend_on_the_rows_beside_them(cache, way):
    """Kills: a stream that follows a place in the batch, not the row; a cache of the row that left."""
    denoiser = model(layers=2)
    way = {"max_new_tokens": 12, "block_size": 4, "stop_at_end": True, "cfg_scale": 0.4, **way, "cache": cache}
    found = [
        vrpo.generate(denoiser, TEXTS * 2, **way, generator=torch.Generator().manual_seed(3), batch_size=size)
        for size in (1, 2, 5, None)
    ]
    assert found[0] == found[1] == found[2] == found[3]
    assert len({tuple(row.ids) for row in found[0]}) > len(TEXTS)  # samples of one prompt differ
