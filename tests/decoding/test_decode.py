"""`vrpo.generate` against the naive decoder, and what a caller relies on: batches, order, randomness, errors."""

import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vrpo
from tests.decoding.oracle import TableDenoiser, oracle
from tests.loops import each
from tests.stat import assert_law
from vrpo.decoding.decode import row_generators
from vrpo.decoding.sampling import Sampling
from vrpo.decoding.select import Proposer

PROMPTS = [[0, 1, 2], [5], [3, 3, 0, 1, 2, 4], [], [1, 4]]


def schedules():
    """(max_new_tokens, block_size, steps) with every remainder."""
    return st.tuples(st.integers(1, 3), st.integers(1, 5)).flatmap(
        lambda shape: st.integers(1, shape[1]).map(lambda per: (shape[0] * shape[1], shape[1], per * shape[0]))
    )


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    schedule=schedules(),
    temperature=st.sampled_from([0.0, 0.0, 0.5, 1.3]),
    cfg_scale=st.sampled_from([0.0, 0.5, 2.0]),
    remasking=st.sampled_from(["low_confidence", "low_confidence", "random"]),
    logits_eos_inf=st.booleans(),
    confidence_eos_eot_inf=st.booleans(),
    mask_bias=st.sampled_from([-4.0, 0.0, 2.0]),
    end_bias=st.sampled_from([0.0, 3.0]),
    batch_size=st.sampled_from([None, 1, 2]),
)
def test_equals_the_naive_decoder(
    seed,
    schedule,
    temperature,
    cfg_scale,
    remasking,
    logits_eos_inf,
    confidence_eos_eot_inf,
    mask_bias,
    end_bias,
    batch_size,
):
    """Every row of a left-padded batch equals the official algorithm on that row alone, for all flags together.

    Kills: pads attended, blanked or written; leftover masks of earlier blocks forgotten; a step that writes masked
    proposals twice; flags in the wrong order; noise shared between rows or dependent on the batch; outputs in the order
    of batches.
    """
    denoiser = TableDenoiser(seed=seed, mask_bias=mask_bias, end_bias=end_bias)
    max_new_tokens, block_size, steps = schedule
    arguments = {
        "max_new_tokens": max_new_tokens,
        "block_size": block_size,
        "steps": steps,
        "temperature": temperature,
        "cfg_scale": cfg_scale,
        "remasking": remasking,
        "logits_eos_inf": logits_eos_inf,
        "confidence_eos_eot_inf": confidence_eos_eot_inf,
    }
    out = vrpo.generate(denoiser, PROMPTS, **arguments, generator=seeded(seed), batch_size=batch_size)
    streams = row_generators(Sampling(**arguments), seeded(seed), len(PROMPTS), denoiser.device)
    expected = [oracle(denoiser, p, **arguments, row_generator=g) for p, g in zip(PROMPTS, streams, strict=True)]
    assert [row.ids for row in out] == expected
    assert [row.prompt_ids for row in out] == PROMPTS
    assert {row.nfe for row in out} == {steps}


def test_the_table_model_reaches_the_hard_cases():
    """The property above is worth something: its model leaves masks over, and earlier leftovers are filled later."""
    leftovers = refilled = 0
    for seed in range(50):
        denoiser = TableDenoiser(seed=seed, mask_bias=2.0)
        [out] = vrpo.generate(denoiser, [[0, 1, 2]], max_new_tokens=12, block_size=4, steps=6)
        leftovers += denoiser.mask_id in out.ids
        after_first = denoiser.calls[2][0][0, 3:7]
        refilled += any(a == denoiser.mask_id != b for a, b in zip(after_first.tolist(), out.ids[:4], strict=True))
    assert leftovers > 0
    assert refilled > 0


def test_logits_are_asked_only_where_something_can_be_written():
    """Kills: a vocabulary-sized tensor at prompt, pads, written tokens or later blocks; a call too many."""
    denoiser = TableDenoiser()
    vrpo.generate(denoiser, [[0, 1], [2]], max_new_tokens=6, block_size=3, steps=4)
    hidden = [sum(wanted[0].tolist()) for _, _, wanted in denoiser.calls]
    assert hidden == [3, 1, 3, 1]
    for ids, attention, wanted in denoiser.calls:
        assert torch.equal(wanted, wanted & (ids == denoiser.mask_id) & attention)
    assert not any(wanted[:, 5:].any() for _, _, wanted in denoiser.calls[:2])


def test_batches_hold_prompts_of_like_length():
    """Kills: batches in the order given, which pad short prompts for nothing; the longest batch not first."""
    denoiser = TableDenoiser()
    vrpo.generate(denoiser, [[0], [1] * 6, [2], [3] * 6], max_new_tokens=1, batch_size=2)
    assert [ids.shape for ids, _, _ in denoiser.calls] == [(2, 7), (2, 2)]


def test_guidance_blanks_the_prompt_and_nothing_else():
    """Kills: text written so far blanked, pads kept as they are, attention of the unconditional half changed."""
    denoiser = TableDenoiser()
    vrpo.generate(denoiser, [[0, 1, 2], [3]], max_new_tokens=4, cfg_scale=1.0)
    assert len(denoiser.calls) == 4
    for ids, attention, wanted in denoiser.calls:
        conditional, unconditional = ids.chunk(2)
        assert bool((unconditional[:, :3] == denoiser.mask_id).all())
        assert torch.equal(conditional[:, 3:], unconditional[:, 3:])
        assert torch.equal(*attention.chunk(2))
        assert attention[:2, :3].tolist() == [[True, True, True], [False, False, True]]
        assert torch.equal(*wanted.chunk(2))


def test_padding_with_the_mask_token_does_no_harm():
    """Kills: "hidden" taken over the whole row, where the official code would write over the pads."""
    plain, odd = TableDenoiser(), TableDenoiser(pad_id=8)
    ours = [row.ids for row in vrpo.generate(plain, PROMPTS, max_new_tokens=6)]
    assert ours == [row.ids for row in vrpo.generate(odd, PROMPTS, max_new_tokens=6)]


def test_defaults_are_one_block_and_one_token_a_step():
    denoiser = TableDenoiser()
    [out] = vrpo.generate(denoiser, [[0]], max_new_tokens=5)
    assert out == vrpo.generate(denoiser, [[0]], max_new_tokens=5, block_size=5, steps=5)[0]
    assert out.nfe == 5
    assert out.text is None
    assert len(vrpo.generate(denoiser, [[0]])[0].ids) == 128
    assert vrpo.generate(denoiser, []) == []


@each("arguments", [{"temperature": 1.0}, {"remasking": "random", "steps": 3}])
def test_randomness_comes_from_the_generator_alone(arguments):
    """Kills: the global generator, a stream shared by rows, streams that depend on the batch or on later prompts."""
    denoiser = TableDenoiser()
    arguments = {"max_new_tokens": 12, **arguments}
    torch.manual_seed(7)
    global_state = torch.get_rng_state()
    out = vrpo.generate(denoiser, PROMPTS, **arguments, generator=seeded(5))
    assert torch.equal(torch.get_rng_state(), global_state)
    assert out == vrpo.generate(denoiser, PROMPTS, **arguments, generator=seeded(5), batch_size=2)
    assert out[:2] == vrpo.generate(denoiser, PROMPTS[:2], **arguments, generator=seeded(5))
    assert out != vrpo.generate(denoiser, PROMPTS, **arguments, generator=seeded(6))
    passed = seeded(5)
    vrpo.generate(denoiser, PROMPTS, **arguments, generator=passed)
    assert out != vrpo.generate(denoiser, PROMPTS, **arguments, generator=passed)  # the passed generator has moved on


def test_rows_of_one_prompt_are_independent_draws_of_its_softmax():
    """4000 rows of one prompt, one token each, at a false-alarm rate of 1e-6.

    Kills: one stream for all rows (then all rows are equal), and correlated or biased row seeds.
    """
    denoiser = TableDenoiser(seed=3)
    count, temperature = 4000, 3.0
    out = vrpo.generate(denoiser, [[0, 1]] * count, max_new_tokens=1, temperature=temperature, generator=seeded(1))
    wanted = torch.tensor([[False, False, True]])
    logits = denoiser.logits(torch.tensor([[0, 1, 8]]), torch.ones(1, 3, dtype=torch.bool), wanted)[0]
    counts = torch.tensor([row.ids[0] for row in out]).bincount(minlength=denoiser.vocab)
    assert_law(counts, (logits / temperature).softmax(-1), resolution=0.1)


def test_temperature_zero_needs_and_moves_no_generator():
    passed = seeded()
    before = passed.get_state()
    vrpo.generate(TableDenoiser(), PROMPTS, max_new_tokens=4, generator=passed)
    assert torch.equal(passed.get_state(), before)


def test_no_graph_is_built():
    """Kills: a missing no_grad, which would keep the activations of every step."""
    weight = torch.ones(1, requires_grad=True, dtype=torch.float64)

    class Differentiable(TableDenoiser):
        def logits(self, input_ids, attention_mask, wanted):
            assert not torch.is_grad_enabled()
            return super().logits(input_ids, attention_mask, wanted) * weight

    vrpo.generate(Differentiable(), [[0]], max_new_tokens=2)
    assert torch.is_grad_enabled()


@each(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must"),
        ({"block_size": 0}, "block_size must"),
        ({"block_size": 5}, "block_size 5 does not divide max_new_tokens 8"),
        ({"block_size": 16}, "block_size 16 does not divide"),
        ({"block_size": 2, "steps": 6}, "steps must be a multiple of the 4 block"),
        ({"steps": 0}, "steps must"),
        ({"steps": 16}, "steps must .* at most max_new_tokens 8"),
        ({"temperature": -0.1}, "temperature must"),
        ({"temperature": float("nan")}, "temperature must"),
        ({"cfg_scale": -1.0}, "cfg_scale must"),
        ({"remasking": "lowest"}, "remasking must .* 'lowest'"),
        ({"batch_size": 0}, "batch_size must"),
        ({"temperature": 1.0}, "generator is needed"),
        ({"remasking": "random"}, "generator is needed"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    """Kills: an assertion or a silent truncation where the user was wrong; a model call before the check."""
    denoiser = TableDenoiser()
    with pytest.raises(ValueError, match=message):
        vrpo.generate(denoiser, [[0]], **{"max_new_tokens": 8, **arguments})
    assert denoiser.calls == []


@each(("temperature", "demoted"), [(0.0, (6, 7)), (0.5, (7,))])
def test_which_end_tokens_the_flags_concern(temperature, demoted):
    """Kills: one of the two ends forgotten at temperature 0 (the golden ids would not tell), end-of-turn banned."""
    sampling = Sampling(8, 8, 8, temperature, 0.0, "low_confidence", True, True)
    assert sampling.proposer(8, 6, 7) == Proposer(temperature, "low_confidence", banned=(6,), demoted=demoted)
    off = replace(sampling, logits_eos_inf=False, confidence_eos_eot_inf=False)
    assert off.proposer(8, 6, 7) == Proposer(temperature, "low_confidence", banned=(), demoted=())


@each("seed", range(10))
def test_demotion_at_temperature_zero(seed):
    """The aliasing semantics on a model that likes end tokens. Kills: demotion of one end token only, or of none."""
    denoiser = TableDenoiser(seed=seed, end_bias=1.5)
    arguments = {"max_new_tokens": 12, "block_size": 6, "steps": 6, "confidence_eos_eot_inf": True}
    out = vrpo.generate(denoiser, PROMPTS, **arguments)
    assert [row.ids for row in out] == [oracle(denoiser, prompt, **arguments) for prompt in PROMPTS]


def test_demotion_without_an_end_of_turn_token():
    """At temperature > 0 the flag would do nothing; at temperature 0 it demotes end-of-sequence."""
    denoiser = TableDenoiser(eot_id=None)
    with pytest.raises(ValueError, match="confidence_eos_eot_inf"):
        vrpo.generate(denoiser, [[0]], temperature=1.0, confidence_eos_eot_inf=True, generator=seeded())
    arguments = {"max_new_tokens": 6, "confidence_eos_eot_inf": True}
    same = replace(denoiser, eot_id=6)  # end-of-sequence twice
    assert vrpo.generate(denoiser, PROMPTS, **arguments) == vrpo.generate(same, PROMPTS, **arguments)
    assert vrpo.generate(denoiser, PROMPTS, **arguments) != vrpo.generate(denoiser, PROMPTS, max_new_tokens=6)


def test_progress(capsys, monkeypatch):
    """A bar when asked; none off a terminal; on one only after ten seconds."""
    for progress in (None, False):
        vrpo.generate(TableDenoiser(), [[0]], max_new_tokens=2, progress=progress)
        assert capsys.readouterr().err == ""
    vrpo.generate(TableDenoiser(), [[0], [1]], max_new_tokens=2, progress=True, batch_size=1)
    assert "4/4" in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    vrpo.generate(TableDenoiser(), [[0]], max_new_tokens=2)
    assert capsys.readouterr().err == ""
