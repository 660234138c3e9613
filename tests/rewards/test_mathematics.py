r"""Mathematical expressions: which one is compared, and what counts as equal."""

import gzip
import json
import signal
import sys
import threading

import pytest

from tests.loops import each
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
    (r"\boxed{x = \boxed{5}}", "5"),
    (r"\boxed{0.5000}", r"\frac{1}{2}"),
    (r"\boxed{2 \times 10^{-7}}", "0.0000002"),
    (r"\boxed{0.333333}", r"\frac{1}{3}"),
    (r"\boxed{1.41421356}", r"\sqrt{2}"),
    (r"\boxed{50\%}", "0.5"),
    (r"\boxed{50\%}", "50"),
    (r"\boxed{50}", r"50\%"),
    (r"\boxed{2516_{8}}", "2516_8"),
    (r"\boxed{2516}", "2516_8"),
    (r"\boxed{0.1\overline{6}}", r"\frac{1}{6}"),
    (r"\boxed{\frac{4}{33}}", r"0.\overline{12}"),
    (r"\boxed{5.}", "5"),
    (r"\boxed{1, 2, \ldots}", r"1, 2, ..."),
    (r"\boxed{2516_{\text{eight}}}", "2516_8"),
    (r"\boxed{1,2,\dots,n}", r"1, 2, \ldots, n"),
    (r"\boxed{\{1/3, 2\}}", r"\{2, 0.333333\}"),
    (r"\boxed{\frac{1}{2006!}}", r"\frac{1}{2006!}"),
    (r"\boxed{1/10^{17} < x}", r"x > \frac{1}{10^{17}}"),
    (r"\boxed{Evelyn}", r"\text{Evelyn}"),
    (r"\boxed{12.5\%}", "12.5"),
    (r"\boxed{12.5}", r"12.5\%"),
    (r"\boxed{1e-7}", "0.0000001"),
    ("It is 1e-7.", "0.0000001"),
    (r"\boxed{1500}", "1.5e3"),
    (r"\boxed{2e-1}", "2e-1"),
    (r"\boxed{5 \text{ million}}", "5000000"),
    (r"\boxed{5 million}", "5000000"),
    ("It is 5 million.", "5000000"),
    (r"\boxed{5 \text{ million}}", "5"),
    ("The answer is __7__.", "7"),
    ("The answer is negative 7", "-7"),
    (r"\boxed{0.5}", "\u00bd"),
    ("\\boxed{x\u00b2}", "x^2"),
    (r"\boxed{0.5}", r"\sin 30^\circ"),
    (r"\boxed{\varnothing}", r"\emptyset"),
    (r"It is $(101)_5$.", "(101)_5"),
    (r"It is $\frac{1}{2}$. " + "And so it goes on, as it was before. " * 200, "0.5"),
]
UNEQUAL = [
    (r"\boxed{\frac{1}{3}}", "0.5"),
    (r"\boxed{0.5} or <answer>1/3</answer>", "0.5"),
    (r"\boxed{(\frac{\pi}{2}, 3)}", r"\left( 3, \frac{\pi}{2} \right)"),
    ("", "3"),
    ("nothing", "3"),
    (r"\boxed{0.0000002}", "0.0000001"),
    (r"\boxed{2 \times 10^{-7}}", "0.0000001"),
    (r"\boxed{3/10^17}", "1/10^17"),
    (r"\boxed{\frac{1}{2006!}}", r"\frac{1}{2004!}"),
    (r"\boxed{e^{-50}}", "e^{-51}"),
    (r"\boxed{x^2 + \frac{1}{10^{20}}}", "x^2"),
    (r"\boxed{0.9999999}", "1"),
    (r"\boxed{0.50000001}", r"\frac{1}{2}"),
    (r"\boxed{0.0000003}", r"\frac{1}{3000003}"),
    (r"\boxed{\{1, 0.0000002\}}", r"\{1, 0.0000001\}"),
    (r"\boxed{(1, 0.0000002)}", "(1, 0.0000001)"),
    (r"\boxed{[0.0000002, 1]}", "[0.0000001, 1]"),
    (r"\boxed{\begin{pmatrix}0.0000002\\1\end{pmatrix}}", r"\begin{pmatrix}0.0000001\\1\end{pmatrix}"),
    (r"\boxed{x > 3/10^{17}}", r"x > \frac{1}{10^{17}}"),
    (r"\boxed{x = 0.0000002}", "x = 0.0000001"),
    (r"\boxed{0.00000002\%}", r"0.00000001\%"),
    (r"\boxed{2516_9}", "2516_8"),
    (r"\boxed{101_{\text{two}}}", "101_3"),
    (r"\boxed{101_{(2)}}", "101_{(3)}"),
    (r"\boxed{0.\overline{3}}", "0.3"),
    (r"\boxed{1, 3, 5, \ldots, 2n-1}", r"1, 2, \ldots, n"),
    (r"\boxed{1, 2, \ldots, 2n}", r"1, 2, \ldots, n"),
    (r"\boxed{1+3+\cdots+n}", r"1+2+\cdots+n"),
    (r"\boxed{2e-8}", "2e-7"),
    (r"\boxed{2e-7}", "0.0000001"),
    ("5 million", "5 billion"),
    (r"\boxed{5 million}", "5000001"),
    (r"\boxed{6}", r"5\%"),
    (r"It is $(101)_5$.", "2"),
]


def judge(text, truth):
    pytest.importorskip("math_verify")
    return Symbolic()([Answer("q", text, {"answer": truth})])[0]


@each(("text", "truth", "reward"), [(*e, 1) for e in EQUAL] + [(*e, 0) for e in UNEQUAL])
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


def test_an_answer_that_takes_too_long():
    """Kills: a judge that hangs, and a 0 without its reason; an alarm that is left behind."""
    pytest.importorskip("math_verify")
    (verdict,) = Symbolic(seconds=1)([Answer("q", r"\boxed{10^{10^{10}}}", {"answer": "1"})])
    assert (verdict.reward, verdict.reason) == (0, "reading and comparing it took more than 1 seconds")
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


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
    """MATH-500: every solution's own box is judged right."""
    pytest.importorskip("math_verify")
    lines = gzip.decompress(vrpo_data("math500/test.jsonl.gz").read_bytes()).split(b"\n")
    rows = [json.loads(line) for line in lines if line.strip()]
    verdicts = Symbolic()([Answer(row["problem"], row["solution"], row) for row in rows])
    assert sum(verdict.reward for verdict in verdicts) == 500
    others = Symbolic()([Answer("q", rows[(i + 1) % 500]["solution"], row) for i, row in enumerate(rows[:50])])
    assert sum(verdict.reward for verdict in others) < 4
