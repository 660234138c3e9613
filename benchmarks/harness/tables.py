"""Tables in Markdown, and the numbers that stand in them with their intervals (scipy)."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy import stats

Row = dict[str, Any]


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> str:
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in rows]
    head = [f"**{title}**", ""] if title else []
    return "\n".join([*head, f"| {' | '.join(columns)} |", "|" + "---|" * len(columns), *lines, ""])


def grouped(rows: Iterable[Row], *names: str) -> dict[Any, list[Row]]:
    """Rows by the values of these fields, in the order in which they come; one name gives its values as keys."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        key = tuple(row.get(name) for name in names)
        found.setdefault(key[0] if len(names) == 1 else key, []).append(row)
    return found


def spread(values: Iterable[float], form: str = ".2f") -> str:
    """Median with the smallest and the largest."""
    found = list(values)
    middle = f"{statistics.median(found):{form}}"
    return middle if len(found) == 1 else f"{middle} [{min(found):{form}}, {max(found):{form}}]"


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean with its t-interval."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.sem(values) * stats.t.ppf((1 + level) / 2, len(values) - 1))
    return mean, mean - half, mean + half


def jackknife(parts: np.ndarray, statistic: Any, level: float = 0.95) -> tuple[float, float, float]:
    """A statistic of all parts (first axis), with its t-interval by leaving out one part at a time."""
    whole, count = float(statistic(parts)), len(parts)
    left = np.array([statistic(np.delete(parts, i, axis=0)) for i in range(count)])
    half = float(np.sqrt((count - 1) * left.var()) * stats.t.ppf((1 + level) / 2, count - 1))
    return whole, whole - half, whole + half


def show(found: tuple[float, float, float], form: str = ".3f") -> str:
    """A value with its interval."""
    value, low, high = found
    return f"{value:{form}}" if np.isnan(low) else f"{value:{form}} [{low:{form}}, {high:{form}}]"
