"""A text's ids are those of its words: for tokenizers of which that is known, and no others."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from tests.loops import each
from vrpo.data.words import _EXPRESSIONS, Words, encodes_words_alone

TEXTS = ["what colour is the sky? I'll say it's blue, 12 345 times.\r\n\n  - New York\n", "d'été à la plage … ok"]
PIECES = st.sampled_from(
    [
        "a",
        "ll",
        "'",
        "é",
        "\u0301",
        "7",
        "42",
        ".",
        ",",
        "A-",
        '"',
        "?!",
        " ",
        "  ",
        "\n",
        "\r",
        "\t",
        "\u00a0",
        "\x1c",
        "<|e|>",
        "東",
    ]
)


def bpe(expression: str | None = None, **options: object) -> Tokenizer:
    found = Tokenizer(models.BPE(**options))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=expression is None)
    cut = pre_tokenizers.Split(Regex(expression), "isolated") if expression else None
    found.pre_tokenizer = level if cut is None else pre_tokenizers.Sequence([cut, level])
    trainer = BpeTrainer(
        vocab_size=330,
        special_tokens=["<|e|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    found.train_from_iterator(TEXTS * 3, trainer)
    return found


KNOWN = [bpe(expression) for expression in (None, *_EXPRESSIONS)]


@each("place", range(len(KNOWN)))
def test_ids_of_a_text_are_those_of_its_words(place: int) -> None:
    """Kills: a word cut off where a token goes on; words of one batch in another's order; a word remembered wrongly."""
    tokenizer = KNOWN[place]
    assert encodes_words_alone(tokenizer)
    tokenizer.normalizer = normalizers.NFC() if place % 2 else None
    words = Words()

    def encode(texts: list[str]) -> list[list[int]]:
        return [each.ids for each in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.lists(PIECES, max_size=12).map("".join), max_size=4))
    def equal(texts: list[str]) -> None:
        assert words.encoded(texts, encode) == encode(texts)

    equal()
    assert words.encoded(TEXTS, encode) == encode(TEXTS)


def unusual(change: str) -> Tokenizer:
    tokenizer = bpe(**({"dropout": 0.1} if change == "dropout" else {}))
    match change:
        case "space":
            tokenizer.add_tokens([AddedToken("New York", normalized=False)])
        case "strip":
            tokenizer.add_tokens([AddedToken("<m>", rstrip=True)])
        case "prefix":
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        case "metaspace":
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        case "expression":
            tokenizer = bpe(r"New York| ?\p{L}+|\s+")
        case "lower":
            tokenizer.normalizer = normalizers.Replace(" ", "_")
        case "nothing":
            tokenizer.pre_tokenizer = None
    return tokenizer


def test_other_tokenizers_are_left_alone() -> None:
    for change in ["dropout", "space", "strip", "prefix", "metaspace", "expression", "lower", "nothing"]:
        assert not encodes_words_alone(unusual(change))


def test_what_is_remembered_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vrpo.data.words._MOST", 3)
    words = Words()
    assert words.encoded(["a b", "c d e"], lambda new: [[ord(word.strip())] for word in new]) == [
        [97, 98],
        [99, 100, 101],
    ]
    assert words.encoded(["x"], lambda new: [[ord(word)] for word in new]) == [[120]]
    assert len(words.places) == 1
