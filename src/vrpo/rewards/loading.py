"""The program's process: an answer's texts become functions, whatever people and models write around them.

This file's text is run in a sandbox (code.py), so it imports the standard library only. What does not live here: which
texts (code.py), and answering calls (calls.py).

Public harnesses execute a text under a name that is not `__main__`, after cutting it at stop words or keeping its
definitions only. Here each statement of the top level is executed by itself: one that fails (an own test, a script that
reads its input, a missing package) does not undo the others, and is the reason given if a function is missing then.
"""

import __future__

import ast
import builtins
import collections
import importlib
import linecache
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# what public harnesses import for a program (human-eval-x, bigcode): used without being imported, these are there
MODULES = {"bisect", "collections", "copy", "datetime", "functools", "hashlib", "heapq", "itertools"}
MODULES |= {"math", "operator", "random", "re", "string", "sys"}
_CODE = re.compile(r"(?:from|import|def|class|async)\s|@\w|[A-Za-z_]\w*\s*=")
_TRIES = 20  # places where a program may begin in a text


def load(texts: Sequence[Sequence[str]]) -> tuple[types.ModuleType, Callable[[str], Any]]:
    """A module from texts, one after the other in the same names; and what finds a function of it.

    Args:
        texts: of each, the ways to write it; the first that is Python counts. If none is, what is Python in the first.
    """
    module, first = types.ModuleType("program"), None
    sys.modules["program"] = module
    for number, ways in enumerate(texts):
        name = "program.py" if number == 0 else f"program.{number}.py"
        code, error = parsed(ways, name)
        first = first or error
        lend(module, code)
        for error in executed(module, code, name):
            first = first or error
    return module, lambda name: find(module, first, name)


def find(module: types.ModuleType, first: BaseException | None, name: str) -> Any:
    """What has this name in a module.

    Raises:
        BaseException: nothing; the first error of the module, if there was one.
    """
    if name in vars(module):
        return vars(module)[name]
    raise first or NameError(f"name {name!r} is not defined")


def parsed(ways: Sequence[str], name: str) -> tuple[ast.Module, BaseException | None]:
    first = None
    for text in ways:
        try:
            compile(text, name, "exec", dont_inherit=True)
            return remembered(text, name), None
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            first = first or error
    return remembered(salvaged(ways[0]), name), first


def remembered(text: str, name: str) -> ast.Module:
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    return ast.parse(text, name)


def salvaged(text: str) -> str:
    """The longest part that is Python, of those that begin with the text or with a line that looks like code, and end
    before a line without indentation that is none."""
    lines = text.splitlines(keepends=True)
    starts = [0, *[place for place, line in enumerate(lines) if _CODE.match(line)]]
    return max((up_to_prose(lines[start:]) for start in starts[:_TRIES]), key=len)


def up_to_prose(lines: list[str]) -> str:
    while lines:
        try:
            compile("".join(lines), "program.py", "exec", dont_inherit=True)
            return "".join(lines)
        except SyntaxError as error:
            end = min(error.lineno or 1, len(lines)) - 1
        except (ValueError, RecursionError, MemoryError):
            end = len(lines) - 1
        while end > 0 and not lines[end].strip("\r\n")[:1].strip():
            end -= 1
        lines = lines[:end]
    return ""


def executed(module: types.ModuleType, code: ast.Module, name: str) -> Iterator[BaseException]:
    """Executes statements one by one; yields what they raise."""
    flags = 0
    for statement in code.body:
        if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
            for one in statement.names:
                flags |= getattr(__future__, one.name).compiler_flag
        try:
            exec(compile(ast.Module([statement], []), name, "exec", flags, dont_inherit=True), vars(module))
        except BaseException as error:
            yield error


def lend(module: types.ModuleType, code: ast.Module) -> None:
    """Imports what a program uses and has not, if it is the name of a usual module or of typing's or collections'."""
    names = {node.id for node in ast.walk(code) if isinstance(node, ast.Name)} - set(vars(module)) - set(dir(builtins))
    for name in sorted(names):
        if name in MODULES:
            setattr(module, name, importlib.import_module(name))
        for library in (typing, collections):
            if name in library.__all__:
                setattr(module, name, getattr(library, name))
