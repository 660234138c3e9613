r"""Where the answer is in a text, and numbers in it.

What lives here: the places where models put answers, \boxed{...}, <answer>...</answer>, "#### ...", "the answer is
...", the last line, code fences, and reading numbers as people write them. What does not: which place counts for which
task, in which order (numeric.py, mathematics.py, choice.py, countdown.py, sudoku.py, code.py), and whether it is right.
"""

import math
import re
import unicodedata
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

_END = re.compile(r"<\|(?:eot_id|endoftext|im_end|end_of_text|eom_id|end)\|>|</s>")
_LONGEST_BOX, _MOST_BOXES, _LOOKED_AT = (
    1000,
    20,
    1000,
)  # more is no answer but a repetition, and would take the square of its length
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BOX = re.compile(r"\\?\b(?:f?boxed)\s*\{")
_TAG = re.compile(r"<answer>(.*?)(?=</answer|<answer>|\Z)", re.DOTALL)
_MARKED = re.compile(r"####[ \t]*([^\n]+)")
_SAID = re.compile(r"answer\s+is\s*:?|answer\s*:", re.IGNORECASE)
_FENCE = re.compile(
    r"^(?P<indent>[ \t]*|[^\n`]*(?=```(?:python|py)\b))(?P<mark>`{3,}|~{3,})[^\n`]*\n"
    r"(?P<code>.*?)(?:^[ \t]*(?P=mark)|(?P=mark)[ \t]*$|\Z)",
    re.DOTALL | re.MULTILINE | re.IGNORECASE,
)
_FRACTION = re.compile(
    r"(?P<before>(?<=[0-9}])\s?)?\\[dtc]?frac\s?(?:\{\s*([-\u2212]?[0-9]{1,30}(?:\.[0-9]{1,30})?)\s*\}|([0-9]))\s?"
    r"(?:\{\s*([0-9]{1,30})\s*\}|([0-9]))"
)
_NUMBER = re.compile(  # one of more than 400 digits is none, not its beginning
    r"(?<![0-9])(?P<sign>(?<![\w)}])(?<![0-9]\s)[-\u2212\u2013](?=[$€£0-9.]))?[$€£]?\s?"
    r"(?:(?P<mixed>[0-9]{1,30})\s(?P<top>[0-9]{1,30})/(?P<bottom>[0-9]{1,30})"
    r"|(?P<whole>[0-9]{1,3}(?:,[0-9]{3}){1,99}(?!,?[0-9]{3})(?![0-9])|[0-9]{1,400}+(?![0-9]))(?P<point>\.[0-9]{1,400}+(?![0-9]))?"
    r"(?:[eE](?P<e>[+-]?[0-9]{1,3})(?!\w)|\s?(?:\\times|\\cdot|[\u00d7*])\s?10\^\{?(?P<ten>-?[0-9]{1,3})(?![0-9])\}?"
    r"|\^\{?(?P<power>-?[0-9]{1,3})(?![0-9])\}?|/(?P<over>[0-9]{1,400}+(?![0-9])))?"
    r"|(?<!\.)(?P<only>\.[0-9]{1,400}+(?![0-9])))"
)
_LONGEST_POWER = 1000  # digits
_EMPHASIS = re.compile(
    r"(?<![^\W_])_{1,3}(?=[^\s_])|(?<=[^\s_])_{1,3}(?![^\W_]|\{)|(?<=[-\u2212\u2013])\*{1,3}(?=[0-9$.])"
)
_GROUPS = re.compile(r"(?<=[0-9])(?:\\,|['\u2019_\u00a0\u2009\u202f])(?=[0-9]{3}(?![0-9]))|(?<=[0-9])\\,(?=[0-9])")
_UNDERLINED = re.compile(r"(?<![^\s(*])(_{1,3})(?=[^\s_])([^_\n]+?)\1(?![\w{])")
_SMALL = re.compile(r"[\u00bc-\u00be\u2150-\u215e]")  # fractions that are one character
_POWER = re.compile(r"[²³¹⁰⁴-⁹⁻]+")
_NEGATIVE = re.compile(
    r"\bnegative\s+(?=[$€£]?\.?[0-9])|(?:^|(?<=[:=(])|(?<=\bis))\s*minus\s+(?=[$€£]?\.?[0-9])", re.IGNORECASE
)


def before_end(text: str) -> str:
    r"""Up to the first literal end token (<|eot_id|>, <|endoftext|>, </s>, ...): what follows it was never meant; with
    every line's end as \n."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _END.split(text, maxsplit=1)[0]


def boxed(text: str) -> list[str]:
    r"""The contents of the last 20 \boxed{...} that hold anything, in order; one that is never closed ends with its
    line, or at "<". A box within another one is a part of it."""
    found, end = [], 0
    for match in list(_BOX.finditer(text))[-_LOOKED_AT:]:
        if match.start() >= end:
            content = _braced(text, match.end())
            end = match.end() + len(content)
            found.append(_BOX.sub("{", content))
    return [content for content in found if content.strip("{} ")][-_MOST_BOXES:]


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


def last_line(text: str, pattern: str = r"\w") -> str | None:
    """The last line with a letter or digit that is no tag, or with what else the pattern finds."""
    lines = [line.strip() for line in text.splitlines()]
    return next((line for line in reversed(lines) if re.search(pattern, re.sub(r"<[^<>]*>?", "", line))), None)


def without_tail(text: str) -> str:
    """Without the runs of one sign in which a text may end."""
    text = text.rstrip()
    while text and not text[-1].isalnum() and text[-1] not in "$)]}" and text.endswith(4 * text[-1]):
        text = text.rstrip(text[-1]).rstrip()
    return text


def fenced(text: str) -> list[str]:
    """The contents of the text's code fences, without the indentation of the fence; the last one need not be closed."""
    found = []
    for match in _FENCE.finditer(text):
        indent = len(match["indent"]) if match["indent"].isspace() else 0
        found.append(
            re.sub(rf"^[ \t]{{1,{indent}}}", "", match["code"], flags=re.MULTILINE) if indent else match["code"]
        )
    return found


def plain(text: str) -> str:
    r"""Numbers as a keyboard has them. LaTeX: \text{...} and its kin keep their contents, \$ \% \, \! {,} become plain.
    Marks between thousands go, "negative 3" is -3, and characters are `typed`."""
    text = re.sub(r"\\(?:text|mathrm|mathbf|textbf|operatorname)\s*\{([^{}]*)\}", r" \1 ", text)
    text = text.replace("{,}", ",").replace("\\!", "").replace("\\$", "$").replace("\\%", "%")
    return _NEGATIVE.sub(" -", typed(_GROUPS.sub("", text)))


def typed(text: str) -> str:
    """Markdown's emphasis dropped; wide letters, other alphabets' digits, small fractions and powers as one types
    them."""
    text = _EMPHASIS.sub("", text)
    return text if text.isascii() else _POWER.sub(r"^\g<0>", text).translate(_KEYBOARD)


def negated(text: str) -> str:
    """Without underscores around a word or number, and with signs for the words "negative" and "minus"."""
    return _NEGATIVE.sub(" -", _UNDERLINED.sub(r"\2", text))


def latex(text: str) -> str:
    r"""\u00bd as \frac{1}{2}, and x\u00b2 as x^{2}."""
    if text.isascii():
        return text
    text = _SMALL.sub(_as_latex, text)
    return _POWER.sub(lambda match: f"^{{{match[0].translate(_KEYBOARD)}}}", text)


def _as_latex(match: re.Match[str]) -> str:
    top, bottom = unicodedata.normalize("NFKD", match[0]).split("\u2044")
    return rf"\frac{{{top}}}{{{bottom}}}"


class _Keyboard(dict[int, str]):
    """What one types for a character that no keyboard has, kept once it was looked up."""

    def __missing__(self, code: int) -> str:
        written = chr(code)
        kind = unicodedata.decomposition(written).partition(" ")[0]
        if kind in ("<super>", "<wide>"):
            found = unicodedata.normalize("NFKC", written).replace("\u2212", "-")
        elif kind == "<fraction>":
            found = " " + unicodedata.normalize("NFKC", written).replace("\u2044", "/")
        else:
            found = str(unicodedata.digit(written)) if written.isdecimal() else written
        self[code] = found
        return found


_KEYBOARD = _Keyboard()


def numbers(text: str) -> Iterator[Fraction]:
    r"""Every number in a text, in order, exactly: 1,234.50, -3, $5, 40 %, 3/4, \frac{3}{4}, 2 1/2, 1.5e3,
    2 \times 10^3; a percent sign is dropped.

    A minus counts as a sign if nothing is in front that could be subtracted from.
    """
    for match in _NUMBER.finditer(_FRACTION.sub(_slashed, plain(text))):
        sign = -1 if match["sign"] else 1
        try:
            if match["mixed"] is None:
                yield sign * _magnitude(match)
            else:
                yield from (sign * one for one in _mixed(*(int(match[name]) for name in ("mixed", "top", "bottom"))))
        except ZeroDivisionError:
            continue  # 1/0 is no number


def _slashed(match: re.Match[str]) -> str:
    """A LaTeX fraction of digits as 3/4, apart from a number or a fraction before it."""
    _, top, top_digit, bottom, bottom_digit = match.groups()
    return ("" if match["before"] is None else " ") + f"{top or top_digit}/{bottom or bottom_digit}"


def _mixed(whole: int, top: int, bottom: int) -> tuple[Fraction, ...]:
    """2 1/2 is one number; 2 3/2 are two."""
    if top < bottom:
        return (whole + Fraction(top, bottom),)
    return (Fraction(whole), Fraction(top, bottom)) if bottom else (Fraction(whole),)


def _magnitude(match: re.Match[str]) -> Fraction:
    digits = (match["whole"] or "0").replace(",", "") + (match["point"] or match["only"] or "")
    power = int(match["power"] or 1)
    if len(digits) * abs(power) > _LONGEST_POWER:
        return Fraction(digits)
    return Fraction(digits) ** power * Fraction(10) ** int(match["e"] or match["ten"] or 0) / int(match["over"] or 1)


def exact(value: Any) -> Fraction | None:
    """A number from a row's field: a number, or a text with one, the one after "####" if there is that mark."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str):
        return next(numbers(marked(value) or value), None)
    return None if isinstance(value, float) and not math.isfinite(value) else Fraction(str(value))
