"""What became of sampled answers on their way to preference pairs, and whether the pairs prefer a length.

Pairs of one prompt share answers: tests and intervals are over prompts, each prompt being the mean of its pairs.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import binomtest

from vrpo.diagnostics.report import interval, number, table
from vrpo.diagnostics.statistics import Interval, jackknife
from vrpo.rewards.pairing import Candidate, Couple, Outcome

_SHOWN = 10  # different rewards, reasons


@dataclass(frozen=True)
class LengthBias:
    """Length of chosen against rejected answers, over prompts with pairs.

    `longer`, `shorter`, `equal`: prompts whose chosen answers are so, in the mean of their pairs. `p_value`: two-sided
    sign test of longer against shorter. `share_longer`: among the unequal ones, Wilson's interval. `difference`: mean
    of chosen minus rejected; nan bounds for a single prompt. `chosen`, `rejected`: mean lengths over pairs.
    """

    longer: int
    shorter: int
    equal: int
    p_value: float
    share_longer: Interval
    difference: Interval
    chosen: float
    rejected: float


def sign_test(above: int, below: int) -> float:
    """Two-sided exact p-value of so many positive and negative differences, were both signs equally likely."""
    return float(binomtest(above, above + below).pvalue) if above + below else 1.0


def wilson(successes: int, count: int) -> Interval:
    """A share with its 95 % Wilson interval (Wilson 1927); nan of nothing."""
    if count == 0:
        return Interval(math.nan, math.nan, math.nan)
    found = binomtest(successes, count).proportion_ci(method="wilson")
    return Interval(successes / count, float(found.low), float(found.high))


def length_bias(outcomes: Sequence[Outcome]) -> LengthBias | None:
    """None without pairs."""
    used = [outcome.couples for outcome in outcomes if outcome.couples]
    if not used:
        return None
    differences = [_mean([_difference(couple) for couple in couples]) for couples in used]
    longer, shorter = sum(value > 0 for value in differences), sum(value < 0 for value in differences)
    couples = [couple for part in used for couple in part]
    return LengthBias(
        longer,
        shorter,
        len(differences) - longer - shorter,
        sign_test(longer, shorter),
        wilson(longer, longer + shorter),
        _mean_interval(differences),
        _mean([float(couple.chosen.sample.length) for couple in couples]),
        _mean([float(couple.rejected.sample.length) for couple in couples]),
    )


def _difference(couple: Couple) -> float:
    return float(couple.chosen.sample.length - couple.rejected.sample.length)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _mean_interval(values: Sequence[float]) -> Interval:
    if len(values) < 2:
        return Interval(_mean(values), math.nan, math.nan)
    total = math.fsum(values)
    return jackknife(total / len(values), [(total - value) / (len(values) - 1) for value in values])


@dataclass(frozen=True)
class Distribution:
    """Of numbers: how many, mean, standard deviation, quartiles; and how often each occurs if there are few."""

    count: int
    mean: float
    deviation: float
    quartiles: tuple[float, ...]
    values: dict[str, int] | None


def distribution(values: Iterable[float]) -> Distribution:
    ordered = sorted(values)
    if not ordered:
        return Distribution(0, math.nan, math.nan, (math.nan,) * 5, None)
    mean = _mean(ordered)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in ordered) / len(ordered))
    quartiles = tuple(ordered[round(part * (len(ordered) - 1) / 4)] for part in range(5))
    counted = Counter(ordered)
    shown = {f"{value:g}": count for value, count in counted.items()} if len(counted) <= _SHOWN else None
    return Distribution(len(ordered), mean, deviation, quartiles, shown)


@dataclass(frozen=True)
class PairStatistics:
    """The account of `vrpo pairs`.

    `unused`: prompts without a pair, by reason. `samples`: answers as sampled, of which `empty` have no text,
    `duplicates` repeat another answer to the same prompt, `unfinished` have no end token (`end_unknown`: it is not
    known), and `unjudged` got no verdict. `rewards`: over samples, copies counted. `all_equal`: share of prompts with
    two verdicts at least, all of which are the same reward (copies counted); of a verifier also `all_right` (1) and
    `all_wrong` (0). `reasons`: why answers did not get the full reward, the commonest, numbers in them left out.
    `gaps`: reward differences of pairs.
    """

    prompts: int
    used: int
    unused: dict[str, int]
    samples: int
    empty: int
    duplicates: int
    unfinished: int
    end_unknown: int
    unjudged: int
    rewards: Distribution
    all_equal: Interval
    all_right: Interval | None
    all_wrong: Interval | None
    reasons: dict[str, int]
    pairs: int
    gaps: Distribution
    length: LengthBias | None


def copies_of(candidate: Candidate) -> int:
    """How many samples have this text."""
    return 1 + len(candidate.sample.copies)


def pair_statistics(outcomes: Sequence[Outcome], *, verified: bool) -> PairStatistics:
    """`verified`: rewards are those of a verifier, 1 for right and 0 for wrong."""
    samples = [sample for outcome in outcomes for sample in outcome.samples]
    judged = [each for outcome in outcomes for each in outcome.candidates if each.judged]
    couples = [couple for outcome in outcomes for couple in outcome.couples]
    reasons: Counter[str] = Counter()
    for outcome in outcomes:
        for each in outcome.candidates:
            reasons.update({_kind(each.verdict.reason): copies_of(each)} if each.verdict.reason else {})
    return PairStatistics(
        prompts=len(outcomes),
        used=sum(bool(outcome.couples) for outcome in outcomes),
        unused=dict(Counter(outcome.unused for outcome in outcomes if outcome.unused).most_common()),
        samples=len(samples),
        empty=sum(not sample.text.strip() for sample in samples),
        duplicates=sum(len(each.sample.copies) for outcome in outcomes for each in outcome.candidates),
        unfinished=sum(sample.finished is False for sample in samples),
        end_unknown=sum(sample.finished is None for sample in samples),
        unjudged=sum(copies_of(each) for outcome in outcomes for each in outcome.candidates if not each.judged),
        rewards=distribution(each.reward for each in judged for _ in range(copies_of(each))),
        all_equal=_share(outcomes, lambda rewards: len(set(rewards)) == 1, least=2),
        all_right=_share(outcomes, lambda rewards: set(rewards) == {1.0}, least=1) if verified else None,
        all_wrong=_share(outcomes, lambda rewards: set(rewards) == {0.0}, least=1) if verified else None,
        reasons=dict(reasons.most_common(_SHOWN)),
        pairs=len(couples),
        gaps=distribution(couple.gap for couple in couples),
        length=length_bias(outcomes),
    )


def _kind(reason: str) -> str:
    """ "uses [4, 55], not [49, 53, 55]" and "not 18" are the commonest reasons only without their numbers."""
    return re.sub(r"\[[-0-9., /]*\]|-?[0-9][0-9.,/]*", "…", reason)


def _share(outcomes: Sequence[Outcome], holds: Callable[[list[float]], bool], least: int) -> Interval:
    """Share of the prompts with at least so many verdicts of which it holds."""
    rewards = [
        [each.reward for each in outcome.candidates if each.judged for _ in range(copies_of(each))]
        for outcome in outcomes
    ]
    counted = [part for part in rewards if len(part) >= least]
    return wilson(sum(holds(part) for part in counted), len(counted))


def pair_report(found: PairStatistics, settings: dict[str, Any], unit: str) -> str:
    """pairs.md. `unit`: of lengths."""
    parts = [
        "# Preference pairs",
        f"{found.pairs} pairs from {found.used} of {found.prompts} prompts and {found.samples} sampled answers.",
        "## Settings",
        table(["field", "value"], [[name, _cell(value)] for name, value in settings.items()]),
        "## Prompts",
        table(["", "prompts"], [["used", str(found.used)], *_counted(found.unused)]),
        _shares(found),
        "## Answers",
        table(["", "answers"], _answers(found)),
        _rewards(found),
        "## Length",
        _length(found.length, unit),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _cell(value: Any) -> str:
    text = " ".join(str(value).split()).replace("|", "\\|")
    return text if len(text) <= 200 else f"{text[:200]} ..."


def _counted(counts: dict[str, int]) -> list[list[str]]:
    return [[_cell(name), str(count)] for name, count in counts.items()]


def _shares(found: PairStatistics) -> str:
    shares = {"all right": found.all_right, "all wrong": found.all_wrong, "all verdicts equal": found.all_equal}
    rows = [[name, _percent(share)] for name, share in shares.items() if share is not None]
    return table(["of prompts", "share [95 % interval]"], rows)


def _percent(found: Interval) -> str:
    if math.isnan(found.value):
        return "-"
    return f"{found.value:.1%} [{found.low:.1%}, {found.high:.1%}]"


def _answers(found: PairStatistics) -> list[list[str]]:
    counts = {
        "sampled": found.samples,
        "without text": found.empty,
        "copies of another answer": found.duplicates,
        "without an end": found.unfinished,
        "not known whether they end": found.end_unknown,
        "not judged": found.unjudged,
    }
    return _counted(counts)


def _rewards(found: PairStatistics) -> str:
    rewards, gaps = found.rewards, found.gaps
    names = ["", "number", "mean", "deviation", "least", "quarter", "median", "three quarters", "greatest"]
    rows = [
        [name, str(part.count), number(part.mean), number(part.deviation), *map(number, part.quartiles)]
        for name, part in (("rewards of answers", rewards), ("differences in pairs", gaps))
    ]
    parts = [table(names, rows)]
    if rewards.values is not None:
        parts.append(table(["reward", "answers"], _counted(rewards.values)))
    if found.reasons:
        parts.append(table(["why not the full reward", "answers"], _counted(found.reasons)))
    return "\n\n".join(parts)


def _length(found: LengthBias | None, unit: str) -> str:
    if found is None:
        return "There are no pairs."
    rows = [
        ["chosen answers, mean over pairs", number(found.chosen)],
        ["rejected answers, mean over pairs", number(found.rejected)],
        ["chosen minus rejected, mean over prompts", interval(found.difference)],
        ["prompts with longer / shorter / equal chosen answers", f"{found.longer} / {found.shorter} / {found.equal}"],
        ["share of longer among unequal", _percent(found.share_longer)],
        ["sign test, p", number(found.p_value)],
    ]
    return table(["", unit], rows)
