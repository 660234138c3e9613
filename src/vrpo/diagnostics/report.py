"""The summary as tables that a reader of a terminal and a reader of Markdown both can read."""

import math
from collections.abc import Sequence

from vrpo.diagnostics.designs import PAPER
from vrpo.diagnostics.minibatch import Decomposition
from vrpo.diagnostics.statistics import Interval
from vrpo.diagnostics.summary import Row, Summary

_COLUMNS = {
    "elbo_variance": "Var ELBO",
    "score_variance": "Var score",
    "loss_variance": "Var loss",
    "score_gradient_variance": "Var grad score",
    "loss_gradient_variance": "Var grad loss",
    "loss_bias": "loss bias",
    "bias_bound": "bias bound",
    "correlation": "correlation",
    "saturated": "saturated",
}
_SPLIT = {"elbo_variance": "ELBO", "score_variance": "score", "score_gradient_variance": "gradient of the score"}


def number(value: float) -> str:
    """Three digits."""
    if math.isnan(value):
        return "-"
    return f"{value:.3g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.2e}"


def interval(found: Interval) -> str:
    """Value and half the width of its 95 % interval."""
    if math.isnan(found.value):
        return "not resolved"
    half = (found.high - found.low) / 2
    return f"{number(found.value)} ± {'-' if math.isnan(half) else f'{half:.2g}'}"


def root(found: Interval) -> str:
    """Of an unbiased square: its root if the interval is above 0, and else a limit or nothing, with the signed square.
    A root of the square cut off at 0 would call every bias below its noise 0."""
    if math.isnan(found.value + found.low):
        return "not resolved"
    if found.low > 0:
        value, low, high = (number(math.sqrt(end)) for end in (found.value, found.low, found.high))
        return f"{value} ({low} to {high})"
    limit = f"below {number(math.sqrt(found.high))}" if found.high > 0 else "not resolved"
    return f"{limit} (squared: {interval(found)})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with columns of equal width."""
    width = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * size for size in width], *rows]
    return "\n".join(
        "| " + " | ".join(f"{cell:<{size}}" for cell, size in zip(line, width, strict=True)) + " |" for line in lines
    )


def tables(summary: Summary) -> str:
    """What a terminal shows: variances, draws or pairs of each plan, and the recommendation."""
    narrow = ("score_variance", "loss_variance", "loss_gradient_variance", "loss_bias")
    parts = ["Variances, means over pairs", _variances(summary.rows, narrow)]
    for found in summary.plans:
        parts += [_about(found), _minibatch(found), *_remarks(summary, found)]
    return "\n\n".join([*parts, _recommended(summary), "\n".join(summary.recommendation.sentences)])


def report(summary: Summary, heading: str) -> str:
    """variance.md."""
    parts = [
        "# Noise of the preference gradient",
        heading,
        "± is half the width of a 95 % interval: over replicates of the draws for these pairs, except under 'Draws or "
        "pairs', where it is over pairs.",
        "## Variances, means over pairs",
        _variances(summary.rows, tuple(_COLUMNS)),
        f"## Lemma 5, plan {PAPER}: times and masks",
        "Variance of one time with n_y masks: V_t + V_y / n_y.",
        _splits(summary),
    ]
    for found in summary.plans:
        parts += [f"## {_about(found)}", _minibatch(found), *_remarks(summary, found)]
    parts += [
        f"## {_recommended(summary)}",
        "\n".join(f"- {line}" for line in summary.recommendation.sentences),
    ]
    return "\n\n".join(parts) + "\n"


def _about(found: Decomposition) -> str:
    return f"Draws or pairs, plan {found.plan}" + (" (the paper's)" if found.plan == PAPER else "")


def _recommended(summary: Summary) -> str:
    return f"Recommendation for plan {summary.recommendation.plan}"


def _remarks(summary: Summary, found: Decomposition) -> list[str]:
    """The advice under a plan's table; the answers of the plan that is recommended for are kept for the end."""
    said = summary.advice.get(found.plan)
    if said is None:
        return [f"Plan {found.plan}: advice takes two budgets at least."]
    answers = [] if found.plan == summary.recommendation.plan else said.answers()
    return ["\n".join(f"- {line}" for line in (*answers, *said.remarks()))]


def _variances(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Plans by line, statistics by column; of the paper's plan, n as n_t x n_y."""
    header = ["plan", "n", "draws", *(_COLUMNS[name] for name in names)]
    lines = []
    for row in rows:
        kind = "shared" if row.shared else "independent"
        lines.append([row.design.label, row.allocation, kind, *(report_cell(row, name) for name in names)])
    return table(header, lines)


def report_cell(row: Row, name: str) -> str:
    """The mean, and over how many pairs if not all have one."""
    counted = len(row.counted(name))
    return interval(row.mean(name)) + (f" ({counted} pairs)" if counted < len(row.whole) else "")


def _splits(summary: Summary) -> str:
    lines = [
        [name, interval(split.times), interval(split.masks), interval(split.share)]
        for name, split in ((_SPLIT[key], value) for key, value in summary.splits.items())
    ]
    return table(["of the", "V_t", "V_y", "V_t / (V_t + V_y)"], lines) if lines else "One number of masks: no split."


def _minibatch(found: Decomposition) -> str:
    """Prices for both questions, where pairs have a cost; efficiency at that cost."""
    priced = {"price, pairs free": found.free}
    if found.pair_cost:
        priced[f"price, pairs at {found.pair_cost:g}"] = found.costly
    header = ["n", "V_mc(n)", "V_between", "share of draws", "relative bias", *priced, "efficiency"]
    curves, lines = found.costly, []
    for n in curves["share"]:
        parts = [interval(curves[name][n]) for name in ("draws", "pairs", "share")]
        prices = [interval(part["price"][n]) for part in priced.values()]
        bias = root(curves["bias_squared"][n])
        lines.append([str(n), *parts, bias, *prices, interval(curves["efficiency"][n])])
    return table(header, lines)
