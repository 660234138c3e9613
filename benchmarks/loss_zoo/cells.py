"""What a study found, from its runs: marks of 0 and 1 by objective, arm, rate and seed, their means and intervals."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean, variance
from typing import Any

from objectives import ARMS, OBJECTIVES

T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}  # Student's t, 97.5 %, by degrees of freedom
Z = 1.960
Run = dict[str, Any]
Marks = list[list[int]]  # by seed, by problem


def packed(marks: str) -> str:
    """Marks of 0 and 1 as their number and a hexadecimal number; "" stays."""
    return f"{len(marks)}:{int(marks, 2):x}" if marks else ""


def unpacked(marks: str) -> list[int]:
    count, _, digits = marks.partition(":")
    return [int(mark) for mark in f"{int(digits, 16):0{count}b}"]


def bits(run: Run, part: str) -> list[int]:
    """What is counted: problems solved, where a verifier can tell, else pairs ordered rightly."""
    return unpacked(run[part]["solved"] or run[part]["ordered"])


def student(freedom: int) -> float:
    """97.5 % quantile of Student's t; beyond the table by its expansion, which is then within 1 %."""
    if freedom in T:
        return T[freedom]
    return Z + (Z**3 + Z) / (4 * freedom) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * freedom**2)


@dataclass(frozen=True)
class Column:
    """One quantity of all objectives: marks, or differences of marks. The chance of seeds is taken to be the same for
    all of them, and estimated from all together: three seeds of one objective say next to nothing about it."""

    marks: dict[str, Marks]

    @property
    def over_seeds(self) -> float:
        """Half a 95 % interval of a single seed; 0 where there is one seed."""
        several = [[mean(row) for row in each] for each in self.marks.values() if len(each) > 1]
        freedom = sum(len(seeds) - 1 for seeds in several)
        if not freedom:
            return 0.0
        pooled = sum(variance(seeds) * (len(seeds) - 1) for seeds in several) / freedom
        return student(freedom) * math.sqrt(pooled)

    def interval(self, objective: str) -> tuple[float, float] | None:
        """Mean over seeds and problems, and half a 95 % interval with the chance of both: half widths added in
        squares."""
        if objective not in self.marks:
            return None
        values = self.marks[objective]
        problems = [mean(column) for column in zip(*values, strict=True)]
        square = self.over_seeds**2 / len(values) + Z**2 * variance(problems) / len(problems)
        return mean(problems), math.sqrt(square)

    def of_subsets(self, objective: str) -> tuple[float, float] | None:
        """Mean over seeds, each with problems of its own, and half a 95 % interval with the chance of seeds, which
        contains that of problems; None where it is not known."""
        if objective not in self.marks or not self.over_seeds:
            return None
        values = [mean(row) for row in self.marks[objective]]
        return mean(values), self.over_seeds / math.sqrt(len(values))


def minus(one: Marks, other: Marks) -> Marks:
    return [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip(one, other, strict=True)]


@dataclass(frozen=True)
class Cell:
    """The runs of an objective under an arm, by rate and seed; `base`: the score before training."""

    runs: dict[float, dict[int, Run]]

    @property
    def rate(self) -> float:
        """Of the highest mean score on the validation part; the smaller one of equals."""
        scores = {
            rate: mean(mean(bits(run, "validate")) for run in seeds.values()) for rate, seeds in self.runs.items()
        }
        return max(sorted(scores), key=lambda rate: scores[rate])

    @property
    def chosen(self) -> list[Run]:
        return [run for _, run in sorted(self.runs[self.rate].items())]

    @property
    def marks(self) -> Marks:
        return self.marks_at(self.rate)

    def marks_at(self, rate: float) -> Marks:
        return [bits(run, "test") for _, run in sorted(self.runs[rate].items())]

    def learnt(self, part: str, rate: float) -> Marks:
        """A 1 for each training pair of a part, or of `all`, that is ordered as its label says: of the `wrong` ones,
        where labels are flipped, the other way round than it should be."""
        parts = ("right", "wrong") if part == "all" else (part,)
        runs = [run for _, run in sorted(self.runs[rate].items())]
        return [
            [
                mark ^ (each == "wrong" and run["job"]["flipped"])
                for each in parts
                for mark in unpacked(run[each]["ordered"])
            ]
            for run in runs
        ]

    def figure(self, name: str) -> float:
        return mean(run["test"][name] for run in self.chosen)

    def collapsed(self, base: float) -> tuple[int, int]:
        """Runs of all rates and seeds that ended with less than half of what was there before, or broke the model."""
        runs = [run for seeds in self.runs.values() for run in seeds.values()]
        return sum(has_collapsed(run, base) for run in runs), len(runs)


def has_collapsed(run: Run, base: float) -> bool:
    """A number that is none; half of the solved problems lost; or, where nothing is solved, chosen answers that have
    lost a nat per token."""
    numbers = [value for entry in run["log"] for value in entry]
    if not all(math.isfinite(float(value)) for value in numbers):
        return True
    if run["test"]["solved"]:
        return mean(bits(run, "test")) < base / 2
    return run["test"]["chosen_change"] / run["test"]["tokens"] < -1


Cells = dict[str, dict[str, Cell]]  # by objective, by arm


def cells_of(runs: Iterable[Run], task: str, flipped: bool) -> Cells:
    """Whole seeds only: those for which an objective has its arms at all rates. The arm of the same steps is there if
    it has these seeds."""
    found: dict[str, dict[tuple[str, float, int], Run]] = defaultdict(dict)
    for run in runs:
        job = run["job"]
        if (job["task"], job["flipped"]) == (task, flipped):
            found[job["objective"]][job["arm"], job["rate"], job["seed"]] = run
    rates = sorted({rate for own in found.values() for _, rate, _ in own})
    cells = {}
    for objective, own in found.items():
        needed = {"n8", "default"} | (set() if OBJECTIVES[objective].grouped else {"n1"})

        def has(arm: str, seed: int, own: dict[tuple[str, float, int], Run] = own) -> bool:
            return all((arm, rate, seed) in own for rate in rates)

        seeds = [seed for seed in sorted({seed for *_, seed in own}) if all(has(arm, seed) for arm in needed)]
        arms = [arm for arm in ARMS if arm in needed or all(has(arm, seed) for seed in seeds)]
        if seeds:
            cells[objective] = {
                arm: Cell({rate: {seed: own[arm, rate, seed] for seed in seeds} for rate in rates}) for arm in arms
            }
    return cells


def rival(cells: Cells, objective: str) -> Cell | None:
    """One draw of the objective; of the plain loss, where the objective itself needs several."""
    plain = objective if "n1" in cells[objective] else objective.removesuffix("_jackknife")
    return cells[plain].get("n1") if plain in cells else None


def scores(cells: Cells, arm: str) -> Column:
    return Column({objective: own[arm].marks for objective, own in cells.items() if arm in own})


def gains(cells: Cells, arm: str, against: str) -> Column:
    """An arm minus another, paired by seed and problem."""
    found = {}
    for objective, own in cells.items():
        other = rival(cells, objective) if against == "n1" else own.get(against)
        if other is not None:
            seeds = min(len(own[arm].marks), len(other.marks))
            found[objective] = minus(own[arm].marks[:seeds], other.marks[:seeds])
    return Column(found)
