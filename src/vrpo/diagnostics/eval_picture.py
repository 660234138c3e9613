"""The picture of `vrpo eval`: models side by side with their intervals, and what each has more than the first."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vrpo.diagnostics.plots import figure_class

_INK = ("#0b5d8a", "#c4511a", "#3c7d3e", "#7a4b94", "#8a6d1f", "#4d4d4d")
_MARKS = ("o", "s", "^", "D", "v", "P")


def eval_picture(path: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """One panel for all shares of right answers, one for every other measure, each with 95 % intervals; beside it, of
    several models, what each has more than the first on the same items, with its paired interval.

    The trap: intervals of two models may overlap although the paired one of their difference leaves 0 out.

    Args:
        results: as in eval.json.

    Raises:
        ValueError: matplotlib is not installed.
    """
    shares = [one for one in results if one["verdicts"]]
    panels = [shares] if shares else []
    panels += [[one] for one in results if not one["verdicts"]]
    rows = [len(panel) for panel in panels]
    several = any(one["comparisons"] for one in results)
    size = (11 if several else 7.5, 1.2 * len(panels) + 0.7 * sum(rows))
    figure = figure_class()(figsize=size, layout="constrained")
    places = figure.subplots(len(panels), 1 + several, squeeze=False, height_ratios=rows)
    for place, panel in zip(places, panels, strict=True):
        _values(place[0], panel)
        if several:
            _differences(place[1], panel)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, dpi=140)


def _values(panel: Any, results: Sequence[Mapping[str, Any]]) -> None:
    names = list(results[0]["models"])
    for index, name in enumerate(names):
        _series(panel, results, [one["models"][name] for one in results], index, len(names), name)
    panel.set_yticks(range(len(results)), [f"{one['task']}\n{one['metric']}" for one in results], fontsize=8)
    panel.set_xlabel("right, %" if results[0]["verdicts"] else results[0]["metric"])


def _differences(panel: Any, results: Sequence[Mapping[str, Any]]) -> None:
    first, *others = list(results[0]["models"])
    panel.axvline(0, color="#888888", linewidth=0.8)
    for index, name in enumerate(others, start=1):
        found = [
            versus["difference"]
            for one in results
            for versus in one["comparisons"]
            if (versus["first"], versus["second"]) == (first, name)
        ]
        _series(panel, results, found, index, len(others) + 1, name)
    panel.set_yticks([])
    panel.set_xlabel(f"minus {first}, {'percentage points' if results[0]['verdicts'] else 'on the same items'}")


def _series(
    panel: Any,
    results: Sequence[Mapping[str, Any]],
    found: Sequence[Mapping[str, float]],
    index: int,
    count: int,
    name: str,
) -> None:
    """One model's points, a row for each result; the index-th of `count` models."""
    scale = 100 if results[0]["verdicts"] else 1
    shift = 0.5 * (index + 0.5) / count - 0.25
    panel.errorbar(
        [scale * value["mean"] for value in found],
        [row + shift for row in range(len(results))],
        xerr=[
            [scale * (value["mean"] - value["low"]) for value in found],
            [scale * (value["high"] - value["mean"]) for value in found],
        ],
        color=_INK[index % len(_INK)],
        marker=_MARKS[index % len(_MARKS)],
        markersize=5,
        linestyle="none",
        capsize=3,
        label=name,
    )
    panel.set_ylim(len(results) - 0.5, -0.5)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="x", linewidth=0.4, alpha=0.6)
