"""Loops that can fail (loops.py)."""

import os
from pathlib import Path

import pytest

from tests.loops import each


def test_a_loop_runs_every_case_and_names_those_that_fail() -> None:
    seen: list[tuple[int, str]] = []

    @each("word", ["a", "b"], ids=["first", "second"])
    @each(("number", "square"), [(1, 1), (2, 5), (3, 8)])
    def law(number: int, square: int, word: str) -> None:
        seen.append((number, word))
        assert number**2 == square

    with pytest.raises(AssertionError, match=r"2 of 2\nfirst: AssertionError: 2 of 3\n\(2, 5\): ") as caught:
        law()
    assert seen == [(number, word) for word in "ab" for number in (1, 2, 3)]
    assert "(3, 8)" in str(caught.value)
    with pytest.raises(AssertionError, match="nothing"):
        each("number", [])


@each("tail", ["x", "y"])
def test_a_case_has_a_folder_and_patches_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tail: str) -> None:
    assert not list(tmp_path.iterdir())
    assert "OF_A_CASE" not in os.environ
    (tmp_path / tail).write_text("")
    monkeypatch.setenv("OF_A_CASE", tail)
