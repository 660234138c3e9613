"""From the runs to result.json, the picture and the tables of README.md (called by run.py --stage report).

python benchmarks/loss_zoo/report.py       # the page again, from result.json alone
"""

import json
import math
import re
from pathlib import Path
from statistics import mean
from typing import Any

from cells import Cell, Cells, Column, Run, bits, cells_of, gains, minus, packed, scores, unpacked
from matplotlib.figure import Figure
from objectives import ARMS, OBJECTIVES

HERE = Path(__file__).parent
ARMS_SHOWN = ("n1", "n8", "default", "n1_same_steps")
SAME_STEPS = ("n8", "n1_same_steps")
COMPARED = (("n8", "n1"), ("default", "n1"), SAME_STEPS)
MARKS = r"(<!-- tables of result\.json -->\n).*(<!-- end -->)"
TITLES = {
    ("sudoku", False): "Sudoku: share of test puzzles solved",
    ("sudoku", True): "Sudoku, 20 % of the labels flipped: share of test puzzles solved",
    ("ultrafeedback", False): "UltraFeedback: share of held-out pairs ordered rightly",
    ("ultrafeedback", True): "UltraFeedback, 20 % of the labels flipped: share of held-out pairs ordered rightly",
}
SHORT = {name: arm.label for name, arm in ARMS.items()}
RIGHT_LABELS = "Labels learnt: share of the training pairs that the policy orders as their labels say (8 draws)."
FLIPPED_LABELS = RIGHT_LABELS.replace("pairs", "pairs, with right labels and with wrong ones,")


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
    arms = ARMS_SHOWN
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
    """Mean slope of the loss at estimates with so few draws, over that with all of them."""
    values = [run["test"] for run in cell.chosen]
    if f"slope_{draws}" not in values[0]:
        return ""
    return f"{mean(value[f'slope_{draws}'] for value in values) / mean(value['slope_all'] for value in values):.2f}"


def noise_table(cells: Cells, base: float) -> list[str]:
    head = [
        "objective",
        "margin's variance: n = 1",
        "n = 8",
        "default",
        "n = 1, same steps",
        "slope kept with 1 draw",
        "with 8",
    ]
    head += ["margin, nats: n = 1", "n = 8", "n = 1, same steps", "chosen, nats: n = 1", "n = 8", "n = 1, same steps"]
    head += ["collapsed: n = 1", "n = 8", "default", "n = 1, same steps"]
    head += ["solved or ordered at each rate: n = 1", "n = 8", "n = 1, same steps"]
    rows = []
    for objective in ordered(cells):
        own = cells[objective]
        one = own.get("n1")
        rows.append(
            [
                objective,
                *(f"{noise_of(own[arm], objective, arm):.3g}" if arm in own else "" for arm in ARMS_SHOWN),
                *(kept(one, draws) if one else "" for draws in ("n1", "n8")),
                *(
                    f"{own[arm].figure(name):.1f}" if arm in own else ""
                    for name in ("margin", "chosen_change")
                    for arm in ("n1", "n8", "n1_same_steps")
                ),
                *("{}/{}".format(*own[arm].collapsed(base)) if arm in own else "" for arm in ARMS_SHOWN),
                *(by_rate(own[arm]) if arm in own else "" for arm in ("n1", "n8", "n1_same_steps")),
            ]
        )
    return table(head, rows)


def learnt(cells: Cells, arm: str, part: str, rate: float) -> Column:
    """Labels of a part of the training pairs that the policies have learnt."""
    return Column({name: own[arm].learnt(part, rate) for name, own in cells.items() if arm in own})


def learnt_table(cells: Cells, rate: float, parts: dict[str, str]) -> list[str]:
    """At one rate, of the parts with these titles."""
    columns = {(part, arm): learnt(cells, arm, part, rate) for part in parts for arm in ARMS}
    head = ["objective", *(f"{title}: {SHORT[arm]}" for title in parts.values() for arm in ARMS)]
    head += [f"{title}: {difference_label(*SAME_STEPS)}" for title in parts.values()]
    differences = []
    for part in parts:
        one, other = (columns[part, arm].marks for arm in SAME_STEPS)
        differences.append(Column({name: minus(one[name], other[name]) for name in other}))
    rows = []
    for name in ordered(cells):
        marks = [column.marks.get(name) for column in columns.values()]
        shares = ["" if each is None else f"{mean(map(mean, each)):.3f}" for each in marks]
        rows.append([name, *shares, *(show(column.of_subsets(name), sign=True) for column in differences)])
    return table(head, rows)


def learnt_tables(cells: Cells, flipped: bool) -> list[str]:
    some = next(iter(next(iter(cells.values())).values()))
    if "right" not in next(iter(next(iter(some.runs.values())).values())):
        return []
    parts = {"right": "right labels", "wrong": "wrong labels"} if flipped else {"all": "labels"}
    lines = [FLIPPED_LABELS if flipped else RIGHT_LABELS, ""]
    for rate in some.runs:
        lines += [f"Learning rate {rate:g}:", "", *learnt_table(cells, rate, parts)]
    return lines


def rates_table(cells: Cells) -> list[str]:
    """Eight draws minus one at the same steps and the same rate; nothing where that arm did not run."""
    rates = list(next(iter(cells.values()))["n8"].runs)
    columns = []
    for rate in rates:
        one, other = (
            {name: own[arm].marks_at(rate) for name, own in cells.items() if arm in own} for arm in SAME_STEPS
        )
        columns.append(Column({name: minus(one[name], other[name]) for name in other}))
    names = [name for name in ordered(cells) if name in columns[0].marks]
    rows = [[name, *(show(column.interval(name), sign=True) for column in columns)] for name in names]
    return table(["objective", *(f"{difference_label(*SAME_STEPS)}, at {rate:g}" for rate in rates)], rows)


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
        *rates_table(cells),
        *noise_table(cells, base),
        *learnt_tables(cells, flipped),
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


def learnt_picture(result: dict[str, Any], path: Path) -> bool:
    """Right labels learnt against wrong ones: a panel for each rate, a point for each objective and arm. Whether there
    are any."""
    cells = cells_of(result["runs"], "ultrafeedback", True)
    if not cells:
        return False
    rates = list(next(iter(cells.values()))["n8"].runs)
    figure = Figure(figsize=(7 * len(rates), 7), layout="constrained")
    panels = figure.subplots(1, len(rates), squeeze=False, sharex=True, sharey=True)[0]
    for axis, rate in zip(panels, rates, strict=True):
        for (arm, label), marker in zip(SHORT.items(), "osD^", strict=True):
            right, wrong = (learnt(cells, arm, part, rate).marks for part in ("right", "wrong"))
            points = {name: (mean(map(mean, wrong[name])), mean(map(mean, right[name]))) for name in right}
            axis.plot(*zip(*points.values(), strict=True) if points else ([], []), marker, markersize=5, label=label)
            for name, at in points.items():
                axis.annotate(name, at, xytext=(4, 0), textcoords="offset points", fontsize=6, va="center")
        axis.axline((0.5, 0.5), slope=1, color="0.7", linewidth=0.8)
        axis.set(title=f"learning rate {rate:g}", xlabel="wrong labels learnt", ylabel="right labels learnt")
        axis.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    return True


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
    lines += ["![scores, differences and slopes](zoo.png)", ""]
    if learnt_picture(result, folder / "learnt.png"):
        lines += ["![right labels learnt against wrong ones](learnt.png)", ""]
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
