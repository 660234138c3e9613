r"""Countdown: what an expression is, what it uses and what it equals; and the rows of three formats."""

import gzip
import itertools
import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.loops import each
from vrpo.rewards.countdown import Countdown, expression_of, problem_of, value_of
from vrpo.rewards.verdict import Answer, Judge

ROW = {"ground_truth": [[44, 19, 35], 98]}


def judge(text, row=ROW):
    return Countdown()([Answer("q", text, row)])[0]


@each(
    "text",
    [
        "<answer>44+19+35</answer>",
        "<answer>\n\\boxed{44 + 19 + 35}\n</answer><|eot_id|>",
        "no: \\boxed{1}\nyes: \\boxed{44 + (19 + 35) = 98}",
        "First 44 + 19 = 63.\n35 + 44 + 19 = 98",
        "The expression is 44 + 19 + 35.",
        "<answer>$44 + 19 + 35$</answer>",
        "<answer>\\left(44 + 19\\right) + 35</answer>",
        "<answer>-(-44 - 19) + 35</answer>",
        "**44 + 19 + 35**",
        "__44 + 19 + 35__",
        "<answer>[44 + 19] + \uff13\uff15.</answer>",
    ],
)
def test_right_answers(text):
    """Kills: text after "=" kept; the first box; LaTeX not read; end tokens not cut."""
    verdict = judge(text)
    assert verdict.reward == 1, verdict
    assert verdict.reason is None


@each(
    ("text", "reason"),
    [
        ("<answer>98</answer>", "uses [98], not [19, 35, 44]"),
        ("<answer>44 + 54</answer>", "uses [44, 54], not [19, 35, 44]"),
        ("<answer>44 + 19 + 35 + 19 - 19</answer>", "uses [19, 19, 19, 35, 44], not [19, 35, 44]"),
        ("<answer>44 + 35 = 98</answer>", "uses [35, 44], not [19, 35, 44]"),
        ("<answer>44 + 19 - 35 = 98</answer>", "equals 28, not 98"),
        ("<answer>44 ** 19 + 35</answer>", "not allowed in an expression: 44 ** 19"),
        ("<answer>44 // 19 + 35</answer>", "not allowed in an expression: 44 // 19"),
        ("<answer>44 / (19 - 19) + 35</answer>", "divides by zero"),
        ("<answer>44(19)35</answer>", "not an expression"),
        ("<answer>4419.5 + 35</answer>", "not an expression"),
        ("<answer>__import__('os')</answer>", "no expression found"),
        ("<answer>" + "(" * 150 + "1</answer>", "not an expression"),
        ("<answer>" + "1+" * 500 + "1</answer>", "not an expression"),
        ("\\boxed{...}", "not an expression"),
        ("", "no expression found"),
    ],
)
def test_wrong_answers(text, reason):
    """Kills: a number used twice, left out or invented; the target itself as expression; powers; a claimed "= 98"
    believed; eval."""
    verdict = judge(text)
    assert verdict.reward == 0
    assert verdict.reason == reason


@each(
    ("expression", "expected"),
    [
        ("8 \\div 3 \\times 3", 8),
        ("8 \u00f7 3 \u00d7 3", 8),
        ("\\frac{8}{3} \\cdot 3", 8),
        ("8 / (3 \u2212 8 / 3)", 24),
    ],
)
def test_arithmetic_is_exact(expression, expected):
    """Kills: floating point (8 / (3 - 8 / 3) is 24.000000000000004) or rounded division."""
    numbers = sorted(value_of(expression_of(f"<answer>{expression}</answer>"))[1])
    assert judge(f"<answer>{expression}</answer>", {"ground_truth": [numbers, expected]}).reward == 1
    assert judge(f"<answer>{expression}</answer>", {"ground_truth": [numbers, expected + 1]}).reward == 0


def test_all_numbers_must_be_used():
    """Kills: "each at most once" for "each exactly once"."""
    assert judge("<answer>55 - 4</answer>", {"ground_truth": [[55, 4, 7], 51]}).reward == 0
    assert judge("<answer>4 + 4</answer>", {"ground_truth": [[4, 4], 8]}).reward == 1


EXPRESSIONS = st.recursive(
    st.integers(1, 99).map(str),
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda parts: f"({' '.join(parts)})"),
    max_leaves=5,
)


@given(EXPRESSIONS)
def test_values_agree_with_python(expression):
    """Against Python's own reading of the same text, its numbers made fractions."""
    exact = "".join(
        f"Fraction({''.join(part)})" if digit else "".join(part)
        for digit, part in itertools.groupby(expression, str.isdigit)
    )
    try:
        expected = eval(exact, {"Fraction": Fraction})
    except ZeroDivisionError:
        with pytest.raises(ValueError, match="zero"):
            value_of(expression)
        return
    value, used = value_of(expression)
    assert value == expected
    assert used == [int("".join(part)) for digit, part in itertools.groupby(expression, str.isdigit) if digit]


@each(
    "row",
    [
        {"extra_info": {"numbers": "[44, 19, 35]"}, "reward_model": {"ground_truth": "98"}},
        {"extra_info": {"numbers": [44, 19, 35]}, "reward_model": {"ground_truth": 98}},
        {"input": "44,19,35", "output": "98"},
        ROW,
    ],
)
def test_formats(row):
    assert problem_of(row, 0) == ((44, 19, 35), 98)
    assert isinstance(Countdown(), Judge)


@each("row", [{}, {"ground_truth": 18.0}, {"ground_truth": "4321"}, {"input": "a,b", "output": "3"}, {"input": "1,2"}])
def test_other_rows_are_errors(row):
    with pytest.raises(ValueError, match=r"answer 4: its row is no Countdown problem: .*\[numbers, target\]"):
        problem_of(row, 4)


def test_real_rows(vrpo_data):
    lines = gzip.decompress(vrpo_data("countdown/train.jsonl.gz").read_bytes()).split(b"\n")
    rows = [json.loads(line) for line in lines if line.strip()]
    rows += [json.loads(line) for line in vrpo_data("countdown/test.jsonl").read_text().split("\n") if line.strip()]
    assert len(rows) == 20_256
    assert {len(problem_of(row, index)[0]) for index, row in enumerate(rows)} == {3, 4}
