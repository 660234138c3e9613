r"""Mathematical expressions: which one is compared, and what counts as equal."""

import gzip
import json
import sys
import threading

import pytest

from vrpo.rewards.mathematics import Symbolic, expression_of
from vrpo.rewards.verdict import Answer, Judge

EQUAL = [
    (r"so \boxed{\frac{1}{2}}", "0.5"),
    (r"<answer>\boxed{0.5}</answer>", r"\frac12"),
    ("<answer>1/2</answer>", r"\frac{1}{2}"),
    (r"It is $p - q$.", "p - q"),
    (r"\boxed{-q + p}", "p - q"),
    (r"\boxed{\left(3, \frac{\pi}{2}\right)}", r"\left( 3, \frac{\pi}{2} \right)"),
    (r"\boxed{3}<|eot_id|>\boxed{4}", "3"),
    (r"\boxed{1} no, \boxed{2}", "2"),
]
UNEQUAL = [
    (r"\boxed{\frac{1}{3}}", "0.5"),
    (r"\boxed{0.5} or <answer>1/3</answer>", "0.5"),
    (r"\boxed{(\frac{\pi}{2}, 3)}", r"\left( 3, \frac{\pi}{2} \right)"),
    ("", "3"),
    ("nothing", "3"),
]


def judge(text, truth):
    pytest.importorskip("math_verify")
    return Symbolic()([Answer("q", text, {"answer": truth})])[0]


@pytest.mark.parametrize(("text", "truth", "reward"), [(*e, 1) for e in EQUAL] + [(*e, 0) for e in UNEQUAL])
def test_equality(text, truth, reward):
    """Kills: texts compared; the first box; a box before a tag; what follows an end token."""
    verdict = judge(text, truth)
    assert verdict.reward == reward, verdict
    assert (verdict.reason is None) == bool(reward)


def test_places():
    assert expression_of(r"\boxed{1} <answer>a \boxed{2}</answer>") == r"\boxed{2}"
    assert expression_of("<answer>3</answer>") == "3"
    assert expression_of("4") == "4"


def test_rows_and_types():
    assert isinstance(Symbolic(), Judge)
    pytest.importorskip("math_verify")
    with pytest.raises(ValueError, match=r"answer 0: .*'answer'"):
        Symbolic()([Answer("q", "1", {})])
    with pytest.raises(ValueError, match="is no expression: ''"):
        Symbolic()([Answer("q", "1", {"answer": ""})])


def test_in_another_thread():
    """Kills: an alarm set outside the main thread, which is an error there."""
    found = []
    thread = threading.Thread(target=lambda: found.append(judge(r"\boxed{2}", "2").reward))
    thread.start()
    thread.join()
    assert found == [1]


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ValueError, match=r"vrpo\[eval\]"):
        Symbolic()([])


def test_real_answers_equal_themselves(vrpo_data):
    """MATH-500: every solution's own box is judged right, but for the few in a form the library cannot compare."""
    pytest.importorskip("math_verify")
    lines = gzip.decompress(vrpo_data("math500/test.jsonl.gz").read_bytes()).split(b"\n")
    rows = [json.loads(line) for line in lines if line.strip()]
    verdicts = Symbolic()([Answer(row["problem"], row["solution"], row) for row in rows])
    assert sum(verdict.reward for verdict in verdicts) >= 490
    others = Symbolic()([Answer("q", rows[(i + 1) % 500]["solution"], row) for i, row in enumerate(rows)])
    assert sum(verdict.reward for verdict in others) < 40
