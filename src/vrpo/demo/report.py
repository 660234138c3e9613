"""Numbers with intervals, and the table of the demo."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vrpo.evals import compare

_Z = 1.959964  # 95 %
_LABELS = {
    "base": "before: imitates students",
    "sft_control": "control: SFT on the preferred answers",
    "vrpo": "VRPO on the pairs",
}


def wilson(right: Sequence[bool]) -> dict[str, float]:
    """Share of right answers with its 95 % Wilson interval."""
    return asdict(compare.wilson(right))


def paired_difference(one: Sequence[bool], other: Sequence[bool]) -> dict[str, float]:
    """Mean difference on the same problems with its 95 % interval (normal, from the paired differences)."""
    difference = [float(a) - float(b) for a, b in zip(one, other, strict=True)]
    mean = sum(difference) / len(difference)
    variance = sum((value - mean) ** 2 for value in difference) / (len(difference) - 1)
    half = _Z * math.sqrt(variance / len(difference))
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": len(difference)}


def interval(value: dict[str, float]) -> str:
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def results_table(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    bases = results["right_bases"]
    passes = {"base": "", **{name: f"{count:,}" for name, count in results["forward_passes"].items()}}
    sampled = results["sampled_right_bases"]
    rows = [
        f"| {label} | {interval(results['accuracy'][name])} | {sampled[name]:.1%} | {passes[name]} |"
        for name, label in _LABELS.items()
    ]
    return "\n".join(
        [
            "| model | right strands, held out, greedy [95 % interval] | right bases, sampled | forward passes |",
            "|---|---|---|---|",
            *rows,
            "",
            f"VRPO minus before: {interval(results['vrpo_minus_base'])}",
            "",
            f"VRPO minus control: {interval(results['vrpo_minus_sft_control'])}",
            "",
            f"{results['pairs']} pairs of the model's own answers: {bases['chosen']:.1%} of the bases are right in the "
            f"preferred ones, {bases['rejected']:.1%} in the others; {results['chosen_all_right']:.1%} of the "
            f"preferred answers are right as a whole. {results['seconds']:.0f} s in all.",
            "",
        ]
    )
