"""One style of picture for all studies."""

from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

STYLE = {
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "lines.marker": "o",
    "lines.markersize": 3,
    "savefig.dpi": 120,
}


def panels(titles: list[str], *, x: str, y: str, log: str = "", share: bool = False) -> tuple[Figure, list[Any]]:
    """A figure with one panel a title, side by side; `log`: "x", "y" or "xy"."""
    with rc_context(STYLE):
        figure = Figure(figsize=(1 + 4.2 * len(titles), 4), layout="constrained")
        axes = list(figure.subplots(1, len(titles), squeeze=False, sharey=share)[0])
        for axis, title in zip(axes, titles, strict=True):
            axis.set(title=title, xlabel=x, ylabel=y)
            if "x" in log:
                axis.set_xscale("log")
            if "y" in log:
                axis.set_yscale("log")
    return figure, axes
