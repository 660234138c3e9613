"""4x4 Sudoku puzzles for the recipe of this folder, made here: no network, the same files every time.

    python recipes/sudoku_rounds_cpu/data.py [--folder runs/sudoku/data]

sft.jsonl is for the base model to imitate: puzzles with the answers of careless solvers, who know the rules, but seven
times out of ten write a digit into the last empty cell that stands beside it already. prompts.jsonl has the puzzles
that the model answers in the rounds; validation.jsonl and test.jsonl are for measuring. All puzzles are different and
have one solution. The fields `Puzzle` and `Solution` are what the judge `sudoku` and the task `sudoku` of `vrpo eval`
read.
"""

import argparse
import json
import random
from itertools import permutations, product
from pathlib import Path

CELLS = 16
PARTS = {"sft": 10000, "prompts": 3000, "validation": 500, "test": 1000}
EMPTY = (3, 6)  # cells of a puzzle: this many at least and at most
CARELESS = 0.7  # probability that a solver repeats a digit


def grids() -> list[str]:
    """All 288 valid grids."""
    rows = ["".join(row) for row in permutations("1234")]
    return [grid for grid in map("".join, product(rows, repeat=4)) if valid(grid)]


def valid(grid: str) -> bool:
    columns = [grid[column::4] for column in range(4)]
    boxes = [grid[at : at + 2] + grid[at + 4 : at + 6] for at in (0, 2, 8, 10)]
    return all(len(set(unit)) == 4 for unit in (*columns, *boxes))


def puzzle_of(grid: str, having: dict[tuple[int, str], int], chance: random.Random) -> str:
    """The grid with cells emptied in random order, as long as it stays the only solution.

    `having`: the grids that have a digit in a cell, a bit for each.
    """
    puzzle, empty = list(grid), chance.randint(*EMPTY)
    for cell in chance.sample(range(CELLS), CELLS):
        if puzzle.count("0") < empty:
            puzzle[cell] = "0"
            solutions = -1
            for place, clue in enumerate(puzzle):
                solutions &= -1 if clue == "0" else having[place, clue]
            if solutions.bit_count() > 1:
                puzzle[cell] = grid[cell]
    return "".join(puzzle)


def puzzles(count: int) -> list[tuple[str, str]]:
    """Different puzzles with their solutions."""
    known, chance, found = grids(), random.Random(0), {}
    having = {
        (cell, digit): sum(1 << number for number, grid in enumerate(known) if grid[cell] == digit)
        for cell, digit in product(range(CELLS), "1234")
    }
    while len(found) < count:
        grid = chance.choice(known)
        found[puzzle_of(grid, having, chance)] = grid
    return list(found.items())


def careless(puzzle: str, solution: str, chance: random.Random) -> str:
    """What a careless solver writes: sometimes, in the last empty cell, the digit to its left (right, in the first
    column)."""
    cell = puzzle.rindex("0")
    beside = solution[cell - 1] if cell % 4 else solution[cell + 1]
    return solution[:cell] + beside + solution[cell + 1 :] if chance.random() < CARELESS else solution


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/sudoku/data"))
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    made, chance = iter(puzzles(sum(PARTS.values()))), random.Random(1)
    for part, size in PARTS.items():
        rows = []
        for puzzle, solution in (next(made) for _ in range(size)):
            truth = (
                {"completion": careless(puzzle, solution, chance)}
                if part == "sft"
                else {"Puzzle": puzzle, "Solution": solution}
            )
            rows.append(json.dumps({"prompt": f"{puzzle}=", **truth}))
        (folder / f"{part}.jsonl").write_text("\n".join(rows) + "\n")
        print(f"{folder / part}.jsonl: {size} puzzles")


if __name__ == "__main__":
    main()
