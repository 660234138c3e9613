"""Many texts to token ids at once, each word once: most words of a data set have been seen before.

A byte-level BPE never puts a visible character and the space after it into one token, nor a letter and the comma after
it, for its expression, which cuts a text into what is then merged, ends a piece there. So ids of a text are those of
its words, one after the other, and looking them up is many times as fast as encoding them.
"""

import json
import string
from collections.abc import Callable, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer, models, normalizers

_MOST = 1 << 19  # words that are remembered
_VISIBLE, _STOPS = bytes(range(33, 127)), b",.;:!?)'\"*-/\n"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_EXPRESSIONS = (  # of which it is known: GPT-2, Llama 3, Qwen 2, and Ling, which LLaDA uses
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
)


def _classes(first: bytes, second: bytes) -> Any:
    """Of each byte, 1 if it is among the first ones, and 2 if it is among the second ones."""
    return np.array([(byte in first) + 2 * (byte in second) for byte in range(256)], np.uint8)


# A word begins at a space between visible characters (1), and at a stop after a letter (2).
_BEFORE = _classes(_VISIBLE, string.ascii_letters.encode())
_HERE = _classes(b" ", _STOPS)
_AFTER = _classes(_VISIBLE, bytes(range(256)))


class Words:
    """Token ids of words that were encoded. Neither sent to another process nor part of what names a table."""

    def __init__(self) -> None:
        self.forget()

    def __reduce__(self) -> tuple[type["Words"], tuple[()]]:
        return Words, ()

    def encoded(self, texts: Sequence[str], encode: Callable[[list[str]], list[list[int]]]) -> list[list[int]]:
        """What `encode` says of these texts, being asked for words that are not known yet."""
        words, firsts = _words_of(texts)
        spelled = words.dictionary.to_pylist()
        if len(self.places) + len(spelled) > _MOST:
            self.forget()
        self._learn([word for word in spelled if word not in self.places], encode)
        places = np.fromiter(map(self.places.__getitem__, spelled), np.int64, len(spelled))[words.indices.to_numpy()]
        starts, counts = self._bounds[places], np.diff(self._bounds)[places]
        bounds = np.append(0, np.cumsum(counts))
        ids = self._ids[np.arange(bounds[-1]) + np.repeat(starts - bounds[:-1], counts)].tolist()
        return [ids[start:end] for start, end in pairwise(bounds[firsts].tolist())]

    def forget(self) -> None:
        self.places: dict[str, int] = {}
        self._ids, self._bounds = np.zeros(0, np.int32), np.zeros(1, np.int64)

    def _learn(self, words: list[str], encode: Callable[[list[str]], list[list[int]]]) -> None:
        new = encode(words)
        self.places.update(zip(words, range(len(self.places), len(self.places) + len(words)), strict=True))
        self._ids = np.append(self._ids, np.fromiter(chain.from_iterable(new), np.int32))
        ends = np.cumsum(np.fromiter(map(len, new), np.int64, len(new)))
        self._bounds = np.concatenate([self._bounds, self._bounds[-1] + ends])


def _words_of(texts: Sequence[str]) -> tuple[pa.DictionaryArray, Any]:
    """The words of all texts, and which of them is the first of each text; at last, how many there are."""
    whole = pa.array(texts, pa.large_string())
    _, starts, content = whole.buffers()
    starts, content = np.frombuffer(starts, np.int64, len(texts) + 1), content or pa.py_buffer(b"")
    text = np.frombuffer(content, np.uint8)[: starts[-1]]
    begins = np.zeros(len(text) + 1, bool)
    begins[1:-2] = _BEFORE[text[:-2]] & _HERE[text[1:-1]] & _AFTER[text[2:]]
    begins[starts] = True
    bounds = np.flatnonzero(begins)
    words = pa.LargeStringArray.from_buffers(len(bounds) - 1, pa.py_buffer(bounds), content)
    return words.dictionary_encode(), np.searchsorted(bounds, starts)


def encodes_words_alone(tokenizer: Tokenizer) -> bool:
    """Whether this tokenizer is known to encode each word as if it stood alone: a byte-level BPE without chance, one of
    the usual expressions, and no added token in which a word begins or that takes space from its neighbours."""
    model, normalizer = tokenizer.model, tokenizer.normalizer
    plain = isinstance(model, models.BPE) and not model.dropout
    if not (plain and (normalizer is None or isinstance(normalizer, normalizers.NFC)) and tokenizer.pre_tokenizer):
        return False
    added = list(tokenizer.get_added_tokens_decoder().values())
    if any(" " in token.content or token.lstrip or token.rstrip or token.single_word for token in added):
        return False
    words, _ = _words_of([token.content for token in added])
    return len(words) == len(added) and _is_usual(json.loads(tokenizer.pre_tokenizer.__getstate__()))


def _is_usual(given: dict[str, Any]) -> bool:
    *cuts, last = given["pretokenizers"] if given["type"] == "Sequence" else [given]
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": not cuts}
    known = [
        {"type": "Split", "pattern": {"Regex": expression}, "behavior": behavior, "invert": behavior == "Removed"}
        for expression in _EXPRESSIONS
        for behavior in ("Isolated", "Removed")
    ]
    return level.items() <= last.items() and (not cuts or (len(cuts) == 1 and cuts[0] in known))
