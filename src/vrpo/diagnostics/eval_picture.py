"""The picture of `vrpo eval`: models side by side with their intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vrpo.diagnostics.plots import figure_class

_INK = ("#0b5d8a", "#c4511a", "#3c7d3e", "#7a4b94", "#8a6d1f", "#4d4d4d")
_MARKS = ("o", "s", "^", "D", "v", "P")


def eval_picture(path: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """One panel for all shares of right answers, one for every other measure, each with 95 % intervals.

    Args:
        results: as in eval.json.

    Raises:
        ValueError: matplotlib is not installed.
    """
    shares = [one for one in results if one["verdicts"]]
    panels = [shares] if shares else []
    panels += [[one] for one in results if not one["verdicts"]]
    rows = [len(panel) for panel in panels]
    figure = figure_class()(figsize=(7.5, 1.2 * len(panels) + 0.7 * sum(rows)), layout="constrained")
    for place, panel in zip(figure.subplots(len(panels), 1, squeeze=False, height_ratios=rows), panels, strict=True):
        _panel(place[0], panel)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, dpi=140)


def _panel(panel: Any, results: Sequence[Mapping[str, Any]]) -> None:
    percent = 100 if results[0]["verdicts"] else 1
    names = list(results[0]["models"])
    for index, name in enumerate(names):
        found = [one["models"][name] for one in results]
        shift = 0.5 * (index + 0.5) / len(names) - 0.25
        panel.errorbar(
            [percent * value["mean"] for value in found],
            [row + shift for row in range(len(results))],
            xerr=[
                [percent * (value["mean"] - value["low"]) for value in found],
                [percent * (value["high"] - value["mean"]) for value in found],
            ],
            color=_INK[index % len(_INK)],
            marker=_MARKS[index % len(_MARKS)],
            markersize=5,
            linestyle="none",
            capsize=3,
            label=name,
        )
    panel.set_yticks(range(len(results)), [f"{one['task']}\n{one['metric']}" for one in results], fontsize=8)
    panel.set_ylim(len(results) - 0.5, -0.5)
    panel.set_xlabel("right, %" if percent == 100 else results[0]["metric"])
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="x", linewidth=0.4, alpha=0.6)
