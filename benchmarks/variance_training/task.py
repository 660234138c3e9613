"""The task: 4x4 Sudoku with a verifier, and the model's own answers as preference pairs.

A prompt is the sixteen digits of a puzzle (0 = empty) and "="; an answer is the sixteen digits of a grid. The verifier
says whether an answer solves the puzzle and how many cells are right, so that of two wrong answers one can be better.
"""

import csv
import gzip
import json
from collections.abc import Sequence
from functools import cache
from itertools import permutations, product
from pathlib import Path
from typing import Any

import torch

from vrpo import generate
from vrpo.models.hf import HFDenoiser

CELLS = 16
LENGTH = CELLS + 1  # response tokens: the grid and the end token
# Slices of the training puzzles, in file order, so that no two uses share a puzzle; test puzzles have their own file.
PARTS = {"sft": 5000, "pairs": 13000, "validate": 1000, "heldout": 1000}


@cache
def grids() -> tuple[str, ...]:
    """All 288 valid 4x4 grids."""
    rows = ["".join(row) for row in permutations("1234")]
    found = []
    for grid in map("".join, product(rows, repeat=4)):
        columns = [grid[column::4] for column in range(4)]
        boxes = [grid[8 * i + 2 * j :][:2] + grid[8 * i + 2 * j + 4 :][:2] for i in (0, 1) for j in (0, 1)]
        if all(len(set(unit)) == 4 for unit in (*columns, *boxes)):
            found.append(grid)
    return tuple(found)


@cache
def solutions(puzzle: str) -> tuple[str, ...]:
    """The grids that contain the puzzle's digits: one for a training puzzle, up to four for some test puzzles."""
    return tuple(grid for grid in grids() if all(clue in ("0", cell) for clue, cell in zip(puzzle, grid, strict=True)))


def right_cells(puzzle: str, answer: str) -> int:
    """The verifier: cells that agree with the nearest solution; CELLS means solved, 0 if the answer is no grid."""
    if len(answer) != CELLS:
        return 0
    return max(sum(a == b for a, b in zip(answer, grid, strict=True)) for grid in solutions(puzzle))


def training_puzzles(data: Path, part: str) -> list[tuple[str, str]]:
    """Puzzles and solutions of a part of the training file."""
    first = sum(size for name, size in PARTS.items() if list(PARTS).index(name) < list(PARTS).index(part))
    with gzip.open(data / "train.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    rows = rows[first : first + PARTS[part]]
    return [(row["extra_info"]["puzzle"], row["reward_model"]["ground_truth"]) for row in rows]


def test_puzzles(data: Path) -> list[str]:
    """The 500 test puzzles: for evaluation only."""
    with (data / "test.csv").open() as file:
        return [row["Puzzle"] for row in csv.DictReader(file)]


def answers(denoiser: HFDenoiser, puzzles: Sequence[str], temperature: float = 0.0, seed: int = 0) -> list[str]:
    """One answer per puzzle: greedy at temperature 0, else sampled token by token in random order."""
    generations = generate(
        denoiser,
        [f"{puzzle}=" for puzzle in puzzles],
        max_new_tokens=LENGTH,
        temperature=temperature,
        remasking="random" if temperature else "low_confidence",  # keeping the confident ones would favour the mode
        generator=torch.Generator().manual_seed(seed) if temperature else None,
        batch_size=500,
    )
    return [generation.text or "" for generation in generations]


def marks(puzzles: Sequence[str], given: Sequence[str]) -> list[int]:
    return [right_cells(puzzle, answer) for puzzle, answer in zip(puzzles, given, strict=True)]


def pair_of(puzzle: str, one: str, other: str) -> dict[str, Any] | None:
    """Two sampled answers as a preference row, or None for a tie. Solved answers come first, then those with more right
    cells."""
    (less, worse), (more, better) = sorted((right_cells(puzzle, answer), answer) for answer in (one, other))
    if more == less or not worse:
        return None
    return {"prompt": f"{puzzle}=", "chosen": better, "rejected": worse, "right": [more, less]}
