r"""Answers that are mathematical expressions, compared by the library math-verify (which brings sympy)."""

import logging
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vrpo.rewards.extract import before_end, boxed, latex, negated, tagged, without_tail
from vrpo.rewards.fields import field_of
from vrpo.rewards.verdict import Answer, Verdict

_LONGEST = 100_000  # characters from the end, in which an expression is looked for
_SPACING = re.compile(r"\\left(?![a-z])|\\right(?![a-z])|\\[,;!: ]|[\s$~]")
_DOTS = re.compile(
    r"\\(?:[cl]?dots[bcimo]?)(?![a-z])|(?<=[,+\-])(?:\.{3,}|…)|(?<=,)(?=,)"
)  # the library drops dots between two commas
_BASED = re.compile(r"(?<![\w\\])([0-9][0-9A-Za-z]*)_\{?\s*([0-9]{1,2})\s*\}?")
_NAMED_BASE = re.compile(r"_\{?\s*\\(?:text|mathrm)\{\s*(?:base\s*)?(\w+)\s*\}\s*\}?")  # which the library drops
_BASE_IN_BRACKETS = re.compile(r"_\{?\s*\(\s*([0-9]{1,2})\s*\)\s*\}?")
_STOP = re.compile(r"(?<![.,\\])[.,;]\s*$")
_REPEATING = re.compile(r"(?<![\w.}])([0-9]*)\.([0-9]{0,30})\\(?:overline|bar)\s*\{([0-9]{1,30})\}")
_PERCENT = re.compile(r"\\?%|\\percent(?![a-z])")
_TIMES_TEN = re.compile(r"(?<![\w.\\])([0-9]+(?:\.[0-9]+)?)[eE]([+-]?[0-9]{1,4})(?!\w|\.\d)")
_READINGS = [(_PERCENT, ""), (_TIMES_TEN, r"\1 \\cdot 10^{\2}")]
for _word, _zeros in {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}.items():
    _said = rf"(?:\\(?:text|mathrm)\{{\s*{_word}s?\s*\}}|{_word}s?\b)"
    _number = rf"(?<![\w.])([0-9]+(?:\.[0-9]+)?)(?:\\[,;: ]|[\s~])*{_said}"
    _READINGS.append((re.compile(_number), rf"\1 \\cdot 10^{{{_zeros}}}"))
_DEGREES = re.compile(
    r"(\\(?:sin|cos|tan|cot|sec|csc)\s*(?:\\left)?[({]?\s*)([0-9]+(?:\.[0-9]+)?)\s*(?:\^\{\s*\\circ\s*\}|\^\\circ|°)"
)
_SIGNS = {
    "\\varnothing": "\\emptyset",
    "\u2205": "\\emptyset",
    "\u2212": "-",
    "\u00b7": "\\cdot ",
    "\u00d7": "\\times ",
}
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}


_STUCK = re.compile(  # what may stand at a number, which the library then reads as another one
    r"</?answer>|<\|\w+\|>|\\boxed\{\s*\}|(?<=[0-9])(?=[\u3000-\u9fff\uff00-\uffef\U0001f000-\U0001ffff])"
    r"|^[-*_=#.~ \t]{3,}$",
    re.MULTILINE,
)


class _TooLongError(BaseException):
    """Time is up: nothing that the library catches."""


@dataclass(frozen=True)
class Symbolic:
    r"""1 if the expression an answer gives equals the row's, as math-verify sees it: 1/2 = \frac{1}{2} = 0.5.

    What it takes for equal must be so exactly (equality.py), because it rounds: 3/10^17 is not 1/10^17. Numerals with
    bases must agree in both, 2516_9 is not 2516_8, and may leave the base out. Sequences with dots must have the same
    terms.

    The expression is looked for in the last <answer> tag, or, without one, in the text up to the first end token: the
    last \boxed{...} in it, or else what math-verify finds.

    `field`: where the row has the truth, LaTeX without dollar signs. `seconds`: for reading an expression and comparing
    it; longer counts as not equal, and the reason says so. Only in the main thread (it takes an alarm): elsewhere there
    is no limit.

    Raises:
        ValueError: a row's field is missing or is no expression; or math-verify is not installed.
    """

    field: str = "answer"
    seconds: int = 5

    def __post_init__(self) -> None:
        if not 1 <= self.seconds <= 3600:
            raise ValueError(f"seconds must be from 1 to 3600, not {self.seconds}")

    def __call__(self, answers: Sequence[Answer]) -> list[Verdict]:
        library = _library()
        return [self._judge(library, answer, index) for index, answer in enumerate(answers)]

    def _judge(self, library: Any, answer: Answer, index: int) -> Verdict:
        given = str(field_of(answer.row, self.field, index))
        truth: list[Any] = []
        try:
            with _at_most(self.seconds):
                texts = rf"\boxed{{{given}}}", expression_of(answer.text)[-_LONGEST:]
                truth = _parsed(library, texts[0])
                if not truth:
                    raise ValueError(f"answer {index}: its row's field {self.field!r} is no expression: {given!r}")
                found = _parsed(library, texts[1])
                if not found:
                    return Verdict(0.0, None, "no expression found")
                right = _equal(library, truth, found) or any(
                    _equal(library, *both) for both in _other_readings(library, *texts)
                )
        except _TooLongError:
            if not truth:
                raise ValueError(f"answer {index}: its row's {given!r} takes over {self.seconds} s to read") from None
            return Verdict(0.0, None, f"reading and comparing it took more than {self.seconds} seconds")
        return Verdict(float(right), str(found[-1]), None if right else f"not {given}")


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    """
    Raises:
        _TooLongError: the block takes longer, and this is the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _library() -> Any:
    try:
        import math_verify
    except ImportError as error:
        raise ValueError('symbolic mathematics needs math-verify: pip install "vrpo[eval]"') from error
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # its warnings are that its own limit of time is off
    return math_verify


def _parsed(library: Any, text: str) -> list[Any]:
    """What the library finds: an expression if it can read it, then its text."""
    text = _DEGREES.sub(r"\1\\frac{\2\\pi}{180}", _typed(text))
    text = _NAMED_BASE.sub(lambda match: f"_{{{_BASES.get(match[1], match[1])}}}", text)
    text = _REPEATING.sub(_as_fraction, _BASE_IN_BRACKETS.sub(r"_{\1}", text))
    found: list[Any] = library.parse(text, parsing_timeout=None)
    return found


def _other_readings(library: Any, truth: str, found: str) -> Iterator[list[list[Any]]]:
    r"""What one of the two may mean besides: 12.5\% is 12.5 too, 5 million is 5000000, and 1e-7 is not 1 e - 7."""
    for pattern, written in _READINGS:
        if bool(pattern.search(truth)) + bool(pattern.search(found)) == 1:
            other = [
                pattern.sub(written if "\\boxed" in text else _in_dollars(written), text) for text in (truth, found)
            ]
            both = [_parsed(library, text) for text in other]
            if all(both):
                yield both


def _in_dollars(written: str) -> str:
    return f"${written}$"


def _typed(text: str) -> str:
    """As LaTeX writes it: \u00bd, powers, and signs of other names."""
    for sign, written in _SIGNS.items():
        text = text.replace(sign, written)
    return latex(text)


def _as_fraction(match: re.Match[str]) -> str:
    r"""0.1\overline{6} is 15/90."""
    start, repeated = match[1] + match[2], match[3]
    below = (10 ** len(repeated) - 1) * 10 ** len(match[2])
    return rf"\frac{{{int(start + repeated) - int(start or 0)}}}{{{below}}}"


def _equal(library: Any, truth: list[Any], found: list[Any]) -> bool:
    mine, theirs = (_SPACING.sub("", str(each[-1])) for each in (truth, found))
    if mine == theirs:
        return True
    if _DOTS.search(mine) or _DOTS.search(theirs):
        return _equal_terms(library, mine, theirs)
    bases, others = _BASED.findall(mine), _BASED.findall(theirs)
    if bases and others and bases != others:
        return False
    if not library.verify(truth, found, timeout_seconds=None):
        return False
    from vrpo.rewards.equality import same

    return same(truth[0], found[0])


def _equal_terms(library: Any, mine: str, theirs: str) -> bool:
    """Of sequences with dots: term by term."""
    one, other = (_DOTS.sub(r"\\ldots", text).split(",") for text in (mine, theirs))
    return len(one) == len(other) and all(
        a == b or (r"\ldots" not in a + b and _equal(library, *(_parsed(library, rf"\boxed{{{x}}}") for x in (a, b))))
        for a, b in zip(one, other, strict=True)
    )


def expression_of(text: str) -> str:
    """Where an answer's expression is: a box with it, a tag's contents, or the text."""
    text = before_end(text)
    inside = tagged(text)
    place = text if inside is None else inside
    boxes = boxed(place)
    if boxes:
        return rf"\boxed{{{_STOP.sub('', boxes[-1])}}}"
    return negated(without_tail(_STUCK.sub(" ", place)))
