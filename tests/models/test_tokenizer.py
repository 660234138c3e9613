"""Tokenizers beside models: without a tokenizer.json, and with the template of models/facts.py."""

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from tests.loops import each
from tests.models.folders import checkpoint, tokenizer
from vrpo.data.encode import encoder_of, render
from vrpo.models.facts import DREAM, LLADA, LLADA_MOE, Facts, facts_of
from vrpo.models.load import load, tokenizer_of
from vrpo.models.tokenizer import load_tokenizer, with_right_template

PUBLISHED = (Path(__file__).parents[1] / "data" / "llada_chat_template.jinja").read_text()
CONVERSATION = [
    {"role": "user", "content": "one two?"},
    {"role": "assistant", "content": "three"},
    {"role": "user", "content": "four?"},
]
ANSWER = [{"role": "assistant", "content": "five six"}]


def bytes_to_letters() -> dict[int, str]:
    """GPT-2's printable letters for the 256 bytes, as published."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + place) for place, byte in enumerate(rest)}


def byte_pair(text: str, vocab: dict[str, int], merges: dict[tuple[str, str], int]) -> list[int]:
    """Byte-level BPE by hand: Qwen2's words (ASCII letters will do here), then the merge of lowest rank, again."""
    letters, ids = bytes_to_letters(), []
    words = r"'(?:[sdmt]|ll|ve|re)|(?:[^\r\n\w]|_)?[^\W\d_]+|\d| ?(?:[^\s\w]|_)+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for word in re.findall(words, text):
        parts = [letters[byte] for byte in word.encode()]
        while len(parts) > 1:
            ranks = [merges.get(pair, len(merges)) for pair in pairwise(parts)]
            at = ranks.index(min(ranks))
            if ranks[at] == len(merges):
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        ids += [vocab[part] for part in parts]
    return ids


def test_dreams_tokenizer(vrpo_data: Callable[[str], Path]) -> None:
    """vocab.json and merges.txt, no tokenizer.json, a class of its own. Kills: GPT-2's way of cutting words (numbers
    digit by digit here), special tokens cut into pieces, end-of-text from another file."""
    folder = vrpo_data("tokenizers/dream")
    found = load_tokenizer(folder)
    assert found is not None
    assert (found.eos_token, found.eos_token_id) == ("<|endoftext|>", 151643)
    assert (found.mask_token, found.mask_token_id) == ("<|mask|>", 151666)
    assert (found.bos_token_id, found.pad_token_id) == (151665, 151643)
    vocab = json.loads((folder / "vocab.json").read_text())
    lines = [
        line for line in (folder / "merges.txt").read_text().split("\n") if line and not line.startswith("#version")
    ]
    merges = {(line.split(" ")[0], line.split(" ")[1]): rank for rank, line in enumerate(lines)}
    for text in (
        "Hello  world, it's 2026!\n\n\tdef f(x):\n    return x**2 + 17",
        "unmasking_in_parallel; don't  stop   ",
        "Straße naïve 東京 🙂 — dash",
    ):
        assert found.encode(text) == byte_pair(text, vocab, merges), text
        assert found.decode(found.encode(text)) == text
    for text, token in json.loads((folder / "added_tokens.json").read_text()).items():
        assert found.encode(f"a{text}b") == [*byte_pair("a", vocab, merges), token, *byte_pair("b", vocab, merges)]


def test_a_dream_folder_without_a_tokenizer_json(vrpo_data: Callable[[str], Path], tmp_path: Path) -> None:
    """Loaded with a model, saved as it was. Kills: a tokenizer.json beside files it may come to contradict."""
    folder, real = checkpoint("dream", tmp_path / "dream", vocab_size=151680, mask_token_id=151666), None
    (folder / "tokenizer.json").unlink()
    (folder / "chat_template.jinja").unlink()
    real = vrpo_data("tokenizers/dream")
    names = ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json")
    for name in names:
        (folder / name).write_bytes((real / name).read_bytes())
    (folder / "generation_config.json").write_bytes((real / "generation_config.json").read_bytes())
    loaded = load(folder)
    assert (loaded.mask_id, loaded.eot_id) == (151666, 151645)
    loaded.save_pretrained(tmp_path / "saved")
    for name in (*names, "generation_config.json"):
        assert (tmp_path / "saved" / name).read_bytes() == (real / name).read_bytes()
    assert not (tmp_path / "saved" / "tokenizer.json").exists()
    assert not (tmp_path / "saved" / "chat_template.jinja").exists()


def test_another_class_without_a_tokenizer_json_is_named(tmp_path: Path) -> None:
    """Kills: Qwen2's words for a vocabulary of another kind."""
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    with pytest.raises(ValueError, match="GPT2Tokenizer"):
        load_tokenizer(tmp_path)


# Templates ------------------------------------------------------------------------------------------------------------


def assert_answers_end(words: PreTrainedTokenizerBase, end: str) -> None:
    """answer = content and end of turn; prompt and answer = the whole conversation, less the white space after it."""
    encoder = encoder_of(words, chat=True)
    prompt, said = encoder.encoded(encoder.texts(CONVERSATION, [ANSWER]))
    answer = encoder.closed(ANSWER, said)
    assert words.decode(answer) == "five six" + end
    whole = render(words, [*CONVERSATION, *ANSWER], header=False)
    assert words.decode([*prompt, *answer]) == whole.rstrip()
    assert [*prompt, *answer] == encoder.encoded([whole.rstrip()])[0]


def test_lladas_template_honours_the_header(tmp_path: Path) -> None:
    """In memory, not on disk. Kills: a header after every finished conversation; other words where one is asked for."""
    folder = checkpoint("llada", tmp_path / "base")
    (folder / "chat_template.jinja").write_text(PUBLISHED)
    for words in (load(folder).tokenizer, tokenizer_of(str(folder))):
        assert words is not None
        official = str(words.apply_chat_template(CONVERSATION, chat_template=PUBLISHED, tokenize=False))
        assert render(words, CONVERSATION, header=True) == official
        header = "<|start_header_id|>assistant<|end_header_id|>\n\n"
        assert render(words, CONVERSATION, header=False) + header == official
        assert encoder_of(words, chat=True).turn.dangling == ""
        assert_answers_end(words, "<|eot_id|>")
    load(folder).save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "chat_template.jinja").read_text() == PUBLISHED


@each(
    "own",
    [
        PUBLISHED.replace("trim", "upper"),  # other words
        LLADA.template,
        "{% for message in messages %}{{ message['content'] }}{% endfor %}",  # ignores the header, has none
    ],
)
def test_other_templates_are_left_alone(own: str) -> None:
    """Kills: a template replaced by its architecture's name alone."""
    words = tokenizer()
    words.chat_template = own
    with_right_template(words, LLADA)
    assert words.chat_template == own


ROLES = (  # what LLaDA-MoE's and LLaDA2's render of plain conversations, in few words
    "<role>SYSTEM</role>{% if messages[0].role == 'system' %}{{ messages[0].content + '\n' }}{% endif %}"
    "detailed thinking off<|role_end|>{% for message in messages %}{% if message.role != 'system' %}"
    "<role>{{ 'HUMAN' if message.role == 'user' else 'ASSISTANT' }}</role>{{ message.content + '<|role_end|>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<role>ASSISTANT</role>{% endif %}"
)
QWEN3 = (  # the same of Qwen3's, which SDAR has: an empty thought before the last answer, and not after its header
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@each(
    ("facts", "template"),
    [(LLADA, PUBLISHED), (LLADA_MOE, ROLES), (facts_of("Qwen3ForCausalLM"), QWEN3)],
    ids=["llada", "roles", "qwen3"],
)
def test_answers_of_each_family(facts: Facts, template: str) -> None:
    """Kills: header or empty thought as part of an answer; an end of turn left out, or another than the table's."""
    words = tokenizer()
    marks = ["<role>", "</role>", "<|role_end|>", "<|im_start|>", "<|im_end|>"]
    words.add_special_tokens({"additional_special_tokens": marks})
    words.chat_template = template
    with_right_template(words, facts)
    assert_answers_end(words, facts.end_of_turn[0])


def test_answers_of_dream(vrpo_data: Callable[[str], Path]) -> None:
    words = load_tokenizer(vrpo_data("tokenizers/dream"))
    assert isinstance(words, PreTrainedTokenizerBase)
    with_right_template(words, DREAM)
    assert_answers_end(words, DREAM.end_of_turn[0])


def test_lladas_published_template_is_the_one_corrected(vrpo_data: Callable[[str], Path]) -> None:
    fields = json.loads((vrpo_data("tokenizers/llada_8b_instruct") / "tokenizer_config.json").read_text())
    assert fields["chat_template"].strip() == PUBLISHED.strip()
