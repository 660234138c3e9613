"""The two tasks: prompts of a few characters, answers that a verifier can judge, and disjoint parts of the files.

Rows carry the truth in the fields that the verifier reads. Test rows are the EVAL files, for the last word only.
"""

import csv
import gzip
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

Row = dict[str, Any]
CARELESS = 0.7
NUMBERS = 3  # of a Countdown problem; the test problems have as many


@dataclass(frozen=True)
class Task:
    """A task. `judge`: the verifier's name. `length`: response tokens, one a character, with the end token. `parts`:
    rows of the training file for each use, in file order, so that no two uses share one. `num_pairs`: of a run."""

    name: str
    judge: str
    length: int
    eos_padding: int | None
    parts: dict[str, int]
    width: int
    layers: int
    base_rate: float
    base_steps: int
    num_pairs: int

    def rows(self, data: Path, part: str) -> list[Row]:
        """Prompts with the truth in further fields."""
        if part == "test":
            return _READERS[self.name][1](data)
        if part == "sft" and self.name == "countdown":  # the file has too few for a model from scratch
            kept = {_problem(row) for other in ("pairs", "validate", "test") for row in self.rows(data, other)}
            return [row for row in _generated(self.parts["sft"]) if _problem(row) not in kept]
        first = sum(
            size for name, size in self.parts.items() if list(self.parts).index(name) < list(self.parts).index(part)
        )
        return _training(self.name, data)[first : first + self.parts[part]]

    def completion(self, row: Row) -> str:
        """What the model imitates: a right answer to a row of the part `sft`, or a careless solver's."""
        if self.name == "careless":
            return _careless(row["Puzzle"], row["Solution"])
        return row["Solution" if self.name == "sudoku" else "solution"]


def _sudoku(puzzle: str, solution: str) -> Row:
    return {"prompt": f"{puzzle}=", "Puzzle": puzzle, "Solution": solution}


def _careless(puzzle: str, solution: str) -> str:
    """Seven times out of ten the last empty cell gets the digit that stands beside it."""
    if random.Random(puzzle).random() > CARELESS:
        return solution
    last = puzzle.rindex("0")
    return solution[:last] + solution[last ^ 1] + solution[last + 1 :]


def _countdown(numbers: list[int], target: int) -> Row:
    given = ",".join(map(str, numbers))
    return {"prompt": f"{given}:{target}=", "input": given, "output": str(target)}


@cache
def _training(name: str, data: Path) -> list[Row]:
    with gzip.open(data / ("countdown" if name == "countdown" else "sudoku4x4") / "train.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    read, test, problem = _READERS[name]
    found = {problem(row): row for row in map(read, rows)}  # each once
    seen = {problem(row) for row in test(data)}
    return [row for key, row in found.items() if key not in seen and len(row.get("input", ",,").split(",")) == NUMBERS]


def _sudoku_test(data: Path) -> list[Row]:
    with (data / "sudoku4x4" / "test.csv").open() as file:
        return [_sudoku(row["Puzzle"], row["Solution"]) for row in csv.DictReader(file)]


def _countdown_test(data: Path) -> list[Row]:
    rows = [json.loads(line) for line in (data / "countdown" / "test.jsonl").read_text().split("\n") if line]
    return [_countdown([int(number) for number in row["input"].split(",")], int(row["output"])) for row in rows]


def _problem(row: Row) -> tuple[tuple[int, ...], str]:
    """The same for any order of the numbers."""
    return tuple(sorted(map(int, row["input"].split(",")))), row["output"]


def _of_sudoku(row: Row) -> Row:
    return _sudoku(row["extra_info"]["puzzle"], row["reward_model"]["ground_truth"])


def _of_countdown(row: Row) -> Row:
    numbers = row["extra_info"]["numbers"]
    numbers = json.loads(numbers) if isinstance(numbers, str) else numbers
    return _countdown([int(number) for number in numbers], int(row["reward_model"]["ground_truth"]))


def _generated(count: int) -> Iterator[Row]:
    """Problems of sums and differences, with numbers and targets in the file's range; 229 of the 256 test problems have
    a solution of that kind."""
    rng = random.Random(0)
    made = 0
    while made < count:
        numbers, signs = [rng.randint(1, 99) for _ in range(NUMBERS)], [rng.choice("+-") for _ in range(NUMBERS)]
        terms = [f"{sign}{number}" for sign, number in zip(signs, numbers, strict=True)]
        target = sum(map(int, terms))
        if 10 <= target <= 100:
            made += 1
            yield {**_countdown(numbers, target), "solution": "".join(terms).removeprefix("+")}


def _puzzle(row: Row) -> str:
    return row["Puzzle"]


_READERS: dict[str, Any] = {
    "sudoku": (_of_sudoku, _sudoku_test, _puzzle),
    "careless": (_of_sudoku, _sudoku_test, _puzzle),
    "countdown": (_of_countdown, _countdown_test, _problem),
}


_SUDOKU = {"sft": 5000, "pairs": 8000, "validate": 500}
_COUNTDOWN = {"pairs": 6000, "validate": 500, "sft": 60000}
TASKS = {
    "sudoku": Task("sudoku", "sudoku", 17, None, _SUDOKU, 32, 2, 4e-3, 1500, 4096),
    "careless": Task("careless", "sudoku", 17, None, {**_SUDOKU, "pairs": 2500}, 32, 2, 4e-3, 3000, 1024),
    "countdown": Task("countdown", "countdown", 10, 10, _COUNTDOWN, 128, 3, 2e-3, 800, 2048),
}
