"""The verifiers by name, imported when they are used: some need packages of their own."""

import importlib
from collections.abc import Sequence
from typing import Any

from vrpo.rewards.verdict import Answer, Judge

VERIFIERS = {  # name -> module and class
    "numeric": ("vrpo.rewards.numeric", "Numeric"),
    "math": ("vrpo.rewards.mathematics", "Symbolic"),
    "choice": ("vrpo.rewards.choice", "Choice"),
    "countdown": ("vrpo.rewards.countdown", "Countdown"),
    "sudoku": ("vrpo.rewards.sudoku", "Sudoku"),
    "sudoku_cells": ("vrpo.rewards.sudoku", "SudokuCells"),
    "humaneval": ("vrpo.rewards.code", "HumanEval"),
    "mbpp": ("vrpo.rewards.code", "Mbpp"),
    "instructions": ("vrpo.rewards.instructions", "Instructions"),
}
_LOOKED_AT = {"math": 100, "humaneval": 1, "mbpp": 1}  # rows, of judges that take their time or run programs


def verifier(name: str, **arguments: Any) -> Judge:
    """The verifier of that name.

    Raises:
        ValueError: a package that it needs is not installed.
        TypeError: it takes no such argument.
    """
    module, kind = VERIFIERS[name]
    try:
        made: Judge = getattr(importlib.import_module(module), kind)(**arguments)
    except ImportError as error:
        raise ValueError(f'judge {name}: {error}: pip install "vrpo[eval]"') from error
    return made


def check_truth(name: str, judge: Judge, rows: Sequence[tuple[str, Answer]]) -> None:
    """Whether a verifier finds the truth in rows, before there are answers to judge: it is asked about empty ones.

    Args:
        rows: each with its origin. Of judges that are slow, only the first ones are looked at.

    Raises:
        ValueError: it does not; names the row by its origin.
    """
    for origin, answer in rows[: _LOOKED_AT.get(name)]:
        try:
            judge([answer])
        except ValueError as error:
            message = str(error).removeprefix("answer 0: ")
            raise ValueError(f"{origin}: judge {name}: {message}") from error
