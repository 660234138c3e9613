"""Answers that are Python programs, judged by running unit tests in a sandbox.

What lives here: which texts of an answer are its program, and which tests are run. What does not: how a text becomes
functions whatever surrounds it (loading.py), and how tests call them from another process (calls.py).
"""

import ast
import builtins
import marshal
import re
import symtable
import sys
import textwrap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from vrpo.rewards.extract import before_end, fenced
from vrpo.rewards.fields import field_of
from vrpo.rewards.sandbox import Outcome, Sandbox
from vrpo.rewards.verdict import Answer, Verdict

_HERE = Path(__file__).parent
_MOST_WORKERS = 256
_IMPORT = """import marshal, sys, types
sys.modules["vrpo.rewards.{name}"] = {name} = types.ModuleType("vrpo.rewards.{name}")
exec(marshal.loads({code!r}), vars({name}))
pipes = [int(number) for number in sys.argv[1:]]
"""
_PLAIN, _CALLS, _LOADING = (  # compiled once: the sandbox's interpreter is this one
    _IMPORT.format(name=name, code=marshal.dumps(compile((_HERE / f"{name}.py").read_text(), f"{name}.py", "exec")))
    for name in ("plain", "calls", "loading")
)
_BARE = re.compile(r"^[ \t]*```[ \t]*$", re.MULTILINE)
_SOLUTION = re.compile(r"^class\s+Solution\b", re.MULTILINE)
_SERVE = "calls.serve(pipes, *loading.load({texts!r}))"
_TEST = "calls.run_tests(pipes, {before!r}, {tests!r}, {functions!r}, {entry!r})"


@dataclass(frozen=True)
class Program:
    """An answer's code, the texts that its process loads (each with the ways to write it), and the other process's
    tests, what they are preceded by, and the functions that they take from the program."""

    code: str
    texts: tuple[tuple[str, ...], ...]
    before: str
    tests: str
    functions: tuple[str, ...]
    entry: str | None = None

    def run(self, sandbox: Sandbox) -> Outcome:
        program = [_PLAIN, _CALLS, _LOADING, _SERVE.format(**vars(self))]
        return sandbox.together(program, [_PLAIN, _CALLS, _TEST.format(**vars(self))])


@dataclass(frozen=True)
class HumanEval:
    """1 if the row's `test` passes for the function `entry_point` (HumanEval, arXiv 2107.03374).

    The answer is cut at the first end token. Its code is the last fenced block that defines the function, after the
    blocks before it, or else the first block, or else the whole text. If it defines the function it is run after the
    row's `prompt`, whose imports and helpers it may use and whose stub it replaces; if not, it continues the prompt. A
    continuation that has lost its indentation, or has another, gets the prompt's.

    The tests run in a process of their own, with the prompt's helpers and classes, and call the answer's function in
    another. What comes back are plain values, objects of the prompt's classes, and objects that cannot be compared.

    `workers`: programs run at a time; each takes two processes.

    Raises:
        ValueError: a row lacks `prompt`, `entry_point` or `test`, or they are no Python.
        SandboxUnavailable: this machine lacks a defence.
    """

    sandbox: Sandbox = field(default_factory=Sandbox)
    workers: int = 1

    def __post_init__(self) -> None:
        _check_workers(self.workers)

    def __call__(self, answers: Sequence[Answer]) -> list[Verdict]:
        return _run_all(self.sandbox, [self._program(one, index) for index, one in enumerate(answers)], self.workers)

    def _program(self, answer: Answer, index: int) -> Program:
        prompt, entry, test = (str(field_of(answer.row, name, index)) for name in ("prompt", "entry_point", "test"))
        blocks, tests = code_of(answer.text, entry), f"{test}\n\ncheck({entry})\n"
        before = stub(prompt, index)
        functions = tuple(sorted({entry, *taken(tests, index)[0]} - set(dir(builtins)) | {entry}))
        own = "\n".join([before, *[f"import {name}" for name in taken(f"{before}\n{tests}", index)[1]]])
        if not defines(blocks[-1], entry):
            texts: tuple[tuple[str, ...], ...] = (tuple(continued(prompt, blocks[-1])),)
        else:
            texts = ((before,), *whole(blocks, entry))
        return Program(blocks[-1], texts, own, tests, functions, entry)


@dataclass(frozen=True)
class Mbpp:
    """1 if all assertions of the row's `test_list` hold (MBPP, arXiv 2108.07732), after its `test_imports`, if any,
    and its `test_setup_code`, if any.

    The answer is cut at the first end token and at "[DONE]". Its code is the last fenced block that defines a function
    the tests call, after the blocks before it, or else the first block, or else the text after "[BEGIN]". The
    functions that the tests call are those whose names nothing else gives them; where they call none but builtins,
    the inner ones (some problems ask for a function `sum`). A module of the library whose attributes the tests use is
    imported for them. As for HumanEval, the tests run in a process of their own.

    `workers`: programs run at a time; each takes two processes.

    Raises:
        ValueError: a row lacks `test_list`, or has `test_imports` that are no list, or what is no Python.
        SandboxUnavailable: this machine lacks a defence.
    """

    sandbox: Sandbox = field(default_factory=Sandbox)
    workers: int = 1

    def __post_init__(self) -> None:
        _check_workers(self.workers)

    def __call__(self, answers: Sequence[Answer]) -> list[Verdict]:
        return _run_all(self.sandbox, [self._program(one, index) for index, one in enumerate(answers)], self.workers)

    def _program(self, answer: Answer, index: int) -> Program:
        tests, imports = field_of(answer.row, "test_list", index), answer.row.get("test_imports") or []
        if isinstance(imports, str) or isinstance(tests, str) or not tests:
            raise ValueError(f"answer {index}: test_list and test_imports must be lists of statements")
        before, lines = "\n".join(imports), [answer.row.get("test_setup_code") or "", *tests]
        functions, modules = taken(f"{before}\n" + "\n".join(lines), index)
        before = "\n".join([before, *[f"import {name}" for name in modules]])
        blocks = code_of(answer.text.split("[DONE]", 1)[0].rpartition("[BEGIN]")[2], *functions)
        texts = ((before,), *whole(blocks, *functions))
        return Program(blocks[-1], texts, before, "\n".join(lines), tuple(functions))


def code_of(text: str, *entries: str) -> list[str]:
    """The code in an answer: the last fenced block that defines one of the functions, after those before it. If none
    does: what is in front of a mark that only closes a fence, or the first block, or all of the text."""
    text = before_end(text).removeprefix("\ufeff").replace("\r\n", "\n")
    blocks = [_typed(block.rstrip()) for block in fenced(text)]
    before = _typed(_BARE.split(text, maxsplit=1)[0].rstrip())
    defining = [place for place, block in enumerate(blocks) if defines(block, *entries)]
    if defining:
        return blocks[: defining[-1] + 1]
    closed = defines(before, *entries) or before.startswith((" ", "\t"))
    return [before] if closed or not blocks else blocks[:1]


def _typed(code: str) -> str:
    """What was typed in a session of Python's shell, without its marks and what it printed; other code as it is."""
    if not code.lstrip().startswith(">>>"):
        return code
    return "\n".join(found[1] for found in re.finditer(r"^(?:>>>|\.\.\.) ?(.*)$", code, re.MULTILINE))


def defines(code: str, *entries: str) -> bool:
    """Whether a code has one of these functions, classes or names at its top level, or a method of a `Solution`."""
    return _function(code, *entries) or _method(code, *entries) is not None


def whole(blocks: Sequence[str], *entries: str) -> tuple[tuple[str, ...], ...]:
    """The texts of blocks; a method of a class `Solution`, which some sites ask for, becomes a function."""
    method = None if _function(blocks[-1], *entries) else _method(blocks[-1], *entries)
    return tuple((block,) for block in (*blocks, *([f"{method} = Solution().{method}"] if method else [])))


def _function(code: str, *entries: str) -> bool:
    names = "|".join(re.escape(name) for name in entries)
    found = rf"^(?:(?:async\s+)?def|class)\s+(?:{names})\b|^(?:{names})\s*(?::[^=\n]*)?="
    return re.search(found, code, re.MULTILINE) is not None


def _method(code: str, *entries: str) -> str | None:
    names, start = "|".join(re.escape(name) for name in entries), _SOLUTION.search(code)
    found = start and re.compile(rf"^[ \t]+def\s+({names})\b", re.MULTILINE).search(code, start.end())
    return found[1] if found else None


def continued(prompt: str, code: str) -> list[str]:
    """The ways in which a code can continue a prompt, the likeliest first."""
    before, body = prompt.rstrip(" \t"), code.lstrip("\n")
    glued = [] if before.endswith("\n") else [prompt + code]
    before = before if before.endswith("\n") else before + "\n"
    indented = body if body.startswith((" ", "\t")) else "    " + body
    spaces = re.sub(r"^\t+", lambda tabs: "    " * len(tabs[0]), indented, flags=re.MULTILINE)
    return [*glued, before + indented, before + spaces, before + textwrap.indent(textwrap.dedent(body), "    ")]


def stub(prompt: str, index: int) -> str:
    """A prompt as a program of its own: its imports, helpers and classes, and a function that does nothing."""
    for text in (prompt, f"{prompt.rstrip()}\n    pass\n"):
        try:
            compile(text, "prompt", "exec", dont_inherit=True)
            return text
        except SyntaxError as error:
            problem = error
    raise ValueError(f"answer {index}: 'prompt' must be the beginning of a Python program: {problem}")


def borrowed(tests: str, index: int) -> set[str]:
    """The names that tests use and do not bind.

    Raises:
        ValueError: they are no Python.
    """
    try:
        top = symtable.symtable(tests, "tests", "exec")
    except SyntaxError as error:
        raise ValueError(f"answer {index}: the tests are no Python: {error}") from error
    bound = {one.get_name() for one in top.get_symbols() if one.is_assigned() or one.is_imported()}
    tables, used = [top], set[str]()
    while tables:
        table = tables.pop()
        used |= {one.get_name() for one in table.get_symbols() if one.is_referenced() and one.is_global()}
        tables += table.get_children()
    used |= {one.get_name() for one in top.get_symbols() if one.is_referenced()}
    return used - bound


def taken(tests: str, index: int) -> tuple[list[str], list[str]]:
    """What tests take from a program, and the modules of the library that they use without an import.

    Raises:
        ValueError: they are no Python.
    """
    free, nodes = borrowed(tests, index), list(ast.walk(ast.parse(tests)))
    owners = {
        id(one.value): one.value.id
        for one in nodes
        if isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name)
    }
    alone = {one.id for one in nodes if isinstance(one, ast.Name) and id(one) not in owners}
    modules = (free & set(owners.values()) & sys.stdlib_module_names) - alone
    free -= modules
    own = free - set(dir(builtins))
    around = {
        one.func.id
        for one in nodes
        if isinstance(one, ast.Call) and isinstance(one.func, ast.Name)
        for part in ast.walk(one)
        if isinstance(part, ast.Name) and part.id in free - {one.func.id}
    }
    return sorted(own or free - around or free), sorted(modules)


def _check_workers(workers: int) -> None:
    if not 1 <= workers <= _MOST_WORKERS:
        raise ValueError(f"workers must be from 1 to {_MOST_WORKERS}, not {workers}")


def _run_all(sandbox: Sandbox, programs: Sequence[Program], workers: int) -> list[Verdict]:
    with ThreadPoolExecutor(workers) as pool:
        outcomes = list(pool.map(lambda program: program.run(sandbox), programs))
    return [_verdict(program.code, outcome) for program, outcome in zip(programs, outcomes, strict=True)]


def _verdict(code: str, outcome: Outcome) -> Verdict:
    if outcome.passed:
        return Verdict(1.0, code)
    return Verdict(0.0, code, outcome.status + (f": {outcome.error}" if outcome.error else ""))
