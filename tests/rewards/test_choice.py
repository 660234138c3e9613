"""Letters: where they are looked for, and what is none."""

import pytest

from tests.loops import each
from vrpo.rewards.choice import Choice, letter_of
from vrpo.rewards.verdict import Answer, Judge


@each(
    ("text", "expected"),
    [
        ("B", "B"),
        ("B. because A is wrong", "B"),
        ("(B) because", "B"),
        ("**C**", "C"),
        ("__C__", "C"),
        ("The answer is _C_.", "C"),
        ("\uff23", "C"),
        ("C, because A is wrong", "C"),
        ("A man walks. The answer is (C).", "C"),
        ("The answer is **D** and not A.", "D"),
        ("the answer is c", "C"),
        ("The answer is a matter of taste", None),
        ("A man walks", None),
        (r"So \boxed{\text{(D)}}, not (A)", "D"),
        ("<answer>B</answer> (A)", "B"),
        ("<answer>\\boxed{b}</answer>", "B"),
        ("Let us see: (A) is wrong, so (C)", "C"),
        ("Reasons.\nB\n", "B"),
        ("The answer is B because A is wrong.", "B"),
        ("The answer is A, since it is.", "A"),
        ("The answer is C - Paris", "C"),
        ("Not (A). I choose option D as it fits", "A"),
        ("So I choose B", "B"),
        ("Option A is not it; the correct option is C.", "C"),
        ("No option A's are left", None),
        ("C<|eot_id|>D. ", "C"),
        ("E. Nothing", None),
        ("", None),
    ],
)
def test_letters(text, expected):
    """Kills: the article "A" read as a choice; the first bracket instead of the last; a letter that is none of them."""
    assert letter_of(text, "ABCD") == expected


@each("truth", ["B", "(B)", "b.", 1])
def test_truths(truth):
    """Kills: indices counted from 1."""
    verdicts = Choice()([Answer("q", text, {"answer": truth}) for text in ("B", "C", "")])
    assert [verdict.reward for verdict in verdicts] == [1, 0, 0]
    assert [verdict.extracted for verdict in verdicts] == ["B", "C", None]
    assert [verdict.reason for verdict in verdicts] == [None, "not B", "no choice found"]


@each("truth", ["E", "AB", "", 4, -1, True])
def test_truths_that_are_none(truth):
    assert isinstance(Choice(), Judge)
    with pytest.raises(ValueError, match=r"answer 0: its row's field 'answer'"):
        Choice()([Answer("q", "A", {"answer": truth})])


def test_other_letters_and_fields():
    judge = Choice("key", letters="ABCDE")
    assert judge([Answer("q", "E.", {"key": "E"})])[0].reward == 1
