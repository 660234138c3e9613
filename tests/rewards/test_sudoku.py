"""4x4 Sudoku: validity against enumeration, clues, rows of three formats, partial credit."""

import csv
import gzip
import itertools
import json

import pytest

from tests.loops import each
from vrpo.rewards.sudoku import Sudoku, SudokuCells, fault, grid_of, puzzle_of
from vrpo.rewards.verdict import Answer, Judge

SOLUTION = "4321123434122143"
PUZZLE = "0321003004002100"
ROW = {"Puzzle": PUZZLE, "Solution": SOLUTION}
LINES = list(itertools.permutations("1234"))


def valid_by_hand(grid):
    rows = [grid[4 * i : 4 * i + 4] for i in range(4)]
    columns = [grid[i::4] for i in range(4)]
    boxes = [rows[r][c : c + 2] + rows[r + 1][c : c + 2] for r in (0, 2) for c in (0, 2)]
    return all(sorted(unit) == list("1234") for unit in rows + columns + boxes)


def test_the_288_grids():
    """All 13,824 grids with right rows, the first of them 1234, against slices: there are 288 / 24 valid ones.

    Kills: boxes or columns not looked at, or cut elsewhere.
    """
    grids = ["1234" + "".join("".join(row) for row in rows) for rows in itertools.product(LINES, repeat=3)]
    valid = [grid for grid in grids if fault(grid, "0" * 16) is None]
    assert len(valid) == 12
    assert valid == [grid for grid in grids if valid_by_hand(grid)]
    assert fault("1111222233334444", "0" * 16) == "a row, column or box has a digit twice"


def test_any_valid_completion_counts():
    """Kills: comparison with the listed solution."""
    puzzle = "1234341221430000"
    row = {"Puzzle": "1234" + "0" * 12, "Solution": "1234341221434321"}
    other = "1234341243212143"
    assert fault(other, puzzle) == "a clue was changed"
    verdicts = Sudoku()([Answer("q", f"<answer>{grid}</answer>", row) for grid in (row["Solution"], other)])
    assert [verdict.reward for verdict in verdicts] == [1, 1]


@each(
    ("text", "reason"),
    [
        (f"<answer>{SOLUTION}</answer>", None),
        (f"<answer>{PUZZLE}</answer>", "not complete: digits other than 1 to 4"),
        ("<answer>1234341221434321</answer>", "a clue was changed"),
        ("<answer>4321133434122143</answer>", "a row, column or box has a digit twice"),
        ("<answer>432112343412214</answer>", "no grid of 16 digits found"),
        (f"<answer>{SOLUTION}1</answer>", "no grid of 16 digits found"),
        (f"<answer>no</answer> {SOLUTION}", "no grid of 16 digits found"),
        ("", "no grid of 16 digits found"),
    ],
)
def test_verdicts(text, reason):
    """Kills: a longer or shorter run of digits cut or filled to 16; clues not compared; text beside the tag read."""
    verdict = Sudoku()([Answer("q", text, ROW)])[0]
    assert verdict.reward == float(reason is None)
    assert verdict.reason == reason


@each(
    "text",
    [
        SOLUTION,
        f"{PUZZLE} gives {SOLUTION}<|eot_id|>{PUZZLE}",
        f"<answer>The solved 4x4 Sudoku is:\n{SOLUTION}\n</answer>",
        f"\\boxed{{{SOLUTION}}}",
        "<answer>4 3 | 2 1\n1 2 | 3 4\n3 4 | 1 2\n2 1 | 4 3</answer>",
    ],
)
def test_grids(text):
    assert grid_of(text) == SOLUTION


def test_partial_credit():
    """Kills: clues counted as right cells (a lazy copy of the puzzle would earn half); 16 as the denominator."""
    empty = PUZZLE.count("0")
    wrong = "4321213434122143"  # two cells exchanged
    texts = [f"<answer>{grid}</answer>" for grid in (SOLUTION, PUZZLE, wrong, "1" * 16)] + [""]
    verdicts = SudokuCells()([Answer("q", text, ROW) for text in texts])
    assert [verdict.reward for verdict in verdicts] == [1, 0, pytest.approx((empty - 2) / empty), 0, 0]
    assert verdicts[2].reason == f"{empty - 2} of {empty} cells"
    assert verdicts[3].reason == "a clue was changed"
    with pytest.raises(ValueError, match="no empty cell"):
        SudokuCells()([Answer("q", SOLUTION, {"Puzzle": SOLUTION, "Solution": SOLUTION})])


@each(
    "row",
    [
        ROW,
        {"extra_info": {"puzzle": PUZZLE}, "reward_model": {"ground_truth": SOLUTION}},
        {"question": f"Solve the following Sudoku puzzle: {PUZZLE}\n", "ground_truth": SOLUTION},
    ],
)
def test_formats(row):
    assert puzzle_of(row, 0) == (PUZZLE, SOLUTION)
    assert isinstance(Sudoku(), Judge)
    assert isinstance(SudokuCells(), Judge)


def test_other_rows_are_errors():
    """Kills: a puzzle read as a number, whose leading zeros are lost."""
    for row in ({}, {"Puzzle": int(PUZZLE), "Solution": SOLUTION}, {"question": "no", "ground_truth": SOLUTION}):
        with pytest.raises(ValueError, match=r"answer 2: its row is no 4x4 Sudoku"):
            puzzle_of(row, 2)


def test_real_rows(vrpo_data):
    lines = gzip.decompress(vrpo_data("sudoku4x4/train.jsonl.gz").read_bytes()).split(b"\n")
    rows = [json.loads(line) for line in lines if line.strip()]
    rows += csv.DictReader(vrpo_data("sudoku4x4/test.csv").read_text().splitlines())
    found = [puzzle_of(row, index) for index, row in enumerate(rows)]
    assert len(found) == 20_500
    assert all(fault(solution, puzzle) is None for puzzle, solution in found)
