"""Prompts as strings, ids and messages; text up to the first end token."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

import vrpo
from tests.decoding.oracle import TableDenoiser
from tests.loops import each
from vrpo.decoding.text import answer_text, prompt_ids

WORDS = ["a", "b", "c", "d", "user:", "assistant:", "<eos>", "<eot>", "<mask>"]
CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} <eot> {% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    core = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<mask>"))
    core.pre_tokenizer = WhitespaceSplit()
    core.post_processor = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 6)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<eos>", pad_token="<eos>", mask_token="<mask>", chat_template=CHAT
    )


def test_three_kinds_of_prompt(tokenizer):
    """Kills: special tokens added to a string (here a leading end token), a chat without its generation header."""
    prompts = ["a b c", [2, 1], [{"role": "user", "content": "d"}]]
    assert prompt_ids(tokenizer, prompts, mask_id=8) == [[0, 1, 2], [2, 1], [4, 3, 7, 5]]


def test_generate_with_text(tokenizer):
    """Kills: text cut at end-of-sequence only, and the text of another row."""
    denoiser = replace(TableDenoiser(seed=17, end_bias=1.0), tokenizer=tokenizer)
    out = vrpo.generate(denoiser, ["a b", [3], [{"role": "user", "content": "c"}]], max_new_tokens=6)
    assert [row.prompt_ids for row in out] == [[0, 1], [3], [4, 2, 7, 5]]
    assert any(7 in row.ids and 6 not in row.ids for row in out), "the case of interest: ends by end-of-turn"
    assert len({row.text for row in out}) == 3
    assert [row.text for row in out] == [answer_text(tokenizer, row.ids, {6, 7}) for row in out]
    assert out[0].ids == vrpo.generate(replace(denoiser, tokenizer=None), [[0, 1]], max_new_tokens=6)[0].ids


@each("temperature", [0.0, 1.5])
@each("cache", [{}, {"threshold": 0.3}])
def test_only_tokens_are_proposed(temperature, cache):
    """Embeddings have more rows than tokens, and tokenizers have holes. Kills: an id that stands for no text."""
    known = {"a": 0, "b": 1, "d": 3, "<eos>": 6}  # the mask and the end of turn are rows without a token
    tokenizer = SimpleNamespace(get_vocab=lambda: known, decode=lambda ids, **_: "".join(map(str, ids)))
    used = set()
    for seed in range(8):
        denoiser = replace(TableDenoiser(seed=seed, vocab=14, mask_bias=0.0), tokenizer=tokenizer)
        drawn = {"temperature": temperature, "generator": torch.Generator().manual_seed(seed), **cache}
        used |= set(vrpo.generate(denoiser, [[0, 1]], max_new_tokens=12, **drawn)[0].ids)
    assert used <= {*known.values(), denoiser.eot_id, denoiser.mask_id}
    assert {0, 1, 3} < used


@pytest.mark.parametrize(
    ("ids", "text"),
    [([0, 1, 6, 2], "a b"), ([0, 7, 1, 6], "a"), ([0, 8, 1], "a b"), ([6, 0], ""), ([0, 1], "a b")],
)
def test_text_stops_at_the_first_end_token(tokenizer, ids, text):
    """Kills: text after an end token kept, one of the two ends forgotten, a leftover mask token shown."""
    assert answer_text(tokenizer, ids, {6, 7}) == text
    assert answer_text(None, ids, {6, 7}) is None


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("a b", "prompts must be a list .* not one str"),
        ([1, 2, 3], r"prompts\[0\] is one int: prompts is a list of prompts"),
        ([[0], [0, 1.5]], r"prompts\[1\] must be a string, a list of token ids or a list of messages"),
        ([{"role": "user", "content": "a"}], r"prompts\[0\] must be"),
        ([[0], [1, 8, 8]], r"prompts\[1\] contains the mask token 8, at position 1"),
        ([[0], "a <mask>"], r"prompts\[1\] contains the mask token"),
        ([[0, "a"]], r"prompts\[0\] must be"),
        ([[{"role": "usr", "content": "a"}]], r"unknown role: field 'prompts\[0\]' has the role 'usr'"),
        ([[{"role": "user", "content": [{"type": "image"}]}]], r"field 'prompts\[0\]' holds messages with 'image'"),
    ],
)
def test_errors_name_the_prompt(tokenizer, prompts, message):
    with pytest.raises(ValueError, match=message):
        prompt_ids(tokenizer, prompts, mask_id=8)


@each("prompt", ["a b", [{"role": "user", "content": "a"}]])
def test_text_needs_a_tokenizer(prompt):
    with pytest.raises(ValueError, match=r"prompts\[1\] is text, but the model has no tokenizer"):
        vrpo.generate(TableDenoiser(), [[0], prompt])
