"""The picture of `vrpo pairs`: does a length win?"""

from collections.abc import Sequence
from math import fsum, sqrt
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from vrpo.diagnostics.pair_statistics import copies_of
from vrpo.diagnostics.plots import figure_class
from vrpo.rewards.pairing import Outcome

_INK = "#0b5d8a"
_BINS = 10


class Bin(NamedTuple):
    """Answers of similar length: mean length, mean reward, its standard error, and how many they are."""

    length: float
    reward: float
    error: float
    answers: int


def length_picture(path: Path, outcomes: Sequence[Outcome], unit: str) -> None:
    """Left: length of the chosen against the rejected answer of each pair. Right: mean reward of answers by length,
    with two standard errors, as if answers to the same prompt were independent.

    Raises:
        ValueError: matplotlib is not installed.
    """
    figure = figure_class()(figsize=(9.5, 4.2), layout="constrained")
    pairs, rewards = figure.subplots(1, 2)
    for panel in (pairs, rewards):
        panel.spines[["top", "right"]].set_visible(False)
    _pairs_panel(pairs, outcomes, unit)
    _rewards_panel(rewards, reward_by_length(outcomes), unit)
    figure.savefig(path, dpi=160)


def _pairs_panel(panel: Any, outcomes: Sequence[Outcome], unit: str) -> None:
    couples = [couple for outcome in outcomes for couple in outcome.couples]
    rejected = [couple.rejected.sample.length for couple in couples]
    chosen = [couple.chosen.sample.length for couple in couples]
    panel.scatter(rejected, chosen, s=9, alpha=0.4, color=_INK, linewidths=0)
    end = 1.05 * max([1, *chosen, *rejected])
    panel.plot([0, end], [0, end], color="0.5", linewidth=0.8)
    above = sum(one > other for one, other in zip(chosen, rejected, strict=True))
    panel.set(xlim=(0, end), ylim=(0, end), xlabel=f"rejected, {unit}", ylabel=f"chosen, {unit}")
    panel.set_title(f"{len(couples)} pairs, the chosen answer longer in {above}", fontsize=10)


def _rewards_panel(panel: Any, bins: Sequence[Bin], unit: str) -> None:
    panel.errorbar(
        [part.length for part in bins], [part.reward for part in bins], [2 * part.error for part in bins],
        color=_INK, marker="o", elinewidth=0.8,
    )  # fmt: skip
    panel.set(xlabel=f"length of answers, {unit}", ylabel="mean reward, ± 2 standard errors")
    count = sum(part.answers for part in bins)
    panel.set_title(f"{count} judged answers in {len(bins)} parts by length", fontsize=10)


def reward_by_length(outcomes: Sequence[Outcome]) -> list[Bin]:
    """Answers (copies counted) in tenths by length; equal lengths stay together."""
    found: dict[int, list[float]] = {}
    for outcome in outcomes:
        for each in outcome.candidates:
            if each.judged:
                found.setdefault(each.sample.length, []).extend([each.reward] * copies_of(each))
    total, bins, part = sum(map(len, found.values())), [], list[tuple[int, float]]()
    for length in sorted(found):
        part += [(length, reward) for reward in found[length]]
        if len(part) >= total / _BINS:
            bins.append(part)
            part = []
    return [_averages(part) for part in [*bins, part] if part]


def _averages(part: Sequence[tuple[int, float]]) -> Bin:
    count, reward = len(part), fmean(reward for _, reward in part)
    error = sqrt(fsum((one - reward) ** 2 for _, one in part) / max(count - 1, 1) / count)
    return Bin(fmean(length for length, _ in part), reward, error, count)
