"""Judges by name: which arguments they take."""

from typing import Any

import pytest

from tests.loops import each
from vrpo.rewards.judges import verifier

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("mbpp", {"workers": 0}, "mbpp: workers must be from 1 to 256, not 0"),
    ("humaneval", {"workers": 10**30}, "humaneval: workers must be from 1 to 256"),
    ("numeric", {"field": ""}, "numeric: field must not be empty"),
    ("countdown", {"nonsense": 1}, "countdown: no 'nonsense'"),
    ("sudoku", {"field": 1}, "sudoku: no 'field'. It takes none"),
]


@each(("name", "arguments", "said"), WRONG)
def test_arguments_that_cannot_be_are_named(name: str, arguments: dict[str, Any], said: str) -> None:
    """Kills: a pool of no threads; a column without a name."""
    with pytest.raises(ValueError, match=said):
        verifier(name, **arguments)


@each("seconds", [0, 10**30])
def test_a_judge_of_mathematics_has_a_limit(seconds: int) -> None:
    """Kills: an alarm that cannot be set."""
    pytest.importorskip("math_verify")
    with pytest.raises(ValueError, match="math: seconds must be from 1 to 3600"):
        verifier("math", seconds=seconds)
