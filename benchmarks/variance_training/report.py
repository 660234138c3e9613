"""From the runs to result.json, the plots and the tables of README.md (called by run.py --stage report)."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure

HERE = Path(__file__).parent
Run = dict[str, Any]
Runs = dict[int, Run]  # by seed
Groups = dict[tuple[str, int, int], Runs]
Where = list[tuple[str, int]]  # arms and their distinct pairs
Panels = dict[str, tuple[Groups, Where]]
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}  # 97.5 %, by df
LABELS = {
    "naive": "naive: n = 1, not shared",
    "paper1": "paper's plan, n = 1",
    "paper2": "paper's plan, n = 2",
    "paper8": "paper's plan, n = 8 (VRPO)",
    "ours2": "ours, n = 2",
    "ours8": "ours, n = 8",
    "auto": "ours, n = 8, num_draws = auto",
}
PARTNERS = {"ours2": "paper2", "ours8": "paper8", "auto": "paper8"}
COLOURS = {name: f"C{index}" for index, name in enumerate(LABELS)}
MEASURES: dict[str, Callable[[Run], float]] = {
    "solved": lambda run: run["puzzles"]["solved"],
    "cells": lambda run: run["puzzles"]["cells"],
    "sampled cells": lambda run: run["sampled"]["cells"],
    "margin": lambda run: run["pairs"]["margin"],
    "loss": lambda run: run["pairs"]["loss"],
    "accuracy": lambda run: run["pairs"]["accuracy"],
    "chosen": lambda run: run["pairs"]["chosen_change"],
    "rejected": lambda run: run["pairs"]["rejected_change"],
}
TITLES = {"solved": "test puzzles solved", "margin": "held-out margin, nats", "loss": "held-out DPO loss"}
COMPARED = ("solved", "sampled cells", "margin", "loss", "accuracy")


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half of its 95 % t-interval; NaN for a single value."""
    if len(values) < 2:
        return mean(values), math.nan
    return mean(values), _T[len(values) - 1] * stdev(values) / math.sqrt(len(values))


def show(values: list[float]) -> str:
    centre, half = interval(values)
    return f"{centre:.3f}" if math.isnan(half) else f"{centre:.3f} [{centre - half:.3f}, {centre + half:.3f}]"


def paired(one: Runs, other: Runs, measure: Callable[[Run], float]) -> list[float]:
    """Differences of runs of one seed."""
    return [measure(one[seed]) - measure(other[seed]) for seed in sorted(one.keys() & other.keys())]


def read(runs: Path, split: str) -> list[Run]:
    return [json.loads(path.read_text()) for path in sorted((runs / "results" / split).glob("*.json"))]


def grouped(tests: list[Run], wanted: Callable[[Run], bool]) -> Groups:
    """Runs whose job is wanted, by (arm, distinct pairs, epochs), then by seed."""
    found: Groups = {}
    for run in tests:
        job = run["job"]
        if wanted(job):
            found.setdefault((job["arm"], job["num_pairs"], job["epochs"]), {})[job["seed"]] = run
    return found


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)] + [""]


def arms_table(groups: Groups, where: Where) -> list[str]:
    rows = []
    for arm, pairs in where:
        runs = groups.get((arm, pairs, 1))
        if runs:
            some = next(iter(runs.values()))
            values = {name: [measure(run) for run in runs.values()] for name, measure in MEASURES.items()}
            rows.append(
                [LABELS[arm], str(pairs), f"{some['job']['learning_rate']:g}", str(len(runs))]
                + [show(values[name]) for name in COMPARED]
                + [f"{mean(values[name]):.2f}" for name in ("chosen", "rejected")]
            )
    head = ["arm", "pairs", "rate", "seeds", "test solved", "sampled cells", "margin", "loss"]
    return table([*head, "pairs in order", "chosen, nats", "rejected, nats"], rows)


def differences_table(groups: Groups, where: Where, other: tuple[str, int]) -> list[str]:
    """Paired differences to another arm, at the same seeds."""
    rows = []
    for arm, pairs in where:
        runs = groups.get((arm, pairs, 1), {})
        if (arm, pairs) != other and runs.keys() & groups.get((*other, 1), {}).keys():
            differences = [paired(runs, groups[(*other, 1)], MEASURES[name]) for name in COMPARED]
            rows.append([LABELS[arm], *(show(values) for values in differences)])
    return table(["arm", "solved", "sampled cells", "margin", "loss", "pairs in order"], rows)


def partners_table(groups: Groups, where: Where) -> list[str]:
    """Paired differences to the paper's plan at the same n."""
    rows = []
    for arm, pairs in where:
        if arm in PARTNERS:
            one, other = (groups.get((name, pairs, 1), {}) for name in (arm, PARTNERS[arm]))
            rows.append([LABELS[arm], *(show(paired(one, other, MEASURES[name])) for name in COMPARED)])
    return table(["arm", "solved", "sampled cells", "margin", "loss", "pairs in order"], rows)


def pairs_vs_n_table(groups: Groups, draws: int, few: int) -> list[str]:
    rows = []
    for plan in ("paper", "ours"):
        for n in (1, 2, 4, 8, 16):
            cells = [groups.get((f"{plan}{n}", draws // n, 1)), groups.get((f"{plan}{n}", few, draws // n // few))]
            if any(cells):
                shown = [
                    show([MEASURES[name](run) for run in runs.values()]) if runs and len(runs) > 2 else "-"
                    for name in ("margin", "loss", "solved")
                    for runs in cells
                ]
                rows.append([plan, str(n), str(draws // n), str(draws // n // few), *shown])
    head = ["plan", "n", "plenty: pairs, once", f"few: epochs over {few}"]
    return table(
        head + [f"{name}, {kind}" for name in ("margin", "loss", "solved") for kind in ("plenty", "few")], rows
    )


def grid_table(grid: list[Run], rate: Callable[[str, int], float]) -> list[str]:
    rows = []
    for key, points in sorted(grouped_rates(grid).items()):
        chosen = rate(*key)
        marks = [f"{loss:.3f}{' *' if value == chosen else ''}" for value, loss in sorted(points.items())]
        rows.append([key[0], str(key[1]), *marks])
    rates = sorted({run["job"]["learning_rate"] for run in grid})
    return table(
        ["arm", "pairs", *(f"{value:g}" for value in rates)], [row for row in rows if len(row) == len(rates) + 2]
    )


def grouped_rates(grid: list[Run]) -> dict[tuple[str, int], dict[float, float]]:
    found: dict[tuple[str, int], dict[float, float]] = {}
    for run in grid:
        job = run["job"]
        found.setdefault((job["arm"], job["num_pairs"]), {})[job["learning_rate"]] = run["pairs"]["loss"]
    return found


# Plots ---------------------------------------------------------------------------------------------------------------


def plot_arms(shown_in: Panels, base: Run) -> None:
    """Every arm with its interval over seeds, and the seeds."""
    figure = Figure(figsize=(13, 9), layout="constrained")
    panels = figure.subplots(len(shown_in), 3, sharex="col")
    for row, (title, (groups, where)) in enumerate(shown_in.items()):
        for column, name in enumerate(("solved", "margin", "loss")):
            axis = panels[row][column]
            shown = [point for point in where if (*point, 1) in groups]
            for place, point in enumerate(reversed(shown)):
                values = [MEASURES[name](run) for run in groups[(*point, 1)].values()]
                centre, half = interval(values)
                colour = COLOURS[point[0]]
                axis.errorbar(centre, place, xerr=half, fmt="o", color=colour, capsize=3)
                axis.plot(values, [place - 0.25] * len(values), ".", color=colour, markersize=3, alpha=0.6)
            axis.set_yticks(range(len(shown)), [LABELS[arm] if column == 0 else "" for arm, _ in reversed(shown)])
            axis.set_ylim(-0.6, len(shown) - 0.4)
            axis.axvline({"solved": base["test"]["solved"], "margin": 0.0, "loss": math.log(2)}[name], **_BASE)
            axis.grid(axis="x", alpha=0.3)
            if row == 0:
                axis.set_title(
                    {"solved": "test puzzles solved", "margin": "held-out margin, nats", "loss": "held-out DPO loss"}[
                        name
                    ]
                )
        panels[row][0].set_ylabel(title)
    figure.savefig(HERE / "arms.png", dpi=110)


_BASE = {"color": "grey", "linestyle": "--", "linewidth": 0.8}


def plot_curves(shown_in: Panels) -> None:
    """Held-out margin and loss at four points of training, mean over seeds."""
    figure = Figure(figsize=(11, 9), layout="constrained")
    panels = figure.subplots(len(shown_in), 2, sharey="col", sharex=True)
    handles = {}
    for row, (title, (groups, where)) in enumerate(shown_in.items()):
        for column, name in enumerate(("margin", "loss")):
            axis = panels[row][column]
            for arm, pairs in where:
                runs = groups.get((arm, pairs, 1))
                if runs:
                    curves = [[point[name] for point in run["curve"]] for run in runs.values()]
                    start = 0.0 if name == "margin" else math.log(2)
                    values = [start, *(mean(points) for points in zip(*curves, strict=True))]
                    share = [index / (len(values) - 1) for index in range(len(values))]
                    (handles[arm],) = axis.plot(share, values, "o-", markersize=3, color=COLOURS[arm])
            axis.axhline(0.0 if name == "margin" else math.log(2), **_BASE)
            axis.set(title=f"{title}: held-out {name}", xlabel="share of the run" if row == len(shown_in) - 1 else "")
    figure.legend(handles.values(), [LABELS[arm] for arm in handles], loc="outside lower center", ncols=4, fontsize=9)
    figure.savefig(HERE / "curves.png", dpi=110)


def plot_pairs_vs_n(groups: Groups, draws: int, few: int, base: Run) -> None:
    """Held-out margin, loss and accuracy against n at a fixed number of draws."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    panels = figure.subplots(1, 3)
    for axis, name in zip(panels, ("margin", "loss", "solved"), strict=True):
        for plan, colour in (("paper", "C3"), ("ours", "C5")):
            for kind, line in (("plenty", "-"), ("few", ":")):
                xs, centres, halves = [], [], []
                for n in (1, 2, 4, 8, 16):
                    where = (draws // n, 1) if kind == "plenty" else (few, draws // n // few)
                    runs = groups.get((f"{plan}{n}", *where))
                    if runs and len(runs) > 2:  # two give no interval worth drawing
                        values = [MEASURES[name](run) for run in runs.values()]
                        centre, half = interval(values)
                        xs.append(n * (1.02 if plan == "ours" else 0.98))
                        centres.append(centre)
                        halves.append(half)
                if xs:
                    label = f"{plan}, " + ("every pair once" if kind == "plenty" else f"{few} pairs, again and again")
                    axis.errorbar(
                        xs, centres, yerr=halves, fmt="o", linestyle=line, color=colour, capsize=3, label=label
                    )
        axis.axhline({"solved": base["test"]["solved"], "margin": 0.0, "loss": math.log(2)}[name], **_BASE)
        axis.set_xscale("log", base=2)
        axis.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
        title = TITLES[name]
        axis.set(xlabel=f"n (draws per answer), {draws} draws per run", title=title)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    figure.savefig(HERE / "pairs_vs_n.png", dpi=110)


# Everything ----------------------------------------------------------------------------------------------------------


def trimmed(run: Run) -> Run:
    """A run without the parts of its log that no reader needs."""
    kept = ("step", "loss", "grad_norm", "rewards/accuracies", "score/variance", "draws/per_pair")
    log = [{name: entry[name] for name in kept if name in entry} for entry in run["log"]]
    return {**run, "log": log, "seconds": round(run["seconds"], 1)}


def report(
    runs: Path,
    protocols: dict[str, Where],
    rate: Callable[[str, int], float],
    common_rate: float,
    draws: int,
    few: int,
) -> None:
    base = json.loads((runs / "base.json").read_text())
    tests, grid = read(runs, "test"), read(runs, "validate")
    chosen = grouped(tests, lambda job: job["learning_rate"] == rate(job["arm"], job["num_pairs"] * job["epochs"]))
    same = grouped(tests, lambda job: job["learning_rate"] == common_rate)
    found = {"base": base, "grid": [trimmed(run) for run in grid], "runs": [trimmed(run) for run in tests]}
    (HERE / "result.json").write_text(json.dumps(found) + "\n")
    first = next(iter(protocols.values()))
    panels: Panels = {title: (chosen, where) for title, where in protocols.items()}
    panels[f"(c) same steps, rate {common_rate:g} for all"] = (same, first)
    plot_arms(panels, base)
    plot_curves(panels)
    plot_pairs_vs_n(chosen, draws, few, base)
    lines = [*base_lines(base), *comparisons(panels), "![arms](arms.png)", "", "![curves](curves.png)", ""]
    lines += [
        "**Pairs against draws**",
        "",
        *pairs_vs_n_table(chosen, draws, few),
        "![pairs against n](pairs_vs_n.png)",
    ]
    lines += ["", "Learning rates: loss on validation pairs, one run each, the chosen one marked.", ""]
    lines += grid_table([run for run in grid if run["job"]["beta"] == 1.0], rate)
    page = HERE / "README.md"
    marker = "<!-- generated by report.py -->\n"
    written = page.read_text().split(marker)[0] if page.is_file() else ""
    page.write_text(written + marker + "\n".join(lines))


def base_lines(base: Run) -> list[str]:
    test, sampled = base["test"], base["test_sampled"]
    return [
        f"The base model ({base['parameters']:,} parameters) solves {test['solved']:.3f} of the test puzzles greedily "
        f"({test['cells']:.3f} of the cells right); sampled at temperature 1, {sampled['cells']:.3f} of the cells are "
        "right. Means over seeds with 95 % t-intervals; chosen, rejected: change of their bounds in nats. Dashed lines "
        "in the plots: the base model.",
        "",
    ]


def comparisons(panels: Panels) -> list[str]:
    """Each protocol's arms, and their paired differences to VRPO and to naive DPO."""
    lines = []
    for title, (groups, where) in panels.items():
        lines += [f"**{title}**", "", *arms_table(groups, where)]
        for name in ("paper8", "naive"):
            other = next(point for point in where if point[0] == name)
            lines += [f"Minus {LABELS[name]}, paired by seed:", "", *differences_table(groups, where, other)]
        lines += ["Ours minus the paper's plan at the same n, paired by seed:", "", *partners_table(groups, where)]
    return lines
