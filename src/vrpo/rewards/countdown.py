r"""Countdown: an expression that uses given numbers, each exactly once, and reaches a target."""

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from vrpo.rewards.extract import before_end, boxed, exact, last_line, tagged, typed, without_tail
from vrpo.rewards.fields import field_of, has_fields
from vrpo.rewards.numeric import written
from vrpo.rewards.verdict import Answer, Verdict

_ARITHMETIC = r"[0-9]\s*\)?\s*(?:[-+*/\u00d7\u00f7]|\\times|\\div|\\cdot)\s*\(?\s*[0-9]"
_SIGNS = re.compile(r"[0-9+\-*/() ]+")
_LONGEST = 200  # characters; an expression of a few numbers is far shorter, and the parser recurses
_WRITTEN = {"\\times": "*", "\\cdot": "*", "\\div": "/"} | dict(
    zip("\u00d7\u00b7\u22c5\u00f7\u2212\u2013", "***/--", strict=True)
)
_ORNAMENT = re.compile(r"\\left|\\right|\\[()\[\],;!]|\\\\|[$`\"]")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: Fraction.__add__,
    ast.Sub: Fraction.__sub__,
    ast.Mult: Fraction.__mul__,
    ast.Div: Fraction.__truediv__,
}


@dataclass(frozen=True)
class Countdown:
    r"""1 if the expression uses all the given numbers, each exactly once, nothing else, and equals the target exactly.

    Allowed are + - * / (also × ÷ \times \div \cdot \frac), parentheses and a leading minus; the arithmetic is that of
    fractions. The expression is the last <answer> tag's last \boxed{...}, or else its last line; without a tag, the
    last box of the text or else its last line. A line with arithmetic comes before one without. What follows a "=" in
    it is dropped, true or not. Of a sentence the last piece of arithmetic is taken.

    Rows are in one of three formats: `extra_info.numbers` "[44, 19, 35]" with `reward_model.ground_truth`; `input`
    "30,100,93" with `output`; `ground_truth` [[49, 55, 53], 51].

    Raises:
        ValueError: a row is in none of the formats.
    """

    def __call__(self, answers: Sequence[Answer]) -> list[Verdict]:
        return [self._judge(answer, *problem_of(answer.row, index)) for index, answer in enumerate(answers)]

    def _judge(self, answer: Answer, numbers: tuple[int, ...], target: Fraction) -> Verdict:
        expression = expression_of(answer.text)
        if expression is None:
            return Verdict(0.0, None, "no expression found")
        try:
            value, used = value_of(expression)
        except ValueError as error:
            return Verdict(0.0, expression, str(error))
        if sorted(used) != sorted(numbers):
            return Verdict(0.0, expression, f"uses {sorted(used)}, not {sorted(numbers)}")
        right = value == target
        return Verdict(float(right), expression, None if right else f"equals {written(value)}, not {written(target)}")


def problem_of(row: Mapping[str, Any], index: int) -> tuple[tuple[int, ...], Fraction]:
    """The numbers and the target of a row, in whichever of the formats it is."""
    for names, read in _FORMATS:
        if not has_fields(row, *names):
            continue
        try:
            numbers, target = read(*(field_of(row, name, index) for name in names))
            given, reached = tuple(int(number) for number in numbers), exact(target)
        except (TypeError, ValueError):
            continue  # another kind of row with a field of that name
        if given and reached is not None:
            return given, reached
    raise ValueError(f"answer {index}: its row is no Countdown problem: needs {_WANTED}; it has {sorted(row)}")


def _pair(numbers: Any, target: Any = None) -> tuple[Sequence[Any], Any]:
    return (json.loads(numbers) if isinstance(numbers, str) else numbers), target


_FORMATS: tuple[tuple[tuple[str, ...], Callable[..., tuple[Sequence[Any], Any]]], ...] = (
    (("extra_info.numbers", "reward_model.ground_truth"), _pair),
    (("input", "output"), lambda given, target: _pair(f"[{given}]", target)),
    (("ground_truth",), lambda both: _pair(*both)),
)
_WANTED = "extra_info.numbers and reward_model.ground_truth, or input and output, or ground_truth: [numbers, target]"


def expression_of(text: str) -> str | None:
    """The expression an answer gives, as Python writes it, without what follows "="; None if there is none."""
    text = before_end(text)
    inside = tagged(text)
    place = text if inside is None else inside
    boxes = boxed(place)
    found = boxes[-1] if boxes else last_line(place, _ARITHMETIC) or last_line(place)
    if found is None:
        return None
    left = plain_expression(without_tail(found)).split("=", 1)[0].strip()
    if re.search(r"[^\W\d_]{2}", left):  # a sentence: its last piece of arithmetic
        left = (re.findall(r"[(]*[0-9][0-9+\-*/() ]*", left) or [""])[-1].strip()
    return left or None


def plain_expression(text: str) -> str:
    """LaTeX and typographical signs as Python's operators; emphasis and a full stop at the end are dropped."""
    text = _FRACTION.sub(r"((\1)/(\2))", typed(text))
    for sign, operator in _WRITTEN.items():
        text = text.replace(sign, operator)
    text = re.sub(r"(?<=[0-9)])\.$", "", " ".join(_ORNAMENT.sub(" ", text).split()))
    text = re.sub(r"(?<=[0-9)\]])\s*x\s*(?=[0-9(\[])", "*", text).replace("[", "(").replace("]", ")")
    return text[2:-2] if text.startswith("**") and text.endswith("**") else text


def value_of(expression: str) -> tuple[Fraction, list[int]]:
    """The exact value of an expression, and the numbers in it, in order. Nothing is executed.

    Raises:
        ValueError: it is not an expression of whole numbers, + - * / and parentheses, or it divides by zero.
    """
    if len(expression) > _LONGEST or not _SIGNS.fullmatch(expression):
        raise ValueError("not an expression")
    try:
        body = ast.parse(expression, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError("not an expression") from error
    used: list[int] = []
    try:
        return _value(body, used), used
    except ZeroDivisionError as error:
        raise ValueError("divides by zero") from error


def _value(node: ast.expr, used: list[int]) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        used.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_value(node.left, used), _value(node.right, used))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, used)
    raise ValueError(f"not allowed in an expression: {ast.unparse(node)[:40]}")
