r"""Answers that are a number: GSM8K and the like."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from vrpo.rewards.extract import before_end, boxed, exact, marked, numbers, said, tagged
from vrpo.rewards.fields import field_of
from vrpo.rewards.verdict import Answer, Verdict


@dataclass(frozen=True)
class Numeric:
    r"""1 if the number that an answer gives equals the row's, exactly (18 = 18.00 = $18; 0.5 = 1/2; 50% = 50).

    The number is looked for in this order, and the first place that holds one counts: after cutting at the first end
    token, in the last <answer> tag; the last \boxed{...}; after the last "####"; after the last "answer is"; and the
    last number of the text. Within a tag, the same order again. Within a box, after "####" and after "is", the first
    number after the last "=" counts, so that "16 - 7 = 9 eggs for 2 days" gives 9.

    `field`: where the row has the truth, a number or a text with one, after "####" if it has that mark.

    Raises:
        ValueError: a row's field is missing or holds no number.
    """

    field: str = "answer"

    def __call__(self, answers: Sequence[Answer]) -> list[Verdict]:
        return [self._judge(answer, index) for index, answer in enumerate(answers)]

    def _judge(self, answer: Answer, index: int) -> Verdict:
        given = field_of(answer.row, self.field, index)
        truth = exact(given)
        if truth is None:
            raise ValueError(f"answer {index}: no number in its row's field {self.field!r}: {given!r}")
        found = number_of(answer.text)
        if found is None:
            return Verdict(0.0, None, "no number found")
        right = found == truth
        return Verdict(float(right), written(found), None if right else f"not {written(truth)}")


def number_of(text: str) -> Fraction | None:
    """The number an answer gives, by the order of `Numeric`; None if it has none."""
    text = before_end(text)
    inside = tagged(text)
    places = (number for part in (inside, text) if part is not None for number in _places(part))
    return next((number for number in places if number is not None), None)


def _places(text: str) -> Iterator[Fraction | None]:
    yield from (_stated(content) for content in reversed(boxed(text)))
    yield _stated(marked(text))
    yield _stated(said(text))
    yield next(reversed(list(numbers(text))), None)


def _stated(text: str | None) -> Fraction | None:
    """The first number after the last "=", or, if nothing is there, the first number."""
    if text is None:
        return None
    text = re.sub(r"^\s*([-\u2212])\s+(?=[$0-9.])|(?<=[=])\s*([-\u2212])\s+(?=[$0-9.])", "-", text)
    return next((n for part in (text.rpartition("=")[2], text) for n in numbers(part)), None)


def written(number: Fraction) -> str:
    """A number as people write it: 18, 0.5, 1/3."""
    if number.denominator == 1:
        return str(number.numerator)
    try:
        decimal = str(float(number))
        return decimal if Fraction(decimal) == number else str(number)
    except (OverflowError, ValueError):  # beyond floating point
        return str(number)
