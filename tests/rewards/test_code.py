"""Programs as answers: what is run, and which verdicts it leads to. The real problems' own solutions pass."""

import gzip
import json

import pytest

from tests.rewards.machine import WITHOUT
from vrpo.rewards.code import HumanEval, Mbpp, code_of, continuation, defines
from vrpo.rewards.sandbox import Sandbox
from vrpo.rewards.verdict import Answer, Judge

pytestmark = pytest.mark.skipif(WITHOUT is not None, reason=str(WITHOUT))

BOX = Sandbox(cpu_seconds=2, wall_seconds=5, memory=256 << 20)
TASK = {
    "prompt": "from typing import List\n\n\ndef helper(x):\n    return x\n\n\n"
    'def total(xs: List[int]) -> int:\n    """Sum."""\n',
    "entry_point": "total",
    "test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n",
}
WHOLE = "def total(xs: List[int]) -> int:\n    return helper(sum(xs))\n"
SMALL = {"test_imports": ["import math"], "test_list": ["assert area(1) == math.pi", "assert area(0) == 0"]}
AREA = "import math\ndef area(r):\n    return math.pi * r * r"


def human(text):
    return HumanEval(BOX)([Answer("q", text, TASK)])[0]


@pytest.mark.parametrize(
    "text",
    [
        "    return sum(xs)\n",
        "return sum(xs)",
        "\n    return helper(sum(xs))<|eot_id|>garbage(",
        WHOLE,
        f"Here it is:\n```python\n{WHOLE}```\nIt sums.\n```\ntotal([1])\n```",
        f"```python\n{WHOLE}",
        "```python\n    return sum(xs)\n```",
        f"```\nx = 1\n```\nBetter:\n```\n{WHOLE}```",
        "    y = 0\n    for x in xs:\n        y += x\n    return y\n\nprint(total([5]))",
    ],
)
def test_humaneval_right(text):
    """Kills: imports or helpers of the prompt lost; text around a fence run; an unclosed fence; a lost indentation."""
    verdict = human(text)
    assert (verdict.reward, verdict.reason) == (1, None), verdict


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("    return len(xs)\n", "failed: AssertionError"),
        ("    return sum(xs) if xs else None", "failed: AssertionError"),
        ("    import sys; sys.exit(0)", "exited: SystemExit: 0"),
        ("    pass\nimport os; os._exit(0)", "exited: the process left with exit status 0"),
        ("    while True: pass", "timeout"),
        ("    open('/etc/passwd')", "forbidden: PermissionError: [Errno 13] Permission denied: '/etc/passwd'"),
        ("", "failed: AssertionError"),
        ("def check(candidate): pass", "failed: AssertionError"),
    ],
)
def test_humaneval_wrong(text, reason):
    """Kills: only the first assertion run; leaving early taken for passing; an own `check` that replaces the tests."""
    verdict = human(text)
    assert verdict.reward == 0
    assert verdict.reason == reason


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        (AREA, 1),
        (f"```python\n{AREA}\n```\n```\nassert False\n```", 1),
        (f"[BEGIN]\n{AREA}\n[DONE]\nassert False", 1),
        ("def area(r):\n    return 3.14 * r * r", 0),
        ("def other(r):\n    return 0", 0),
        ("def area(r):\n    return math.pi * r * r", 1),
    ],
)
def test_mbpp(text, reward):
    """Kills: the tests' imports forgotten; only the last assertion run; what follows [DONE] run."""
    assert Mbpp(BOX)([Answer("q", text, SMALL)])[0].reward == reward


TOTAL = "def total(xs):\n    return sum(xs) + (len(xs) == 1)\n"
TRICKS = {
    "an object that equals everything": "class E:\n    def __eq__(self, other): return True\n"
    "def total(xs): return E()\n",
    "a number that equals everything": "class E(int):\n    def __eq__(self, other): return True\n"
    "def total(xs): return E(7)\n",
    "a builtin replaced": f"import builtins\nbuiltins.abs = lambda x: 0\n{TOTAL}",
    "all builtins replaced": f"__builtins__ = dict(__builtins__.__dict__, abs=lambda x: 0)\n{TOTAL}",
    "lines of the test jumped over": "import sys\ndef trace(frame, event, _):\n"
    "    if frame.f_code.co_name == 'check' and event == 'line': frame.f_lineno = frame.f_code.co_firstlineno + 3\n"
    "    return trace\nsys.settrace(trace)\ndef total(xs): return 1\n",
    "the test made a string": "def total(xs): return 0\nx = '''",
    "a mark of passing": "def total(xs): return 0\nprint('passed')\n",
    "the test replaced": "import sys\ndef total(xs):\n    sys._getframe(2).f_globals['check'] = None\n    return 0\n",
    "leaving in the end": "import atexit, os\natexit.register(os._exit, 0)\ndef total(xs): return 0\n",
    "leaving in the test": "import os\ndef total(xs): os._exit(0)\n",
}
TRICKED = {
    "prompt": 'def total(xs):\n    """Sum."""\n',
    "entry_point": "total",
    "test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert abs(candidate([1]) - 1) == 0\n"
    "    x = '''text'''\n",
    "test_list": ["assert total([1, 2]) == 3", "assert abs(total([1]) - 1) == 0"],
}


@pytest.mark.parametrize("code", TRICKS.values(), ids=TRICKS)
@pytest.mark.parametrize("judge", [HumanEval(BOX), Mbpp(BOX)], ids=["humaneval", "mbpp"])
def test_tricks(judge, code):
    """Ways to pass tests without solving the task, that need not know this sandbox."""
    (verdict,) = judge([Answer("q", code, TRICKED)])
    assert verdict.reward == 0, verdict
    (verdict,) = judge([Answer("q", "from __future__ import annotations\ndef total(xs): return sum(xs)", TRICKED)])
    assert (verdict.reward, verdict.reason) == (1, None)


def test_many_at_a_time():
    """Kills: verdicts in the order in which programs end."""
    texts = ["    import time; time.sleep(0.3); return sum(xs)", "    return None", "    return sum(xs)"]
    verdicts = HumanEval(BOX, workers=3)([Answer("q", text, TASK) for text in texts])
    assert [verdict.reward for verdict in verdicts] == [1, 0, 1]
    assert HumanEval(BOX)([]) == []


def test_rows_that_lack_something():
    assert isinstance(HumanEval(), Judge)
    assert isinstance(Mbpp(), Judge)
    with pytest.raises(ValueError, match=r"answer 0: .*'test'"):
        HumanEval(BOX)([Answer("q", "", {"prompt": "", "entry_point": "f"})])
    with pytest.raises(ValueError, match=r"answer 0: .*'test_list'"):
        Mbpp(BOX)([Answer("q", "", {})])
    with pytest.raises(ValueError, match="must be lists"):
        Mbpp(BOX)([Answer("q", "", {"test_list": "assert f()"})])


def test_pieces():
    assert code_of("```\na = 1\n```\n```\nf = 2\n```", "f") == "f = 2"
    assert code_of("a\n", "f") == "a"
    assert defines("class A:\n  pass\nasync  def f(): 0", "g", "f")
    assert not defines("    def f(): 0\nff = 1", "f")
    assert continuation("\n\tx") == "\tx"


def test_humaneval_solutions_pass(vrpo_data):
    """All 164 as continuations, and as whole functions in a fence."""
    lines = gzip.decompress(vrpo_data("humaneval/HumanEval.jsonl.gz").read_bytes()).split(b"\n")
    rows = [json.loads(line) for line in lines if line.strip()]
    whole = [f"```python\n{row['prompt']}{row['canonical_solution']}\n```" for row in rows]
    judge = HumanEval(Sandbox(), workers=2)
    for texts in ([row["canonical_solution"] for row in rows], whole):
        verdicts = judge([Answer("q", text, row) for text, row in zip(texts, rows, strict=True)])
        wrong = [(row["task_id"], v.reason) for row, v in zip(rows, verdicts, strict=True) if v.reward != 1]
        assert not wrong
    verdicts = judge([Answer("q", "    return None", row) for row in rows[:20]])
    assert all(verdict.reward == 0 for verdict in verdicts)


def test_mbpp_solutions_pass(vrpo_data):
    rows = json.loads(gzip.decompress(vrpo_data("mbpp/sanitized.json.gz").read_bytes()))
    verdicts = Mbpp(Sandbox(), workers=2)([Answer(row["prompt"], row["code"], row) for row in rows])
    assert not [(row["task_id"], v.reason) for row, v in zip(rows, verdicts, strict=True) if v.reward != 1]
