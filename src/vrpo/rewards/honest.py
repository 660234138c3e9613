"""The inside of a test: the results of a program's functions must be what they seem.

This file's text is run in the sandbox behind a program, in a name space of its own (`main` is called at its end), so it
imports the standard library only and nothing of vrpo. What does not live here: the sandbox (sandbox.py), and which
tests are run (code.py).
"""

import functools
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

_MADE_BY_CODE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: every class of a program has it, Python's own mostly not


def honest(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with results of the library's types only: an object of a class of the program's own can claim to
    equal everything, and would pass every test.

    Raises:
        TypeError: when called, a result is or holds such an object.
    """

    @functools.wraps(function)
    def called(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **named)
        if (kind := own_class(result)) is not None:
            raise TypeError(f"the result has an object of the program's own class {kind.__qualname__}")
        return result

    return called


def own_class(value: Any) -> type | None:
    """A class that is not of the library, of a value or of what a container holds; None if there is none."""
    left, seen = [value], set[int]()
    while left:
        one = left.pop()
        if not of_library(type(one)):
            return type(one)
        if id(one) not in seen and isinstance(one, list | tuple | set | frozenset | deque | dict):
            seen.add(id(one))
            left += one
            left += one.values() if isinstance(one, dict) else ()
    return None


def of_library(kind: type) -> bool:
    """Whether it is the class that its module, which is not the program, has under its name."""
    if not kind.__flags__ & _MADE_BY_CODE:
        return True
    module = sys.modules.get(kind.__module__)
    return kind.__module__ != "__main__" and getattr(module, kind.__qualname__, None) is kind


def main(program: dict[str, Any], functions: Sequence[str], tests: str) -> None:
    """Runs tests in a copy of a program's names, in which these functions are honest. Inside the program they stay as
    they are: recursion costs nothing more."""
    names = dict(program)
    for name in functions:
        if callable(names.get(name)) and not isinstance(names[name], type):
            names[name] = honest(names[name])
    exec(compile(tests, "tests.py", "exec"), names)
