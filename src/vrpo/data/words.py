"""Many texts to token ids at once, each word once: most words of a data set have been seen before.

A byte-level BPE never puts a visible character and the space after it into one token, for its expression, which cuts a
text into what is then merged, ends a piece before such a space. So ids of a text are those of its words, one after the
other, and looking them up is three times as fast as encoding them.
"""

import json
import re
from collections.abc import Callable, Sequence
from itertools import chain

from tokenizers import Tokenizer, models, normalizers

_BEFORE_WORD = re.compile(r"(?<=[!-~])(?= [!-~])")
_MOST = 1 << 18  # words that are remembered
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_EXPRESSIONS = (  # of which it is known: GPT-2, Llama 3, Qwen 2, and Ling, which LLaDA uses
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
)


class Words(dict[str, list[int]]):
    """Token ids of words that were encoded. Neither sent to another process nor part of what names a table."""

    def __reduce__(self) -> tuple[type["Words"], tuple[()]]:
        return Words, ()

    def encoded(self, texts: Sequence[str], encode: Callable[[list[str]], list[list[int]]]) -> list[list[int]]:
        """What `encode` says of these texts, being asked for words that are not known yet."""
        pieces = [_BEFORE_WORD.split(text) for text in texts]
        wanted = set(chain.from_iterable(pieces))
        if len(self) + len(wanted) > _MOST:
            self.clear()
        new = list(wanted - self.keys())
        self.update(zip(new, encode(new), strict=True))
        return [list(chain.from_iterable(map(self.__getitem__, words))) for words in pieces]


def encodes_words_alone(tokenizer: Tokenizer) -> bool:
    """Whether this tokenizer is known to encode each word as if it stood alone: a byte-level BPE without chance, one of
    the usual expressions, and no added token that has a space in it or takes one from its neighbours."""
    model, normalizer = tokenizer.model, tokenizer.normalizer
    plain = isinstance(model, models.BPE) and not model.dropout
    plain = plain and (normalizer is None or isinstance(normalizer, normalizers.NFC))
    if not plain or tokenizer.pre_tokenizer is None:
        return False
    for token in tokenizer.get_added_tokens_decoder().values():
        if " " in token.content or token.lstrip or token.rstrip or token.single_word:
            return False
    return _is_usual(json.loads(tokenizer.pre_tokenizer.__getstate__()))


def _is_usual(given: dict[str, object]) -> bool:
    parts = given["pretokenizers"] if given["type"] == "Sequence" else [given]
    assert isinstance(parts, list)
    *cuts, last = parts
    if last["type"] != "ByteLevel" or last["add_prefix_space"] or last["use_regex"] == bool(cuts):
        return False
    return not cuts or (
        len(cuts) == 1
        and cuts[0]["type"] == "Split"
        and cuts[0]["pattern"].get("Regex") in _EXPRESSIONS
        and cuts[0]["behavior"] in ("Isolated", "Removed")
        and cuts[0]["invert"] == (cuts[0]["behavior"] == "Removed")
    )
