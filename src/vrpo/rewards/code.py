"""Answers that are Python programs, judged by running unit tests in a sandbox."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from vrpo.rewards.extract import before_end, fenced
from vrpo.rewards.fields import field_of
from vrpo.rewards.sandbox import Outcome, Sandbox
from vrpo.rewards.verdict import Answer, Verdict

_HONEST = (Path(__file__).parent / "honest.py").read_text() + "\nmain(program, functions, tests)\n"


@dataclass(frozen=True)
class Program:
    """An answer's code, and the parts in which it is run."""

    code: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class HumanEval:
    """1 if the row's `test` passes for the function `entry_point` (HumanEval, arXiv 2107.03374).

    The answer is cut at the first end token. Its code is the last fenced block that defines the function, or else the
    first block, or else the whole text. If it defines the function it is run after the row's `prompt`, whose imports
    and helpers it may use and whose stub it replaces; if not, it continues the prompt. A continuation whose first line
    has lost its indentation gets four spaces back. Results must be made of the library's types (honest.py).

    `workers`: programs run at a time.

    Raises:
        ValueError: a row lacks `prompt`, `entry_point` or `test`.
        SandboxUnavailable: this machine lacks a defence.
    """

    sandbox: Sandbox = field(default_factory=Sandbox)
    workers: int = 1

    def __call__(self, answers: Sequence[Answer]) -> list[Verdict]:
        return _run_all(self.sandbox, [self._program(one, index) for index, one in enumerate(answers)], self.workers)

    def _program(self, answer: Answer, index: int) -> Program:
        prompt, entry, test = (str(field_of(answer.row, name, index)) for name in ("prompt", "entry_point", "test"))
        code = code_of(answer.text, entry)
        if not defines(code, entry):
            code = continuation(code)
            return Program(code, (prompt + code, tested(f"{test}\n\ncheck({entry})\n", entry)))
        return Program(code, (prompt, code, tested(f"{test}\n\ncheck({entry})\n", entry)))


@dataclass(frozen=True)
class Mbpp:
    """1 if all assertions of the row's `test_list` hold, after its `test_imports` (MBPP, arXiv 2108.07732).

    The answer is cut at the first end token and at "[DONE]". Its code is the last fenced block that defines a function
    the tests call, or else the first block, or else the text after "[BEGIN]". Results must be made of the library's
    types (honest.py).

    `workers`: programs run at a time.

    Raises:
        ValueError: a row lacks `test_list`, or has `test_imports` that are no list.
        SandboxUnavailable: this machine lacks a defence.
    """

    sandbox: Sandbox = field(default_factory=Sandbox)
    workers: int = 1

    def __call__(self, answers: Sequence[Answer]) -> list[Verdict]:
        return _run_all(self.sandbox, [self._program(one, index) for index, one in enumerate(answers)], self.workers)

    def _program(self, answer: Answer, index: int) -> Program:
        tests, imports = field_of(answer.row, "test_list", index), answer.row.get("test_imports") or []
        if isinstance(imports, str) or isinstance(tests, str) or not tests:
            raise ValueError(f"answer {index}: test_list and test_imports must be lists of statements")
        called = re.findall(r"\b([A-Za-z_]\w*)\s*\(", " ".join(tests))
        text = before_end(answer.text).split("[DONE]", 1)[0].rpartition("[BEGIN]")[2]
        code = code_of(text, *called)
        return Program(code, ("\n".join(imports), code, tested("\n".join(tests), *called)))


def code_of(text: str, *entries: str) -> str:
    """The code in an answer: the last fenced block that defines one of the functions, the first block, or all of it."""
    text = before_end(text)
    blocks = fenced(text)
    defining = [block for block in blocks if defines(block, *entries)]
    return (defining[-1:] or blocks[:1] or [text])[0].rstrip()


def defines(code: str, *entries: str) -> bool:
    """Whether a code has one of these functions, classes or names at its top level."""
    names = "|".join(re.escape(name) for name in entries)
    return re.search(rf"^(?:(?:async\s+)?def|class)\s+(?:{names})\b|^(?:{names})\s*=", code, re.MULTILINE) is not None


def continuation(code: str) -> str:
    """The body of a function, whose first line, if it has lost its indentation, gets four spaces."""
    body = code.lstrip("\n")
    return body if body.startswith((" ", "\t")) else "    " + body


def tested(tests: str, *functions: str) -> str:
    """A part of a program that runs tests of these functions of the parts before it, with honest results."""
    given = f"{{'__name__': 'honest', 'program': globals(), 'functions': {list(functions)!r}, 'tests': {tests!r}}}"
    return f"exec({_HONEST!r}, {given})"


def _run_all(sandbox: Sandbox, programs: Sequence[Program], workers: int) -> list[Verdict]:
    with ThreadPoolExecutor(workers) as pool:
        outcomes = list(pool.map(lambda program: sandbox(*program.parts), programs))
    return [_verdict(program.code, outcome) for program, outcome in zip(programs, outcomes, strict=True)]


def _verdict(code: str, outcome: Outcome) -> Verdict:
    if outcome.passed:
        return Verdict(1.0, code)
    return Verdict(0.0, code, outcome.status + (f": {outcome.error}" if outcome.error else ""))
