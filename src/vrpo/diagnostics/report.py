"""The summary as tables that a reader of a terminal and a reader of Markdown both can read."""

import math
from collections.abc import Sequence

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
    """The tables that a terminal shows: variances, draws or pairs, and the advice."""
    narrow = ("score_variance", "loss_variance", "loss_gradient_variance", "loss_bias")
    return "\n\n".join([_variances(summary.rows, narrow), _minibatch(summary), _advice(summary)])


def report(summary: Summary, heading: str) -> str:
    """variance.md."""
    parts = [
        "# Noise of the preference gradient",
        heading,
        "± is half the width of a 95 % interval: over replicates of the draws for these pairs, except under 'Draws or "
        "pairs', where it is over pairs.",
        *summary.advice.sentences(),
        "## Variances, means over pairs",
        _variances(summary.rows, tuple(_COLUMNS)),
        "## Lemma 5: times and masks",
        "Variance of one time with n_y masks: V_t + V_y / n_y.",
        _splits(summary),
        "## Draws or pairs",
        _minibatch(summary),
        "## Masked counts",
        _counts(summary),
    ]
    return "\n\n".join(parts) + "\n"


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


def _minibatch(summary: Summary) -> str:
    found = summary.curves
    header = ["n", "V_mc(n)", "V_between", "share of draws", "relative bias", "efficiency"]
    lines = []
    for n in found["share"]:
        parts = [interval(found[name][n]) for name in ("draws", "pairs", "share")]
        lines.append([str(n), *parts, root(found["bias_squared"][n]), interval(found["efficiency"][n])])
    return table(header, lines)


def _advice(summary: Summary) -> str:
    return "\n".join([*summary.advice.sentences(), *_count_sentence(summary)])


def _count_sentence(summary: Summary) -> list[str]:
    counts = summary.counts
    if counts is None:
        return []
    return [
        f"Masked counts: count_exponent {counts.exponent:g} leaves {interval(counts.reduction)} of the second moment "
        "of a draw's gradient (plans stratified, balanced, nested)."
    ]


def _counts(summary: Summary) -> str:
    counts = summary.counts
    if counts is None:
        return "Every answer is one token long: there is no count to choose."
    lines = [[number(part.share), interval(part.second_moment), str(part.draws)] for part in counts.bins]
    shown = table(["masked share", "second moment", "draws"], lines)
    slope = f"Fitted law: second moment ~ share^b, b = {interval(counts.slope)}; exponent -b/2 = "
    return "\n\n".join([shown, slope + interval(counts.exponent_of_slope) + ".", *_count_sentence(summary)])
