"""Counting words, sentences and paragraphs by stated rules, without a trained model.

What lives here: the rules. What does not: how many of them an instruction wants (instructions.py). Counts of a trained
sentence splitter can differ by one or two in a long text; the rules here are the same everywhere.
"""

import re

_ABBREVIATIONS = frozenset(
    re.split(
        r"\s+",
        "mr mrs ms dr prof sr jr st vs etc no fig vol pp dept approx inc ltd co corp gen col sgt capt rev hon e.g i.e "
        "cf al a.m p.m u.s u.k u.n ph.d b.a m.a p.s p.p.s jan feb mar apr jun jul aug sep sept oct nov dec",
    )
)
_WORD = re.compile(r"\w+(?:['\u2019\-]\w+)*")
_STOP = re.compile(r"(?<![.!?…])(?P<mark>[.!?…]++)[\"'\u201d\u2019)\]*_]*+(?=\s|$)|[\u3002\uff01\uff1f\u0964]+")
_ITEM = re.compile(r"\n\s*\n|\n(?=[ \t]*(?:[*\-•]|#+|[0-9]{1,3}[.)])[ \t])")
_ORDINAL = re.compile(r"^\W*(?:[0-9]{1,3}|[A-Za-z])$")


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores; an apostrophe or hyphen between two of them joins: "don't", "X-ray"."""
    return _WORD.findall(text)


def paragraphs(text: str) -> list[str]:
    """The parts between blank lines, those with something in them."""
    return [part.strip() for part in re.split(r"\n[ \t]*\n", text) if part.strip()]


def sentences(text: str) -> list[str]:
    """The sentences of a text, in order.

    A sentence ends at . ! ? or an ellipsis, with closing quotes, brackets or emphasis after it, before white space or
    the end; and at every blank line and before every list item or heading, so that one without a full stop counts. It
    does not end after an abbreviation ("Dr.", "e.g."), an initial ("J. Smith"), a letter or number that begins it, or
    an ellipsis before a small letter. A sentence has at least one letter or digit.
    """
    found = [one for block in _ITEM.split(text) for one in _of_block(block)]
    return [one for one in found if re.search(r"\w", one)]


def _of_block(block: str) -> list[str]:
    found, start = [], 0
    for stop in _STOP.finditer(block):
        if not _goes_on(block[start : stop.start()], stop["mark"] or "", block[stop.end() : stop.end() + 3].lstrip()):
            found.append(block[start : stop.end()].strip())
            start = stop.end()
    return [*found, block[start:].strip()]


def _goes_on(before: str, mark: str, after: str) -> bool:
    """Whether the sentence continues after this mark."""
    if mark in ("...", "…"):
        return after[:1].islower()
    if mark != ".":
        return False
    last = before.split()[-1] if before.split() else ""
    bare = last.lstrip("(\"'\u201c\u2018[*_").lower()
    return bare in _ABBREVIATIONS or _ORDINAL.match(before) is not None or _is_initial(last)


def _is_initial(word: str) -> bool:
    """The J of "J. Smith": a capital alone, but I is a word."""
    return len(word) == 1 and word.isupper() and word != "I"
