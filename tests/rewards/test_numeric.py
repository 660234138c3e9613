r"""Answers that are a number: places in their order, comparison, errors; and the real generations."""

import gzip
import json
from collections import Counter

import pytest

from tests.loops import each
from vrpo.rewards.numeric import Numeric, number_of, written
from vrpo.rewards.verdict import Answer, Judge


def judge(text, truth, **kwargs):
    return Numeric(**kwargs)([Answer("q", text, {"answer": truth})])[0]


@each(
    ("text", "expected"),
    [
        ("3 eggs\n<answer>\n\\boxed{18}\n</answer><|eot_id|><|endoftext|>", 18),
        ("\\boxed{5} then <answer>6</answer> then 7", 6),  # a tag before a box
        ("<answer>\\boxed{6} for 9 days</answer>", 6),  # the box in the tag
        ("<answer>none</answer> \\boxed{5} 8", 5),  # a tag without a number is no place
        ("\\boxed{4} \\boxed{5}", 5),  # the last box
        ("\\boxed{5} \\boxed{...}", 5),  # but one with a number
        ("#### 5\n6", 5),
        ("The answer is 5.\nCheck: 6", 5),
        ("#### 5\nthe answer is 6", 5),
        ("so 3, then 4 dollars", 4),
        ("\\boxed{120\\text{ minutes}}", 120),
        ("\\boxed{16 - 7 = 9 \\text{ eggs for } 2 \\text{ days}}", 9),
        ("\\boxed{9 = }", 9),
        ("<answer>9 eggs at 2 dollars: she makes $18</answer>", 18),
        ("<answer>", None),
        ("<answer>12", 12),
        ("5<|eot_id|>7", 5),
        ("nothing", None),
    ],
)
def test_the_order_of_places(text, expected):
    """Kills: another order; the first box instead of the last; a place without a number that ends the search."""
    assert number_of(text) == expected


@each("text", ["18", "$18.00", "18 eggs", r"\boxed{\$18}", "#### 18", "the answer is 36/2"])
def test_equal_numbers(text):
    assert judge(text, "9 * 2 = 18\n#### 18").reward == 1
    assert judge(text, 18.0).reward == 1
    assert judge(text, 18.5).reward == 0


def test_verdicts_say_what_was_compared():
    """Kills: floats compared (0.1 + 0.2 against 0.3); a reason for a right answer; the truth given as extracted."""
    assert judge("0.3", 0.3).reward == 1
    verdict = judge("so 7.50", 8)
    assert (verdict.reward, verdict.extracted, verdict.reason) == (0, "7.5", "not 8")
    verdict = judge("none", 8)
    assert (verdict.reward, verdict.extracted, verdict.reason) == (0, None, "no number found")
    assert judge("8", 8).reason is None
    assert judge("8", 10**400).reason == f"not 1{'0' * 400}"  # beyond a float
    assert [written(n) for n in (number_of("1/3"), number_of("1/4"), number_of("-2"))] == ["1/3", "0.25", "-2"]


def test_rows_without_a_number_are_errors():
    """Kills: a null truth that counts as wrong."""
    assert isinstance(Numeric(), Judge)
    with pytest.raises(ValueError, match=r"answer 1: .*'answer'"):
        Numeric()([Answer("q", "1", {"answer": 1}), Answer("q", "1", {"answer": None})])
    with pytest.raises(ValueError, match=r"answer 0: no number .*'ground_truth'"):
        Numeric("ground_truth")([Answer("q", "1", {"ground_truth": "none"})])


def test_real_generations(vrpo_data):
    """LLaDA-8B-Instruct's GSM8K answers: what it reaches at each length, and one verdict per answer.

    The published figures are 0.69, 0.77 and 0.78; units within the box, which are read here, add one or two points.
    Kills: the last number instead of the box (fails by several points); thousands; end tokens.
    """
    lines = gzip.decompress(vrpo_data("llada8b_generations/gsm8k.jsonl.gz").read_bytes()).split(b"\n")
    rows = [row for row in map(json.loads, filter(None, lines)) if row["ground_truth"] is not None]
    verdicts = Numeric("ground_truth")([Answer(row["question"], row["generation"], row) for row in rows])
    right = Counter(row["gen_length"] for row, verdict in zip(rows, verdicts, strict=True) if verdict.reward)
    count = Counter(row["gen_length"] for row in rows)
    assert {length: count[length] for length in count} == {128: 1128, 256: 1128, 512: 1128}
    shares = {length: right[length] / count[length] for length in count}
    assert shares == pytest.approx({128: 0.710, 256: 0.790, 512: 0.793}, abs=0.004)


def test_gsm8k_solutions_give_their_own_answers(vrpo_data):
    lines = gzip.decompress(vrpo_data("gsm8k/train.jsonl.gz").read_bytes()).split(b"\n")
    rows = [json.loads(line) for line in lines if line.strip()]
    verdicts = Numeric()([Answer(row["question"], row["answer"], row) for row in rows])
    assert all(verdict.reward == 1 for verdict in verdicts)
