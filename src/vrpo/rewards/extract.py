r"""Where the answer is in a text, and numbers in it.

What lives here: the places where models put answers, \boxed{...}, <answer>...</answer>, "#### ...", "the answer is
...", the last line, code fences, and reading numbers as people write them. What does not: which place counts for which
task, in which order (numeric.py, mathematics.py, choice.py, countdown.py, sudoku.py, code.py), and whether it is right.
"""

import math
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

_END = re.compile(r"<\|(?:eot_id|endoftext|im_end|end_of_text|eom_id|end)\|>|</s>")
_LONGEST_BOX, _MOST_BOXES = 1000, 20  # more is no answer but a repetition, and would take the square of its length
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BOX = re.compile(r"\\?\b(?:f?boxed)\s*\{")
_TAG = re.compile(r"<answer>(.*?)(?=</answer|<answer>|\Z)", re.DOTALL)
_MARKED = re.compile(r"####[ \t]*([^\n]+)")
_SAID = re.compile(r"answer\s+is\s*:?|answer\s*:", re.IGNORECASE)
_FENCE = re.compile(r"^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_FRACTION = re.compile(
    r"(?P<before>(?<=[0-9}])\s?)?\\[dt]?frac\s?(?:\{([0-9]{1,30})\}|([0-9]))\s?(?:\{([0-9]{1,30})\}|([0-9]))"
)
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)}])(?<![0-9]\s)[-\u2212\u2013](?=[$€£0-9.]))?[$€£]?\s?"
    r"(?:(?P<mixed>[0-9]{1,30})\s(?P<top>[0-9]{1,30})/(?P<bottom>[0-9]{1,30})"
    r"|(?P<whole>[0-9]{1,3}(?:,[0-9]{3}){1,9}|[0-9]{1,30})(?P<point>\.[0-9]{1,30})?"
    r"(?:[eE](?P<e>[+-]?[0-9]{1,2})(?!\w)|\s?(?:\\times|\\cdot|[\u00d7*])\s?10\^\{?(?P<ten>-?[0-9]{1,2})(?![0-9])\}?"
    r"|/(?P<over>[0-9]{1,30}))?"
    r"|(?P<only>\.[0-9]{1,30}))"
)


def before_end(text: str) -> str:
    """Up to the first literal end token (<|eot_id|>, <|endoftext|>, </s>, ...): what follows it was never meant."""
    return _END.split(text, maxsplit=1)[0]


def boxed(text: str) -> list[str]:
    r"""The contents of the last 20 \boxed{...}, in order; one that is never closed ends with its line, or at "<"."""
    return [_braced(text, match.end()) for match in list(_BOX.finditer(text))[-_MOST_BOXES:]]


def _braced(text: str, start: int) -> str:
    depth = 1
    for token in _BRACE.finditer(text, start, min(len(text), start + _LONGEST_BOX)):
        depth += (token[0] == "{") - (token[0] == "}")
        if depth == 0:
            return text[start : token.start()].strip()
    return re.split(r"[\n<>]", text[start : start + _LONGEST_BOX], maxsplit=1)[0].strip()


def tagged(text: str) -> str | None:
    """What stands in the last <answer>...</answer> that holds anything; to the end of the text if never closed."""
    found = [part.strip() for part in _TAG.findall(text)]
    return next((part for part in reversed(found) if part), None)


def marked(text: str) -> str | None:
    """The line after the last "####"."""
    found = _MARKED.findall(text)
    return found[-1].strip() if found else None


def said(text: str) -> str | None:
    """The rest of the line after the last "answer is", or "answer:"; the next line if nothing follows on it."""
    places = list(_SAID.finditer(text))
    if not places:
        return None
    rest = text[places[-1].end() :].strip()
    return rest.split("\n", 1)[0] or None


def last_line(text: str) -> str | None:
    """The last line with a letter or digit that is no tag."""
    lines = [line.strip() for line in text.splitlines()]
    return next((line for line in reversed(lines) if re.search(r"\w", re.sub(r"<[^<>]*>?", "", line))), None)


def fenced(text: str) -> list[str]:
    """The contents of the text's code fences; the last one need not be closed."""
    return _FENCE.findall(text)


def plain(text: str) -> str:
    r"""LaTeX around numbers removed: \text{...} and its kin keep their contents, \$ \% \, \! {,} become plain."""
    text = re.sub(r"\\(?:text|mathrm|mathbf|textbf|operatorname)\s*\{([^{}]*)\}", r" \1 ", text)
    text = text.replace("{,}", ",").replace("\\!", "").replace("\\$", "$").replace("\\%", "%")
    return re.sub(r"(?<=[0-9])\\,(?=[0-9])", "", text)


def numbers(text: str) -> Iterator[Fraction]:
    r"""Every number in a text, in order, exactly: 1,234.50, -3, $5, 40 %, 3/4, \frac{3}{4}, 2 1/2, 1.5e3,
    2 \times 10^3; a percent sign is dropped.

    A minus counts as a sign if nothing is in front that could be subtracted from.
    """
    for match in _NUMBER.finditer(_FRACTION.sub(_slashed, plain(text))):
        sign = -1 if match["sign"] else 1
        if match["mixed"] is None:
            yield sign * _magnitude(match)
        else:
            yield from (sign * number for number in _mixed(*(int(match[name]) for name in ("mixed", "top", "bottom"))))


def _slashed(match: re.Match[str]) -> str:
    """A LaTeX fraction of digits as 3/4, apart from a number or a fraction before it."""
    _, top, top_digit, bottom, bottom_digit = match.groups()
    return ("" if match["before"] is None else " ") + f"{top or top_digit}/{bottom or bottom_digit}"


def _mixed(whole: int, top: int, bottom: int) -> tuple[Fraction, ...]:
    """2 1/2 is one number; 2 3/2 are two."""
    if top < bottom:
        return (whole + Fraction(top, bottom),)
    return Fraction(whole), Fraction(top, bottom or 1)


def _magnitude(match: re.Match[str]) -> Fraction:
    digits = (match["whole"] or "0").replace(",", "") + (match["point"] or match["only"] or "")
    return Fraction(digits) * Fraction(10) ** int(match["e"] or match["ten"] or 0) / (int(match["over"] or 1) or 1)


def exact(value: Any) -> Fraction | None:
    """A number from a row's field: a number, or a text with one, the one after "####" if there is that mark."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str):
        return next(numbers(marked(value) or value), None)
    return None if isinstance(value, float) and not math.isfinite(value) else Fraction(str(value))
