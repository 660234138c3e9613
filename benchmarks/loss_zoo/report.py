"""From the runs to result.json, the picture and the tables of README.md (called by run.py --stage report).

python benchmarks/loss_zoo/report.py       # the page again, from result.json alone
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, variance
from typing import Any

from matplotlib.figure import Figure
from objectives import ARMS, OBJECTIVES

HERE = Path(__file__).parent
T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}  # Student's t, 97.5 %, by degrees of freedom
Z = 1.960
SAME_STEPS = ("n8", "n1_same_steps")
COMPARED = (("n8", "n1"), ("default", "n1"), SAME_STEPS)
MARKS = r"(<!-- tables of result\.json -->\n).*(<!-- end -->)"
Run = dict[str, Any]
Marks = list[list[int]]  # by seed, by problem
TITLES = {
    ("sudoku", False): "Sudoku: share of test puzzles solved",
    ("sudoku", True): "Sudoku, 20 % of the labels flipped: share of test puzzles solved",
    ("ultrafeedback", False): "UltraFeedback: share of held-out pairs ordered rightly",
    ("ultrafeedback", True): "UltraFeedback, 20 % of the labels flipped: share of held-out pairs ordered rightly",
}
SHORT = {name: arm.label for name, arm in ARMS.items()}
FITS = (
    "Share of the training pairs that the policy orders as their labels say, of pairs with right labels and with wrong "
    "ones, mean over seeds, at each rate:"
)


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

    def of_subsets(self, objective: str) -> tuple[float, float]:
        """Mean and half a 95 % interval where each seed has problems of its own, so that the chance of seeds contains
        that of problems."""
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
        return [bits(run, "test") for run in self.chosen]

    def fitted(self, part: str, rate: float) -> Marks:
        """A 1 for each training pair of a part that is ordered as its label says, where labels are flipped."""
        runs = [run for _, run in sorted(self.runs[rate].items())]
        return [[mark if part == "right" else 1 - mark for mark in unpacked(run[part]["ordered"])] for run in runs]

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
    """Whole seeds only: those for which an objective has all its arms and rates; the arm of the same steps may be
    missing."""
    found: dict[str, dict[tuple[str, float, int], Run]] = defaultdict(dict)
    for run in runs:
        job = run["job"]
        if (job["task"], job["flipped"]) == (task, flipped):
            found[job["objective"]][job["arm"], job["rate"], job["seed"]] = run
    cells = {}
    rates = {rate for own in found.values() for _, rate, _ in own}
    for objective, own in found.items():
        needed = {"n8", "default"} | (set() if OBJECTIVES[objective].grouped else {"n1"})
        arms = [arm for arm in ARMS if arm in needed | {arm for arm, *_ in own}]
        seeds = sorted({seed for *_, seed in own})
        whole = [seed for seed in seeds if all((arm, rate, seed) in own for arm in arms for rate in rates)]
        if whole:
            cells[objective] = {
                arm: Cell({rate: {seed: own[arm, rate, seed] for seed in whole} for rate in sorted(rates)})
                for arm in arms
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


def ordered(cells: Cells) -> list[str]:
    """Objectives by their gain from eight draws."""
    column = gains(cells, *COMPARED[0])
    found = {objective: column.interval(objective) for objective in cells}
    return sorted(cells, key=lambda objective: -(found[objective] or (-math.inf, 0.0))[0])


def show(found: tuple[float, float] | None, sign: bool = False) -> str:
    if found is None:
        return ""
    centre, half = found
    return f"{centre:{'+' if sign else ''}.3f} [{centre - half:.3f}, {centre + half:.3f}]"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)] + [""]


def gains_table(cells: Cells) -> list[str]:
    arms = ("n1", "n8", "default")
    head = ["objective", *(SHORT[arm] for arm in arms), *(difference_label(*pair) for pair in COMPARED)]
    levels = {arm: scores(cells, arm) for arm in arms}
    differences = [gains(cells, *pair) for pair in COMPARED]
    rows = []
    for objective in ordered(cells):
        own = cells[objective]
        shown = [f"{show(levels[arm].interval(objective))}, {own[arm].rate:g}" if arm in own else "" for arm in arms]
        rows.append([objective, *shown, *(show(column.interval(objective), sign=True) for column in differences)])
    return table(head, rows)


def difference_label(arm: str, against: str) -> str:
    return f"{SHORT[arm]} minus {SHORT[against]}"


def noise_of(cell: Cell, objective: str, arm: str) -> float:
    """Variance of the margin in nats squared, under the arm's own plan, of the policy that it made."""
    name = "variance" if OBJECTIVES[objective].referenced else "variance_alone"
    return cell.figure(f"{name}_{arm.removesuffix('_same_steps')}")


def kept(cell: Cell, draws: str) -> str:
    """Mean slope of the loss at estimates with so few draws, over that with 64."""
    values = [run["test"] for run in cell.chosen]
    if f"slope_{draws}" not in values[0]:
        return ""
    return f"{mean(value[f'slope_{draws}'] for value in values) / mean(value['slope_all'] for value in values):.2f}"


def noise_table(cells: Cells, base: float) -> list[str]:
    head = ["objective", "margin's variance: n = 1", "n = 8", "default", "slope kept with 1 draw", "with 8"]
    head += ["margin, nats: n = 1", "n = 8", "chosen, nats: n = 1", "n = 8", "collapsed: n = 1", "n = 8", "default"]
    head += ["solved or ordered at each rate: n = 1", "n = 8"]
    rows = []
    for objective in ordered(cells):
        own = cells[objective]
        one = own.get("n1")
        rows.append(
            [
                objective,
                *(f"{noise_of(own[arm], objective, arm):.3g}" if arm in own else "" for arm in ("n1", "n8", "default")),
                *(kept(one, draws) if one else "" for draws in ("n1", "n8")),
                *(
                    f"{own[arm].figure(name):.1f}" if arm in own else ""
                    for name in ("margin", "chosen_change")
                    for arm in ("n1", "n8")
                ),
                *("{}/{}".format(*own[arm].collapsed(base)) if arm in own else "" for arm in ("n1", "n8", "default")),
                *(by_rate(own[arm]) if arm in own else "" for arm in ("n1", "n8")),
            ]
        )
    return table(head, rows)


def fit(cells: Cells, arm: str, part: str, rate: float) -> Column:
    """How many labels of the training pairs are learnt."""
    return Column({name: own[arm].fitted(part, rate) for name, own in cells.items() if arm in own})


def fit_table(cells: Cells) -> list[str]:
    """Of runs with flipped labels: how many of the right labels are learnt, and of the wrong ones."""
    head = ["objective", "rate", *(f"{part} labels: {SHORT[arm]}" for part in ("right", "wrong") for arm in ARMS)]
    head += [f"{part}: {difference_label(*SAME_STEPS)}" for part in ("right", "wrong")]
    rows = []
    for objective in ordered(cells):
        own = cells[objective]
        for rate in own["n8"].runs:
            row = [objective, f"{rate:g}"]
            for part in ("right", "wrong"):
                shares = {arm: fit(cells, arm, part, rate).marks.get(objective) for arm in ARMS}
                row += ["" if marks is None else f"{mean(map(mean, marks)):.3f}" for marks in shares.values()]
            for part in ("right", "wrong"):
                one, other = (fit(cells, arm, part, rate).marks for arm in SAME_STEPS)
                column = Column({name: minus(one[name], other[name]) for name in other})
                row.append(show(column.of_subsets(objective), sign=True) if objective in other else "")
            rows.append(row)
    return table(head, rows)


def by_rate(cell: Cell) -> str:
    return ", ".join(
        f"{mean(mean(bits(run, 'test')) for run in seeds.values()):.3f}" for _, seeds in sorted(cell.runs.items())
    )


def section(result: dict[str, Any], task: str, flipped: bool) -> list[str]:
    cells = cells_of(result["runs"], task, flipped)
    if not cells:
        return []
    some = next(iter(next(iter(cells.values())).values()))
    base = base_score(result, task)
    seeds = sorted({len(cell.marks) for own in cells.values() for cell in own.values()})
    rates = ", ".join(f"{rate:g}" for rate in some.runs)
    return [
        f"### {TITLES[task, flipped]}",
        "",
        f"{f'Before: {base:.3f}. ' if base else ''}Learning rates {rates}; seeds: {' to '.join(map(str, seeds))}; "
        f"{len(some.marks[0])} problems. Beside each score the rate that the validation part chose.",
        "",
        *gains_table(cells),
        *noise_table(cells, base),
        *([FITS, "", *fit_table(cells)] if flipped else []),
    ]


def base_score(result: dict[str, Any], task: str) -> float:
    """Share of test problems solved before training; 0 where nothing is solved."""
    return mean(unpacked(result["base"][task])) if result["base"][task] else 0.0


def picture(result: dict[str, Any], folder: Path) -> None:
    parts = [(key, cells) for key in TITLES if (cells := cells_of(result["runs"], *key))]
    figure = Figure(figsize=(14, 1 + sum(1 + 0.3 * len(cells) for _, cells in parts)), layout="constrained")
    rows = figure.subplots(len(parts), 3, squeeze=False, height_ratios=[2 + len(cells) for _, cells in parts])
    for (key, cells), axes in zip(parts, rows, strict=True):
        names = ordered(cells)[::-1]
        levels = {SHORT[arm]: scores(cells, arm) for arm in ARMS}
        dots(axes[0], names, levels, 0)
        dots(axes[1], names, {difference_label(*pair): gains(cells, *pair) for pair in COMPARED}, 4)
        slopes(axes[2], names, cells)
        axes[1].axvline(0, color="0.5", linewidth=0.8)
        if base := base_score(result, key[0]):
            axes[0].axvline(base, color="0.5", linestyle="--", linewidth=0.8)
        axes[0].set_title(TITLES[key], fontsize=9)
        axes[1].set_title("differences, 95 % intervals", fontsize=9)
        axes[2].set_title("slope of the loss kept, policies of n = 1", fontsize=9)
        for axis in axes:
            axis.set_yticks(range(len(names)), names)
            axis.grid(alpha=0.3)
    handles = {
        label: handle for axis in rows[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(folder / "zoo.png", dpi=110)


def dots(axis: Any, names: list[str], columns: dict[str, Column], first: int) -> None:
    """An interval for each objective and column, side by side."""
    for index, (label, column) in enumerate(columns.items()):
        style = {"fmt": "o", "markersize": 3, "linewidth": 1, "color": f"C{first + index}", "label": label}
        for place, objective in enumerate(names):
            if (found := column.interval(objective)) is not None:
                axis.errorbar(found[0], place + 0.18 * (1.5 - index), xerr=found[1], **style)


def slopes(axis: Any, names: list[str], cells: Cells) -> None:
    """What noise leaves of the loss's slope."""
    for place, objective in enumerate(names):
        for draws, marker, colour in (("n1", "o", "C3"), ("n8", "s", "C0")):
            one = cells[objective].get("n1")
            if one is not None and (share := kept(one, draws)):
                label = "slope kept with 1 draw" if draws == "n1" else "with 8 draws"
                axis.plot(float(share), place, marker, color=colour, label=label)
    axis.axvline(1, color="0.5", linewidth=0.8)


def fit_picture(result: dict[str, Any], folder: Path) -> None:
    """Right labels learnt against wrong ones: a panel for each rate, a point for each objective and arm."""
    cells = cells_of(result["runs"], "ultrafeedback", True)
    if not cells:
        return
    rates = list(next(iter(cells.values()))["n8"].runs)
    figure = Figure(figsize=(7 * len(rates), 7), layout="constrained")
    panels = figure.subplots(1, len(rates), squeeze=False, sharex=True, sharey=True)[0]
    for axis, rate in zip(panels, rates, strict=True):
        for (arm, label), marker in zip(SHORT.items(), "osD^", strict=True):
            right, wrong = (fit(cells, arm, part, rate).marks for part in ("right", "wrong"))
            points = [(mean(map(mean, wrong[name])), mean(map(mean, right[name])), name) for name in right]
            axis.plot(*zip(*(point[:2] for point in points), strict=True), marker, markersize=5, alpha=0.8, label=label)
            for x, y, name in points:
                axis.annotate(name, (x, y), xytext=(4, 0), textcoords="offset points", fontsize=6, va="center")
        axis.set(title=f"learning rate {rate:g}", xlabel="wrong labels learnt", ylabel="right labels learnt")
        axis.axline((0.5, 0.5), slope=1, color="0.7", linewidth=0.8)
        axis.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    figure.savefig(folder / "fit.png", dpi=110)


def settings_table() -> list[str]:
    rows = [
        [
            name,
            ", ".join(f"{key}={value}" for key, value in each.fields.items()),
            *("" if beta is None else f"{beta:g}" for beta in (each.sudoku, each.ultrafeedback)),
            each.why,
        ]
        for name, each in OBJECTIVES.items()
    ]
    return table(["objective", "settings", "beta, Sudoku", "beta, UltraFeedback", "why this beta"], rows)


def short(value: Any, name: str = "") -> Any:
    """Five digits, and marks packed."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: short(each, key) for key, each in value.items()}
    if name in ("solved", "ordered"):
        return packed(value)
    return [short(each) for each in value] if isinstance(value, list) else value


def write(result: dict[str, Any], folder: Path) -> None:
    """The table and the picture into a folder's page."""
    lines = settings_table()
    for key in TITLES:
        lines += section(result, *key)
    picture(result, folder)
    fit_picture(result, folder)
    lines += ["![scores, differences and slopes](zoo.png)", ""]
    if (folder / "fit.png").is_file():
        lines += ["![labels learnt](fit.png)", ""]
    text = "\n".join(lines)
    page = folder / "README.md"
    if not page.is_file():
        page.write_text("<!-- tables of result.json -->\n<!-- end -->\n")
    page.write_text(re.sub(MARKS, lambda found: found[1] + text + found[2], page.read_text(), flags=re.DOTALL))


def report(runs: list[Run], base: dict[str, str], folder: Path) -> None:
    """Writes result.json, zoo.png and the tables.

    Args:
        base: the marks of each task's base model on the test part, "" where nothing is solved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    result = {"base": {task: packed(marks) for task, marks in base.items()}, "runs": [short(run) for run in runs]}
    lines = ",\n".join(json.dumps(run, separators=(",", ":")) for run in result["runs"])
    (folder / "result.json").write_text(f'{{"base": {json.dumps(result["base"])},\n"runs": [\n{lines}\n]}}\n')
    write(result, folder)


if __name__ == "__main__":
    write(json.loads((HERE / "result.json").read_text()), HERE)
