"""4x4 Sudoku: every row, column and 2x2 box has 1 to 4, and the clues stay."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vrpo.rewards.extract import before_end, boxed, tagged, typed
from vrpo.rewards.fields import field_of, has_fields
from vrpo.rewards.verdict import Answer, Verdict

CELLS = 16
_RUN = re.compile(r"(?<![0-9])[0-9]{16}(?![0-9])")
_UNITS = tuple(
    tuple(cell for cell in range(CELLS) if unit(cell) == number)
    for unit in (lambda cell: cell // 4, lambda cell: cell % 4, lambda cell: cell // 8 * 2 + cell % 4 // 2)
    for number in range(4)
)
_FORMATS = (("extra_info.puzzle", "reward_model.ground_truth"), ("Puzzle", "Solution"), ("question", "ground_truth"))


@dataclass(frozen=True)
class Sudoku:
    r"""1 if the answer's 16 digits complete the puzzle; any valid completion counts, not only the one in the row.

    The digits are read row by row in the last <answer> tag, or else the last \boxed{...}, or else the whole text: the
    last run of exactly 16 digits, or, in a tag or a box, all its digits if they are 16 (so a grid drawn with spaces and
    bars is read). Empty cells of the puzzle are 0.

    Rows are in one of three formats: `extra_info.puzzle` with `reward_model.ground_truth`; `Puzzle` with `Solution`;
    `question`, a text with the puzzle in it, with `ground_truth`. Digits must be text: as numbers they lose zeros.

    Raises:
        ValueError: a row is in none of the formats.
    """

    def __call__(self, answers: Sequence[Answer]) -> list[Verdict]:
        return [self._judge(answer, *puzzle_of(answer.row, index)) for index, answer in enumerate(answers)]

    def _judge(self, answer: Answer, puzzle: str, _: str) -> Verdict:
        grid = grid_of(answer.text)
        if grid is None:
            return Verdict(0.0, None, "no grid of 16 digits found")
        wrong = fault(grid, puzzle)
        return Verdict(float(wrong is None), grid, wrong)


@dataclass(frozen=True)
class SudokuCells:
    """The share of the puzzle's empty cells that agree with the row's solution; 0 without 16 digits or if a clue moved.

    Partial credit: not to be confused with `Sudoku`, which accepts other solutions than the row's. Grids and rows are
    read as there.

    Raises:
        ValueError: a row is in none of the formats, or its puzzle has no empty cell.
    """

    def __call__(self, answers: Sequence[Answer]) -> list[Verdict]:
        return [self._judge(answer, *puzzle_of(answer.row, index), index) for index, answer in enumerate(answers)]

    def _judge(self, answer: Answer, puzzle: str, solution: str, index: int) -> Verdict:
        empty = [cell for cell in range(CELLS) if puzzle[cell] == "0"]
        if not empty:
            raise ValueError(f"answer {index}: its puzzle {puzzle} has no empty cell")
        grid = grid_of(answer.text)
        if grid is None:
            return Verdict(0.0, None, "no grid of 16 digits found")
        if not keeps_clues(grid, puzzle):
            return Verdict(0.0, grid, "a clue was changed")
        right = sum(grid[cell] == solution[cell] for cell in empty)
        return Verdict(right / len(empty), grid, None if right == len(empty) else f"{right} of {len(empty)} cells")


def puzzle_of(row: Mapping[str, Any], index: int) -> tuple[str, str]:
    """Puzzle and solution of a row, in whichever of the formats it is: 16 digits each."""
    for names in _FORMATS:
        if has_fields(row, *names):
            found = [_RUN.findall(str(field_of(row, name, index))) for name in names]
            if all(found):
                return found[0][-1], found[1][-1]
    wanted = " or ".join("+".join(names) for names in _FORMATS)
    raise ValueError(f"answer {index}: its row is no 4x4 Sudoku: needs {wanted} with 16 digits; it has {sorted(row)}")


def grid_of(text: str) -> str | None:
    """The 16 digits an answer gives; None if it gives none."""
    text = typed(before_end(text))
    inside = tagged(text)
    boxes = boxed(text)
    part = inside if inside is not None else boxes[-1] if boxes else None
    if part is None:
        found = _RUN.findall(text)
        return found[-1] if found else None
    found = _RUN.findall(part)
    digits = "".join(re.findall(r"[0-9]", part))
    return found[-1] if found else digits if len(digits) == CELLS else None


def keeps_clues(grid: str, puzzle: str) -> bool:
    return all(clue in ("0", cell) for cell, clue in zip(grid, puzzle, strict=True))


def fault(grid: str, puzzle: str) -> str | None:
    """What is wrong with a completion of a puzzle; None if nothing is."""
    if not set(grid) <= set("1234"):
        return "not complete: digits other than 1 to 4"
    if not keeps_clues(grid, puzzle):
        return "a clue was changed"
    if any(len({grid[cell] for cell in unit}) < 4 for unit in _UNITS):
        return "a row, column or box has a digit twice"
    return None
