"""The verifiers by name, imported when they are used: some need packages of their own."""

import importlib
from typing import Any

from vrpo.rewards.verdict import Judge

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
