"""The verifiers by name, imported when they are used: some need packages of their own."""

import importlib
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
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
_PLAIN: dict[Any, str] = {str: "text", int: "a whole number", bool: "true or false"}
_LOOKED_AT = {"math": 100, "humaneval": 1, "mbpp": 1}  # rows, of judges that take their time or run programs


def verifier(name: str, **arguments: Any) -> Judge:
    """The verifier of that name.

    Raises:
        ValueError: a package that it needs is not installed; it takes no such argument, or not that value.
    """
    module, kind = VERIFIERS[name]
    try:
        made = getattr(importlib.import_module(module), kind)
    except ImportError as error:
        raise ValueError(f'judge {name}: {error}: pip install "vrpo[eval]"') from error
    takes = {each.name: each.type for each in fields(made) if each.type in _PLAIN} if is_dataclass(made) else {}
    for argument, value in arguments.items():
        if argument not in takes:
            known = f"takes {', '.join(takes)}" if takes else "takes none"
            raise ValueError(f"--judge_arguments for {name}: no {argument!r}. It {known}")
        if type(value) is not takes[argument]:
            wanted = _PLAIN[takes[argument]]
            raise ValueError(f"--judge_arguments for {name}: {argument} must be {wanted}, not {value!r}")
        if value == "":
            raise ValueError(f"--judge_arguments for {name}: {argument} must not be empty")
    try:
        judge: Judge = made(**arguments)
    except ValueError as error:
        raise ValueError(f"--judge_arguments for {name}: {error}") from error
    return judge


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
