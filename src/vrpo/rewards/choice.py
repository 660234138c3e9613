"""Answers that are one of several letters."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vrpo.rewards.extract import before_end, boxed, plain, said, tagged, typed
from vrpo.rewards.fields import field_of
from vrpo.rewards.verdict import Answer, Verdict

_REASON = r",?\s+(?:[-\u2013\u2014]|(?:because|since|as)\b)"


@dataclass(frozen=True)
class Choice:
    r"""1 if the letter that an answer chooses is the row's.

    The letter is looked for in this order, after cutting at the first end token: in the last <answer> tag; in the last
    \boxed{...}; after the last "answer is"; at the very beginning, as in "B." or "(B) because"; alone on the last such
    line; the last one in brackets, as in "(B)"; and the last one named, as in "option B" or "I choose B". In a tag, a
    box and after "is", a letter counts if it is alone, in brackets, or followed by punctuation, a dash or a word that
    gives the reason ("B because"); small letters count only there and only alone. "A man" is no choice.

    `field`: where the row has the truth, a letter, in brackets or not, or the index of one, from 0. `letters`: the
    choices, capital.

    Raises:
        ValueError: a row's field is missing or is none of the letters.
    """

    field: str = "answer"
    letters: str = "ABCD"

    def __post_init__(self) -> None:
        if not (self.letters.isalpha() and self.letters.isupper() and len(set(self.letters)) == len(self.letters)):
            raise ValueError(f"letters must be different capital letters, as in ABCD, not {self.letters!r}")

    def __call__(self, answers: Sequence[Answer]) -> list[Verdict]:
        return [self._judge(answer, index) for index, answer in enumerate(answers)]

    def _judge(self, answer: Answer, index: int) -> Verdict:
        truth = self._truth(field_of(answer.row, self.field, index), index)
        found = letter_of(answer.text, self.letters)
        if found is None:
            return Verdict(0.0, None, "no choice found")
        return Verdict(float(found == truth), found, None if found == truth else f"not {truth}")

    def _truth(self, given: object, index: int) -> str:
        if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < len(self.letters):
            return self.letters[given]
        letter = str(given).strip().strip("().").upper()
        if len(letter) != 1 or letter not in self.letters:
            raise ValueError(f"answer {index}: its row's field {self.field!r} is {given!r}, none of {self.letters}")
        return letter


def letter_of(text: str, letters: str) -> str | None:
    """The letter an answer chooses, by the order of `Choice`; None if it chooses none."""
    text = typed(before_end(text)).strip()
    one = f"[{re.escape(letters)}]"
    small = f"[{re.escape(letters + letters.lower())}]"
    for part in (tagged(text), *reversed(boxed(text)), said(text)):
        if part is not None and (letter := _stated(part, one, small)):
            return letter
    first = re.match(rf"\W{{0,3}}({one})(?:[.):*]|\s*$|\s*\n|,?\s+because\b)", text)
    if first:
        return first[1]
    alone = re.findall(rf"^[^\w\n]{{0,10}}({one})[^\w\n]{{0,10}}$", text, re.MULTILINE)
    bracketed = re.findall(rf"\(({one})\)", text)
    named = re.findall(rf"\b(?i:option|choice|choose|pick|select)(?:\s+is)?\W{{1,4}}({one})(?![\w'])", text)
    return next((found[-1] for found in (alone, bracketed, named) if found), None)


def _stated(text: str, one: str, small: str) -> str | None:
    text = plain(text)
    whole = re.fullmatch(rf"\W*({small})\W*", text)
    if whole:
        return whole[1].upper()
    found = re.search(rf"(?<!\w)\W{{0,3}}({one})(?=[^\w\s']|\s*$|\s*\n|{_REASON})", text)
    return found[1] if found else None
