r"""Answers that are mathematical expressions, compared by the library math-verify (which brings sympy)."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vrpo.rewards.extract import before_end, boxed, tagged
from vrpo.rewards.fields import field_of
from vrpo.rewards.verdict import Answer, Verdict

_LONGEST = 2000  # characters from the end, in which an expression is looked for


@dataclass(frozen=True)
class Symbolic:
    r"""1 if the expression an answer gives equals the row's, as math-verify sees it: 1/2 = \frac{1}{2} = 0.5.

    The expression is looked for in the last <answer> tag, or, without one, in the text up to the first end token: the
    last \boxed{...} in it, or else what math-verify finds.

    `field`: where the row has the truth, LaTeX without dollar signs. `seconds`: for reading an expression and for
    comparing two; longer counts as not equal. Only in the main thread (the library uses an alarm): elsewhere there is
    no limit.

    Raises:
        ValueError: a row's field is missing or is no expression; or math-verify is not installed.
    """

    field: str = "answer"
    seconds: int = 5

    def __call__(self, answers: Sequence[Answer]) -> list[Verdict]:
        library = _library()
        return [self._judge(library, answer, index) for index, answer in enumerate(answers)]

    def _judge(self, library: Any, answer: Answer, index: int) -> Verdict:
        given = str(field_of(answer.row, self.field, index))
        truth = self._parsed(library, rf"\boxed{{{given}}}")
        if not truth:
            raise ValueError(f"answer {index}: its row's field {self.field!r} is no expression: {given!r}")
        found = self._parsed(library, expression_of(answer.text))
        if not found:
            return Verdict(0.0, None, "no expression found")
        right = bool(library.verify(truth, found, timeout_seconds=self._limit()))
        return Verdict(float(right), str(found[-1]), None if right else f"not {given}")

    def _parsed(self, library: Any, text: str) -> list[Any]:
        return library.parse(text[-_LONGEST:], parsing_timeout=self._limit())

    def _limit(self) -> int | None:
        return self.seconds if threading.current_thread() is threading.main_thread() else None


def _library() -> Any:
    try:
        import math_verify
    except ImportError as error:
        raise ValueError('symbolic mathematics needs math-verify: pip install "vrpo[eval]"') from error
    return math_verify


def expression_of(text: str) -> str:
    """Where an answer's expression is: a box with it, a tag's contents, or the text."""
    text = before_end(text)
    inside = tagged(text)
    place = text if inside is None else inside
    boxes = boxed(place)
    return rf"\boxed{{{boxes[-1]}}}" if boxes else place
