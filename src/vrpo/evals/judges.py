"""The judges of our own tasks, looked up when they are first needed: the only place that knows where they live."""

import importlib

from vrpo.rewards.verdict import Judge

_JUDGES = {  # what a task asks for -> module and class of vrpo.rewards
    "numeric": ("vrpo.rewards.mathematics", "Numeric"),
    "math_verify": ("vrpo.rewards.mathematics", "MathVerify"),
    "countdown": ("vrpo.rewards.puzzles", "Countdown"),
    "sudoku": ("vrpo.rewards.puzzles", "Sudoku"),
    "humaneval": ("vrpo.rewards.code", "HumanEval"),
    "mbpp": ("vrpo.rewards.code", "MBPP"),
    "instructions": ("vrpo.rewards.instructions", "Instructions"),
}


def judge_of(name: str) -> Judge:
    """The judge of that name, with its defaults.

    Raises:
        ValueError: its module, or a package that it needs, is not installed.
    """
    module, kind = _JUDGES[name]
    try:
        judge = getattr(importlib.import_module(module), kind)()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the judge {kind} of {module} cannot be had: {error}") from error
    assert isinstance(judge, Judge)
    return judge
