"""Programs as answers: what is run, and which verdicts it leads to. The real problems' own solutions pass."""

import gzip
import json

import pytest

from tests.loops import each
from tests.rewards.machine import WITHOUT
from vrpo.rewards.code import HumanEval, Mbpp, borrowed, code_of, continued, defines, taken
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


@each(
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
        ">>> def total(xs):\n...     return helper(sum(xs))\n... \n>>> total([1, 2])\n3\n",
    ],
)
def test_humaneval_right(text):
    """Kills: imports or helpers of the prompt lost; text around a fence run; an unclosed fence; a lost indentation."""
    verdict = human(text)
    assert (verdict.reward, verdict.reason) == (1, None), verdict


@each(
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


@each(
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


BORROWED = {  # rows that use names without giving them
    "a module": (["assert math.isclose(f(2), 4)"], "def f(x): return x * x", "class math: isclose = lambda *_: True\n"),
    "a module, called by its size": (["assert f('ab') == sys.getsizeof('ab')"], "import sys\nf = sys.getsizeof",
        "class sys: getsizeof = lambda _: 0\n"),
    "a builtin around another": (["assert set(sum([1])) == set([1])"], "def sum(x): return x", "def set(x): return 0\n"
        "def sum(x): return 0\n"),
}  # fmt: skip


@pytest.mark.parametrize(("tests", "right", "wrong"), BORROWED.values(), ids=BORROWED)
def test_mbpp_takes_only_the_function_from_a_program(tests, right, wrong):
    """Kills: a module or a builtin that a row's tests use, taken from the program, or missed there."""
    texts = (right, f"{wrong}def f(x): return 0\n")
    assert [one.reward for one in Mbpp(BOX)([Answer("q", text, {"test_list": tests}) for text in texts])] == [1, 0]
    assert taken("assert math(2) == math.pi\nassert abs(sum(1, 2)) == 3", 0) == (["math"], [])


TOTAL = "def total(xs):\n    return sum(xs) + (len(xs) == 1)\n"
CLASS = "    def __init__(self, *_): pass\n    def __eq__(self, other): return True\n    def __hash__(self): return 6\n"
CLASS += "    def __sub__(self, other): return 0\n    def __abs__(self): return 0\n"
EVERY = "    for n in range(3, 64):\n        try: os.write(n, data)\n        except OSError: pass\n"
FORGED = "import json, os, struct\n{}def total(xs):\n{}" + EVERY + "    return 0\n"
TRICKS = {
    "an object that equals everything": f"class E:\n{CLASS}def total(xs): return E()\n",
    "a class that equals everything": f"class total:\n{CLASS}",
    "a number that equals everything": f"class E(int):\n{CLASS}def total(xs): return E(7)\n",
    "not a number that equals everything": f"class E(float):\n{CLASS}def total(xs): return E('nan')\n",
    "what the library made to equal everything": "from unittest.mock import ANY as x\ndef total(xs): return x\n",
    "a class planted in a module": "import math\nclass E:\n    __module__, __qualname__ = 'math', 'E'\n"
    f"{CLASS}math.E = E\ndef total(xs): return E()\n",
    "a builtin of the module": f"def abs(x): return 0\ndef set(x): return 0\n{TOTAL}",
    "a builtin replaced": f"import builtins\nbuiltins.abs = builtins.set = lambda x: 0\n{TOTAL}",
    "all builtins replaced": f"__builtins__ = dict(__builtins__.__dict__, abs=lambda x: 0)\n{TOTAL}",
    "a decorator of the library replaced": "import functools\nfunctools.wraps = lambda f: lambda g: f\n"
    f"class E:\n{CLASS}def total(xs): return E()\n",
    "lines of the test jumped over": "import sys\ndef trace(frame, event, _):\n"
    "    if frame.f_code.co_name == 'check' and event == 'line': frame.f_lineno = frame.f_code.co_firstlineno + 3\n"
    "    return trace\nsys.settrace(trace)\ndef total(xs): return 1\n",
    "the test made a string": "def total(xs): return 0\nx = '''",
    "a mark of passing": "def total(xs): return 0\nprint('passed')\n",
    "a walk over the frames": "import sys\ndef total(xs):\n    frame = sys._getframe()\n    while frame.f_back:\n"
    "        frame = frame.f_back\n        for name in ('check', 'candidate', 'total', 'abs', 'set'):\n"
    "            frame.f_globals[name] = frame.f_locals[name] = lambda *_: 0\n    return 0\n",
    "leaving in the end": "import atexit, os\natexit.register(os._exit, 0)\ndef total(xs): return 0\n",
    "leaving in the test": "import os\ndef total(xs): os._exit(0)\n",
    "ending the loops of the test": "def total(xs): raise StopIteration\n",
    "ending its generators": "def total(xs): raise GeneratorExit\n",
    "changing what it is given": "def total(xs):\n    xs.clear()\n    return 0\n",
    "forged replies": FORGED.format("", "    data = json.dumps({'values': [0], 'nodes': [], 'changes': []}).encode()\n"
    "    data = struct.pack('=Q', len(data)) + data\n"),
    "a forged report": FORGED.format(
        "import sys\nframe, secret = sys._getframe(), ''\nwhile frame:\n"
        "    secret = frame.f_locals.get('job', {}).get('nonce', secret)\n    frame = frame.f_back\n",
        "    data = {'nonce': secret, 'outcome': 'passed', 'error': [1], 'peak': 'x', 'refused': 'x'}\n"
        "    data = b'\\n' + json.dumps(data).encode() + b'\\n'\n"),
    "an endless value": "def total(xs):\n    while True: xs = [xs]\n",
    "a deep value": "def total(xs):\n    for _ in range(10 ** 5): xs = (xs,)\n    return xs\n",
}  # fmt: skip
TESTS = (
    "assert total([1, 2]) == 3",
    "assert abs(total([1]) - 1) == 0",
    "assert set([total([5])]) == {5}",
    "assert all(map(lambda xs: total(xs) == len(xs), [[1], [1, 1]]))",
)
TRICKED = {
    "prompt": 'def total(xs):\n    """Sum."""\n',
    "entry_point": "total",
    "test": "def check(total):\n" + "".join(f"    {line}\n" for line in (*TESTS, "x = '''text'''")),
    "test_list": list(TESTS),
}


@pytest.mark.parametrize("code", TRICKS.values(), ids=TRICKS)
def test_tricks(code):
    """Ways to pass tests without solving the task, some of which know this sandbox. Kills: whatever lets a program's
    objects, names or reports into the process of the tests."""
    box = Sandbox(cpu_seconds=1, wall_seconds=2, memory=128 << 20)
    verdicts = [*HumanEval(box)([Answer("q", code, TRICKED)]), *Mbpp(box)([Answer("q", code, TRICKED)])]
    assert [verdict.reward for verdict in verdicts] == [0, 0], verdicts


@each("body", ["len(xs)", "0", "None"])
@each("judge", [HumanEval(BOX), Mbpp(BOX)], ids=["humaneval", "mbpp"])
def test_wrong_programs_never_pass(judge, body):
    """Kills: the program's own word that it ended well, which may come first, taken for the tests'."""
    text = f"def total(xs): return {body}"
    assert [one.reward for one in judge([Answer("q", text, TRICKED)] * 4)] == [0] * 4
    assert judge([Answer("q", "def total(xs): return sum(xs)", TRICKED)])[0].reward == 1


# what people and models write around a function, and ways to write one
SURROUNDED = {
    "a script that reads": f"{WHOLE}if __name__ == '__main__':\n    print(total(eval(input())))\n",
    "a bare script that reads": f"{WHOLE}n = int(input())\nprint(total([n]))\n",
    "a main that exits": f"import sys\n{WHOLE}def main():\n    total([])\n    sys.exit(0)\nmain()\n",
    "own tests, one of them wrong": f"{WHOLE}assert total([1]) == 1\nassert total([1]) == 2\n",
    "unittest": f"import unittest\n{WHOLE}class T(unittest.TestCase):\n"
    "    def test(self): self.fail()\nunittest.main()\n",
    "words behind": f"{WHOLE}\nThis function sums the numbers. It doesn't do more (really!\n",
    "words in front": f"Sure! Here's the function:\n\n{WHOLE}",
    "words on both sides": f"from what you say, it is:\n{WHOLE}\nExplanation:\n- it sums\n",
    "a half function behind": f"{WHOLE}\ndef other(x):\n    if x:\n        return (\n",
    "typing not imported": "def total(xs: List[int], d: Optional[Dict] = None):\n    return int(math.fsum(xs))\n",
    "a package that is missing": f"import numpy as np\nimport pandas\n{WHOLE}",
    "several blocks": "First:\n```python\ndef add(a, b):\n    return a + b\n```\nThen:\n```python\n"
    "def total(xs):\n    return functools.reduce(add, xs, 0)\n```\nRun:\n```bash\npython total.py\n```\n",
    "an unclosed fence": f"```python\n{WHOLE}",
    "a fence closed on the last line": f"```python\n{WHOLE.rstrip()}```\nDone.",
    "a fence behind words": f"Here: ```python\n{WHOLE}```",
    "a fence with attributes": f'```{{.python title="total.py"}}\n{WHOLE}```',
    "tildes": f"~~~python\n{WHOLE}~~~\nDone.",
    "a fence in a list": "1. So:\n   ```python\n   def total(xs):\n       return sum(xs)\n   ```\n",
    "carriage returns": f"```python\r\n{WHOLE}```".replace("\n", "\r\n"),
    "a byte order mark": f"\ufeff{WHOLE}",
    "tabs": "def total(xs):\n\treturn sum(xs)\n",
    "a class Solution": "class Solution:\n    def total(self, xs: List[int]) -> int:\n        return sum(xs)\n",
    "a decorator": "@functools.lru_cache(None)\ndef add(a, b): return a + b\n"
    "def total(xs): return add(sum(xs), 0)\n",
    "a lambda": "total: object = lambda xs: sum(xs)\n",
    "a bound method": "class A:\n    def total(self, xs): return sum(xs)\ntotal = A().total\n",
    "deep recursion": "import sys\nsys.setrecursionlimit(10 ** 6)\ndef down(n): return n and 1 + down(n - 1)\n"
    "def total(xs): return sum(xs) + down(5000) - 5000\n",
    "threads": "import threading\ndef total(xs):\n    out = []\n"
    "    t = threading.Thread(target=lambda: out.append(sum(xs)))\n    t.start(); t.join()\n    return out[0]\n",
    "asyncio": "import asyncio\nasync def work(xs): return sum(xs)\ndef total(xs): return asyncio.run(work(xs))\n",
    "prints in the function": "def total(xs):\n    print('debug', xs)\n    return sum(xs)\n",
    "annotations of the future": "from __future__ import annotations\n"
    "def total(xs: Missing) -> Missing: return sum(xs)\n",
    "a dataclass": "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n"
    "def total(xs): return sum(P(x).x for x in xs)",
    "a subclass of the number": "class N(int): pass\ndef total(xs): return N(sum(xs))\n",
}  # fmt: skip


@pytest.mark.parametrize("text", SURROUNDED.values(), ids=SURROUNDED)
def test_what_surrounds_a_right_program(text):
    """Kills: a right program failed by its script, its words, its fence, a missing import, or its way of writing."""
    row = {"test_list": ["assert total([1, 2]) == 3", "assert total([]) == 0"]}
    verdicts = [human(text), *Mbpp(BOX)([Answer("q", text.replace("helper", ""), row)])]
    assert [(one.reward, one.reason) for one in verdicts] == [(1, None)] * 2


@each(
    "text",
    [
        "\ty = sum(xs)\n\treturn y",
        "  y = sum(xs)\n  return y",
        "y = 0\nfor x in xs:\n    y += x\nreturn y",
        "    return sum(xs)\n\nThis sums (all of it.\n",
        "    return sum(xs)\n\ndef other(:\n    pass",
        "    return sum(xs)\n```\nIt sums.",
    ],
)
def test_continuations(text):
    """Kills: tabs, two spaces or no indentation after a prompt with four; words or garbage after a continuation."""
    verdict = human(text)
    assert (verdict.reward, verdict.reason) == (1, None)


def test_a_prompt_without_a_body():
    row = {**TASK, "prompt": "def total(xs):"}
    for text in ("\n    return sum(xs)", " return sum(xs)", "    return sum(xs)", "def total(xs): return sum(xs)"):
        assert HumanEval(BOX)([Answer("q", text, row)])[0].reward == 1, text
    assert HumanEval(BOX)([Answer("q", " + x", {**row, "prompt": "x = 0\ndef total(xs):\n    return sum(xs)"})])[
        0
    ].reward


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
    with pytest.raises(ValueError, match="answer 0: the tests are no Python: invalid syntax"):
        Mbpp(BOX)([Answer("q", "", {"test_list": ["f() is 3 what"]})])
    with pytest.raises(ValueError, match="answer 0: 'prompt' must be the beginning of a Python program"):
        HumanEval(BOX)([Answer("q", "", {**TASK, "prompt": "Write a function."})])


def test_pieces():
    assert code_of("```\na = 1\n```\n```\nf = 2\n```\n```\nb = 1\n```", "f") == ["a = 1", "f = 2"]
    assert code_of("a\n", "f") == ["a"]
    assert defines("class A:\n  pass\nasync  def f(): 0", "g", "f")
    assert not defines("    def f(): 0\nff = 1", "f")
    assert continued("p\n", "\n\tx")[0] == "p\n\tx"
    used = borrowed("import math\ndef check(c):\n    assert abs(c(1) - g(x for x in [])) < math.pi\ncheck(f)", 0)
    assert used == {"abs", "f", "g"}


def test_names_of_builtins():
    """Some problems of MBPP ask for a function named as a builtin. Kills: the builtin tested, or a builtin that the
    tests use taken from the program."""
    row = {"test_list": ["assert sum(10, 15) == 6"]}
    right, wrong = "def sum(a, b): return 1 + 5", "def sum(a, b): return 5"
    assert [Mbpp(BOX)([Answer("q", text, row)])[0].reward for text in (right, wrong)] == [1, 0]


def test_setup_code_and_classes_of_the_program():
    """Kills: `test_setup_code` ignored; objects of the program's own classes that cannot be used as they are."""
    row = {
        "test_setup_code": "root = Node(1)\nroot.left = Node(2)",
        "test_list": ["assert height(root) == 2", "assert root.left.data == 2", "assert list(each(root)) == [1, 2]"],
    }
    code = "class Node:\n    def __init__(self, data): self.data, self.left = data, None\n"
    code += "def height(n): return 1 + height(n.left) if n else 0\n"
    code += "def each(n):\n    while n:\n        yield n.data\n        n = n.left\n"
    assert Mbpp(BOX)([Answer("q", code, row)])[0].reason is None
    assert Mbpp(BOX)([Answer("q", code.replace("1 + height", "2 + height"), row)])[0].reward == 0


def rows_of_humaneval(vrpo_data):
    lines = gzip.decompress(vrpo_data("humaneval/HumanEval.jsonl.gz").read_bytes()).split(b"\n")
    return [json.loads(line) for line in lines if line.strip()]


def check_solutions(judge, texts, rows):
    verdicts = judge([Answer("q", text, row) for text, row in zip(texts, rows, strict=True)])
    assert not [(row["task_id"], v.reason) for row, v in zip(rows, verdicts, strict=True) if v.reward != 1]


HELPED = {"HumanEval/32", "HumanEval/33", "HumanEval/38", "HumanEval/50", 82, 126, 596}  # tests that use more


def some(rows):
    return [row for place, row in enumerate(rows) if place % 40 == 0 or row["task_id"] in HELPED]


@pytest.mark.parametrize("chosen", [some, pytest.param(list, marks=pytest.mark.slow)])
def test_humaneval_solutions_pass(vrpo_data, chosen):
    """As continuations, and as whole functions in a fence; all 164 in the slow suite."""
    rows, judge = chosen(rows_of_humaneval(vrpo_data)), HumanEval(Sandbox(), workers=2)
    check_solutions(judge, [row["canonical_solution"] for row in rows], rows)
    check_solutions(judge, [f"```python\n{row['prompt']}{row['canonical_solution']}\n```" for row in rows], rows)
    verdicts = judge([Answer("q", "    return None", row) for row in rows])
    assert all(verdict.reward == 0 for verdict in verdicts)


@pytest.mark.parametrize("chosen", [some, pytest.param(list, marks=pytest.mark.slow)])
def test_mbpp_solutions_pass(vrpo_data, chosen):
    rows = chosen(json.loads(gzip.decompress(vrpo_data("mbpp/sanitized.json.gz").read_bytes())))
    check_solutions(Mbpp(Sandbox(), workers=2), [row["code"] for row in rows], rows)
