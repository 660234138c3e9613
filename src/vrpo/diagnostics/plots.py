"""Pictures. The only place that imports matplotlib, and only when a picture is drawn."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vrpo.diagnostics.designs import PAPER
from vrpo.diagnostics.statistics import SATURATED, Interval
from vrpo.diagnostics.summary import Row, Split, Summary

_INK = ("#0b5d8a", "#c4511a", "#3c7d3e", "#7a4b94", "#8a6d1f", "#4d4d4d", "#b23a6f", "#2b8c8c")
_SIDEWAYS = 1.03  # plans are set apart by so little that a point still stands at its n against the line 1 / n
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")


def _log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def figure_class() -> Any:
    """matplotlib's Figure.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ValueError("pictures need matplotlib: pip install 'vrpo[plots]'") from error
    return Figure


def demo_picture(folder: Path, results: dict[str, Any]) -> None:
    """folder/demo.png: the reward margin and the bounds while aligning, and accuracy before and after.

    Raises:
        ValueError: matplotlib is not installed.
    """
    Figure = figure_class()
    log = [entry for entry in _log(folder / "vrpo" / "log.jsonl") if "rewards/margins" in entry]
    step = [entry["step"] for entry in log]
    figure = Figure(figsize=(13, 4), layout="constrained")
    margin, bounds, accuracy = figure.subplots(1, 3)
    margin.plot(step, [entry["rewards/margins"] for entry in log], color="C0", label="margin (left)")
    margin.set(xlabel="step", ylabel="reward margin", title="VRPO: the margin grows")
    twin = margin.twinx()
    twin.plot(step, [entry["rewards/accuracies"] for entry in log], color="C1", alpha=0.6, label="accuracy (right)")
    twin.set(ylim=(0, 1.02), ylabel="pairs ordered rightly")
    margin.legend(handles=[*margin.lines, *twin.lines], loc="lower right")
    for name, colour in (("chosen", "C2"), ("rejected", "C3")):
        bounds.plot(step, [entry[f"elbo/{name}_change"] for entry in log], color=colour, label=name)
    bounds.axhline(0, color="grey", linewidth=0.8)
    bounds.set(xlabel="step", ylabel="nats against the reference", title="Bounds of chosen and rejected answers")
    bounds.legend()
    names = ["base", "sft_control", "vrpo"]
    values = [results["accuracy"][name] for name in names]
    error_bars = [[v["mean"] - v["low"] for v in values], [v["high"] - v["mean"] for v in values]]
    place = [0.0, 1.0, 2.0]
    greedy = accuracy.bar(
        [x - 0.2 for x in place], [v["mean"] for v in values], 0.4, yerr=error_bars, capsize=4, label="strands, greedy"
    )
    sampled = accuracy.bar(
        [x + 0.2 for x in place], [results["sampled_right_bases"][name] for name in names], 0.4, label="bases, sampled"
    )
    for bars in (greedy, sampled):
        accuracy.bar_label(bars, fmt="%.2f", padding=4)
    accuracy.set_xticks(place, ["before", "SFT on chosen\n(control)", "VRPO"])
    accuracy.set(ylim=(0, 1.15), ylabel="share right, held out", title="Before and after (95 % intervals)")
    accuracy.legend(loc="upper left")
    figure.savefig(folder / "demo.png", dpi=120)


def variance_pictures(folder: Path, summary: Summary, scores: Mapping[int, Sequence[float]]) -> list[Path]:
    """The pictures of `vrpo variance` that the summary has numbers for; their files.

    Args:
        scores: of the paper's plan at a small and at a larger budget, all pairs together.
    """
    pictures = [budget_picture(summary.rows), scores_picture(scores)]
    names = ["variance_by_budget", "scores"]
    if summary.splits:
        pictures.append(_split_picture(summary.splits))
        names.append("split")
    files = [folder / f"{name}.png" for name in names]
    for figure, file in zip(pictures, files, strict=True):
        figure.savefig(file, dpi=160)
    return files


def _panels(count: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure and its panels in a row, without the box around them."""
    figure = figure_class()(figsize=(width, height), layout="constrained")
    panels = list(figure.subplots(1, count, squeeze=False)[0])
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _floor(found: Sequence[Interval]) -> float:
    """Where a logarithmic axis begins: intervals that reach 0 run out of the picture."""
    return 0.4 * min((value.value for value in found if value.value > 0), default=1.0)


def _bars(found: Sequence[Interval], floor: float) -> list[list[float]]:
    """Lengths of error bars, cut where a logarithmic axis ends."""
    return [[v.value - max(v.low, floor) for v in found], [v.high - v.value for v in found]]


def budget_picture(rows: Sequence[Row]) -> Any:
    """Variance of the score and of the gradient against forward passes per answer."""
    figure, panels = _panels(2, 10.5, 4.2)
    kinds = {"score_variance": "variance of the score", "loss_gradient_variance": "variance of the loss gradient"}
    series: dict[tuple[str, int, bool], list[Row]] = {}
    for row in rows:
        series.setdefault((row.design.label, row.design.num_masks, row.shared), []).append(row)
    budgets = sorted({row.draws for row in rows})
    for panel, (name, label) in zip(panels, kinds.items(), strict=True):
        for index, (key, found) in enumerate(series.items()):
            _series(panel, found, name, _label(*key), index, _shift(index, len(series)))
        start = next(row.mean(name).value for row in rows if row.design.single and row.shared)
        first = budgets[0]
        if start > 0:
            law = [start * first / n for n in budgets]
            panel.plot(budgets, law, color="black", linewidth=1, linestyle=":", zorder=0, label="1 / n")
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_ylim(bottom=_floor([row.mean(name) for row in rows]))
        panel.set_xticks(budgets, [str(n) for n in budgets])
        panel.minorticks_off()
        panel.set(xlabel="forward passes per answer, n (plans up to 3 % sideways)", ylabel=label)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    return figure


def _label(plan: str, masks: int, shared: bool) -> str:
    if not masks:
        return plan.replace(":", "\n  ").replace(",", "\n  ")
    text = "one mask per time" if masks == 1 else f"{masks} masks per time"
    return f"{plan}, {text}" if shared else f"{plan}, {text},\nindependent of reference"


def _shift(index: int, count: int) -> float:
    """The first plan stays where it is, all others by turns to its left and right."""
    step = (index + 1) // 2 / max(1, count // 2)
    return float(_SIDEWAYS ** (step if index % 2 else -step))


def _series(panel: Any, rows: Sequence[Row], name: str, label: str, index: int, shift: float) -> None:
    """One plan's points with intervals, a little to the side so that they do not hide each other."""
    found = [row.mean(name) for row in rows]
    shown = [(row.draws * shift, value) for row, value in zip(rows, found, strict=True) if value.value > 0]
    if not shown:
        return
    values = [value for _, value in shown]
    panel.errorbar(
        [x for x, _ in shown],
        [value.value for value in values],
        yerr=_bars(values, 0.1 * _floor(values)),
        color=_INK[index % len(_INK)],
        marker=_MARKS[index % len(_MARKS)],
        markersize=4.5,
        linewidth=1.4 if index == 0 else 0.5,
        elinewidth=0.8,
        capsize=2,
        label=label,
    )


def scores_picture(scores: Mapping[int, Sequence[float]]) -> Any:
    """Scores of the paper's plan at two budgets; beyond the shaded border the loss is as good as linear or flat. The
    outermost bars also hold the one score in 500 that lies beyond them on either side."""
    figure, panels = _panels(1, 5.2, 3.4)
    panel = panels[0]
    low, high = _scores_axis(sorted(value for part in scores.values() for value in part))
    for index, (n, values) in enumerate(scores.items()):
        bins = [low + (high - low) * i / 48 for i in range(49)]
        share = [100 / len(values)] * len(values)
        shown = [min(max(value, low), high) for value in values]
        saturated = 100 * sum(abs(value) > SATURATED for value in values) / len(values)
        label = f"n = {n}, {saturated:.3g} % saturated"
        panel.hist(shown, bins=bins, weights=share, color=_INK[index], alpha=0.55, label=label)
    seen = [(start, end) for start, end in ((low, -SATURATED), (SATURATED, high)) if start < end]
    for start, end in seen:
        panel.axvspan(start, end, color="0.5", alpha=0.13, linewidth=0, zorder=0)
    where = "shaded: saturated" if seen else "saturated: out of this picture"
    panel.set(xlim=(low, high), xlabel=f"score ({where}, |score| > {SATURATED:g})", ylabel="estimates, %")
    top = panel.get_ylim()[1]
    panel.set_ylim(top=1.25 * top)  # room for the legend
    panel.legend(frameon=False, fontsize=8, title=f"plan {PAPER}", title_fontsize=8)
    return figure


def _scores_axis(ordered: Sequence[float]) -> tuple[float, float]:
    """From the data, and a side that comes near the bound of saturation shows what lies beyond it."""
    rare = len(ordered) // 500
    low, high = ordered[rare], ordered[-1 - rare]
    margin = 0.03 * (high - low) or 0.5  # scores of a policy that is its reference are all 0
    low, high, near = low - margin, high + margin, 0.75 * SATURATED
    return (min(low, -SATURATED - 1) if low < -near else low), (max(high, SATURATED + 1) if high > near else high)


def _split_picture(splits: Mapping[str, Split]) -> Any:
    """V_t as a share of the variance of a single draw: what masks at one time do not reduce."""
    figure, panels = _panels(1, 4.4, 3.2)
    panel = panels[0]
    names = ["ELBO", "score", "gradient\nof the score"][: len(splits)]
    found = [split.share for split in splits.values()]
    errors = [[v.value - v.low for v in found], [v.high - v.value for v in found]]
    panel.bar(range(len(found)), [v.value for v in found], 0.5, yerr=errors, capsize=4, color=_INK[0], ecolor="0.25")
    panel.axhline(0, color="black", linewidth=0.8)
    panel.set_xticks(range(len(found)), names)
    panel.set_xlabel(f"plan {PAPER}")
    panel.set_ylabel("$V_t\\,/\\,(V_t + V_y)$")
    return figure
