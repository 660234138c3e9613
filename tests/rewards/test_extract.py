r"""Where the answer is in a text, and numbers as people write them."""

from fractions import Fraction

import pytest

from tests.loops import each
from vrpo.rewards.extract import before_end, boxed, exact, fenced, last_line, marked, numbers, plain, said, tagged
from vrpo.rewards.fields import field_of, has_fields


def test_what_follows_an_end_token_was_never_meant():
    """Kills: end tokens removed one by one, so that what stands after the first is read."""
    assert before_end("5<|eot_id|><|endoftext|>6") == "5"
    assert before_end("5</s>6") == "5"
    assert before_end("a <b> | c") == "a <b> | c"


def test_boxes():
    """Kills: braces not balanced; an escaped brace counted; an unclosed box read to the end of the text."""
    assert boxed(r"\boxed{\frac{1}{2}} and \boxed{ 3 }") == [r"\frac{1}{2}", "3"]
    assert boxed(r"\boxed{\{1, 2\}} }") == [r"\{1, 2\}"]
    assert boxed("\\boxed{36>\nmore") == ["36"]
    assert boxed("boxed{27} and \\fbox{2}") == ["27"]
    assert boxed("no box") == []


def test_tags():
    """Kills: the first tag instead of the last; an empty last tag; an unclosed tag not read."""
    assert tagged("<answer>1</answer> x <answer> 2 </answer> y") == "2"
    assert tagged("<answer>1</answer><answer></answer>") == "1"
    assert tagged("<answer>\n3") == "3"
    assert tagged("<answer>4</answer}") == "4"
    assert tagged("<answer>5\n<answer>6</answer>") == "6"
    assert tagged("none") is None


def test_other_places():
    assert marked("a #### 5\n#### 6 \nb") == "6"
    assert said("The answer is 5. Or rather, the Answer is: 6 eggs\nnext") == "6 eggs"
    assert said("the final answer is:\n7") == "7"
    assert said("an answer") is None
    assert last_line("one\ntwo\n</answer>\n---\n") == "two"
    assert last_line("</,\n") is None
    assert fenced("x\n```python\na = 1\n```\ny\n```\nb = 2") == ["a = 1\n", "b = 2"]


@each(
    ("text", "expected"),
    [
        ("1,234.50 and 7", ["2469/2", "7"]),
        ("$1,000", ["1000"]),
        (r"\$1{,}000\text{ dollars}", ["1000"]),
        (r"12\,000", ["12000"]),
        (r"60\%", ["60"]),
        ("3/4 of 1/0", ["3/4"]),
        (r"\frac{3}{4}, \dfrac{1}{2}", ["3/4", "1/2"]),
        (r"\frac12, 5\frac{1}{2}, -\dfrac 3 4 and \frac{1}{2}\frac{1}{3}", ["1/2", "11/2", "-3/4", "1/2", "1/3"]),
        ("2 1/2 cups, 2 3/2 and 2 1/0", ["5/2", "2", "3/2", "2"]),
        ("1.5e3, 2E-3 and 7 eggs", ["1500", "1/500", "7"]),
        (r"1.5 \times 10^3 and 2 \cdot 10^{-2} and 3 * 10", ["1500", "1/50", "3", "10"]),
        (".5 and 0.50", ["1/2", "1/2"]),
        ("it is -3, or \u22124, or -$5, or \u20136", ["-3", "-4", "-5", "-6"]),
        ("pages 5\u20137", ["5", "7"]),
        ("16 - 7 and 16-7 and x-2 and (1)-2", ["16", "7", "16", "7", "2", "1", "2"]),
        ("- 5 eggs", ["5"]),
        ("10,20", ["10", "20"]),
        ("1,234,5", ["1234", "5"]),
        ("none", []),
        ("__73__, _-73_, -__73__, -**73**, x_7", ["73", "-73", "-73", "-73", "7"]),
        ("negative 3, minus 3, it is minus 3, 10 minus 3", ["-3", "3", "-3", "10", "3"]),
        ("1_000, 1'000, 1\u202f000, 1\u00a0000 and 1_00", ["1000", "1000", "1000", "1000", "1", "0"]),
        (
            "\u0663\u0664, \uff11\uff12, \u00bd, 1\u00bd, 5 \u00d7 10\u00b3, 10\u207b\u00b2",
            ["34", "12", "1/2", "3/2", "5000", "1/100"],
        ),
        ("2^10, 10^{-3}, 99^999 and 1e100", [str(2**10), "1/1000", "99", str(10**100)]),
        (r"\frac{-1}{2}, \frac{1.5}{2}", ["-1/2", "3/4"]),
        ("...5 and 1.2.3", ["5", "1.2", "3"]),
        ("0." + "1" * 40 + "2", ["0." + "1" * 40 + "2"]),
        ("12345678901234567890123456789012345", ["12345678901234567890123456789012345"]),
    ],
)
def test_numbers(text, expected):
    r"""Kills: thousands read as decimals or split; a subtraction read as a sign; a division by zero; rounding; \frac12
    read as 12, 2 1/2 as 2, and 1.5e3 as 3."""
    assert list(numbers(text)) == [Fraction(one) for one in expected]


def test_digits_without_end_do_not_crash():
    """Kills: int() of more digits than Python converts (a ValueError, in the middle of a batch)."""
    assert list(numbers("1" * 10_000)) == []
    assert list(numbers("1" + ",111" * 10_000))


def test_truths():
    assert exact("3 + 4 = <<3+4=7>>7\n#### 1,007") == 1007
    assert exact(18.0) == 18
    assert exact(0.1) == Fraction(1, 10)
    assert exact("1e3") == 1000
    assert exact("none") is exact(None) is exact(True) is exact([1]) is None


def test_plain():
    assert plain(r"\text{(B)} \mathrm{cm}").split() == ["(B)", "cm"]


def test_fields_are_found_or_named():
    """Kills: a missing number that becomes a default; an error that does not say which row and field."""
    row = {"a": {"b": 1}, "n": None, "z": 0}
    assert field_of(row, "a.b", 3) == 1
    assert field_of(row, "z", 3) == 0
    assert has_fields(row, "a", "a.b")
    assert not has_fields(row, "a", "n")
    for name in ("a.c", "n", "z.x", "q"):
        with pytest.raises(ValueError, match=rf"answer 3: .*'{name}'.*\['a', 'n', 'z'\]"):
            field_of(row, name, 3)
