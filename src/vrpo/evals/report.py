"""Before and after, in tables: models side by side on the same items, and each against each.

What deliberately does not live here: statistics (compare.py), pictures (diagnostics/).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

from vrpo.evals.compare import RESAMPLES, Comparison, Interval, binary, compare, holm, interval
from vrpo.evals.presets import Setting


@dataclass(frozen=True)
class Measure:
    """What one metric of one task says of each item, by model: the same items in the same order."""

    task: str
    metric: str
    items: tuple[str, ...]
    values: Mapping[str, tuple[float, ...]]
    published: Setting | None = None

    @property
    def verdicts(self) -> bool:
        return all(binary(values) for values in self.values.values())


@dataclass(frozen=True)
class Versus:
    """Two models on a measure; `p_holm`: the p-value adjusted for all tests of the report."""

    first: str
    second: str
    comparison: Comparison
    p_holm: float | None = None


@dataclass(frozen=True)
class Result:
    """Intervals and comparisons of a measure."""

    measure: Measure
    models: Mapping[str, Interval]
    versus: tuple[Versus, ...]

    def as_json(self) -> dict[str, Any]:
        one = self.measure
        return {
            "task": one.task,
            "metric": one.metric,
            "verdicts": one.verdicts,
            "models": {name: asdict(value) for name, value in self.models.items()},
            "comparisons": [_flat(versus) for versus in self.versus],
            "published": None if one.published is None else asdict(one.published),
            "items": list(one.items),
            "values": {name: list(values) for name, values in one.values.items()},
        }


def measure_of(
    task: str, metric: str, found: Mapping[str, Mapping[str, float]], published: Setting | None = None
) -> Measure:
    """From model -> item -> value.

    Raises:
        ValueError: models were not judged on the same items.
    """
    names = list(found)
    items = tuple(found[names[0]])
    for name in names[1:]:
        if set(found[name]) != set(items):
            odd = sorted(set(items) ^ set(found[name]))[:3]
            raise ValueError(f"{task}, {metric}: {names[0]} and {name} have different items, such as {', '.join(odd)}")
    values = {name: tuple(float(found[name][item]) for item in items) for name in names}
    return Measure(task, metric, items, values, published)


def results_of(measures: Sequence[Measure], seed: int, resamples: int = RESAMPLES) -> list[Result]:
    """Every model with its interval, every two models compared, p-values adjusted for all of these tests."""
    found = []
    for one in measures:
        models = {name: interval(values, seed, resamples) for name, values in one.values.items()}
        versus = tuple(
            Versus(a, b, compare(one.values[a], one.values[b], seed, resamples)) for a, b in combinations(one.values, 2)
        )
        found.append(Result(one, models, versus))
    raw = [v.comparison.p_value for result in found for v in result.versus if v.comparison.p_value is not None]
    adjusted = iter(holm(raw))
    return [
        replace(
            result,
            versus=tuple(
                v if v.comparison.p_value is None else replace(v, p_holm=next(adjusted)) for v in result.versus
            ),
        )
        for result in found
    ]


def tables(results: Sequence[Result], preset: str | None) -> str:
    """Models side by side, then each against each, in Markdown."""
    blocks = [_side_by_side(results, preset)]
    if any(result.versus for result in results):
        blocks.append(_each_against_each(results))
    return "\n\n".join(blocks)


def _side_by_side(results: Sequence[Result], preset: str | None) -> str:
    names = list(results[0].models)
    published = any(result.measure.published is not None for result in results)
    head = ["task", "metric", "items", *names]
    if published:
        head.append(f"published, {preset}: internal / OpenCompass")
    rows = []
    for result in results:
        one = result.measure
        cells = [one.task, one.metric, str(len(one.items))]
        cells += [_shown(result.models[name], one.verdicts) for name in names]
        rows.append([*cells, *([_published(one.published)] if published else [])])
    return _markdown(head, rows)


def _each_against_each(results: Sequence[Result]) -> str:
    head = ["task", "metric", "first", "second", "second minus first", "only first right", "only second right"]
    head += ["exact p", "p, Holm"]
    rows = []
    for result in results:
        for v in result.versus:
            found, one = v.comparison, result.measure
            cells = [one.task, one.metric, v.first, v.second, _shown(found.difference, one.verdicts)]
            counts = ["" if count is None else str(count) for count in (found.only_first, found.only_second)]
            rows.append([*cells, *counts, *("" if p is None else f"{p:.2g}" for p in (found.p_value, v.p_holm))])
    return _markdown(head, rows)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def _shown(value: Interval, percent: bool) -> str:
    if percent:
        return f"{100 * value.mean:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}] %"
    return f"{value.mean:.4g} [{value.low:.4g}, {value.high:.4g}]"


def _published(setting: Setting | None) -> str:
    if setting is None:
        return ""
    return " / ".join("-" if value is None else f"{value:.1f}" for value in (setting.internal, setting.opencompass))


def _flat(versus: Versus) -> dict[str, Any]:
    found = asdict(versus)
    return {**{name: found[name] for name in ("first", "second")}, **found["comparison"], "p_holm": versus.p_holm}
