"""From judged answers to preference pairs: which answers of a prompt are compared, and which is preferred.

A rule sees the pairs that are possible at all (`possible`) and puts those that it takes into an order, best first.
Choices among equals are a hash of (seed, prompt, samples): the same in any order of the samples, and replayable.
What deliberately does not live here: judging (the verifiers and reward models), files (pairs/), statistics over
prompts (diagnostics/pair_statistics.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Protocol, runtime_checkable

from vrpo.rewards.verdict import Verdict

_ROUNDING = 1e-9  # 0.7 - 0.4 is a margin of 0.3


@dataclass(frozen=True)
class Sample:
    """One sampled answer to a prompt. `length`: in tokens or characters, one unit for all; positive if there is text.
    `finished`: whether it came to its end token (None: not known). `copies`: samples with the same text, merged into
    this one."""

    index: int
    text: str
    length: int
    finished: bool | None = True
    copies: tuple[int, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """A judged answer. A reward that is not a number means that it could not be judged, and the verdict's reason says
    why: it enters no pair. `may_win`: False for an answer that may only be rejected, such as an unfinished one."""

    sample: Sample
    verdict: Verdict
    may_win: bool = True

    def __post_init__(self) -> None:
        if math.isinf(self.verdict.reward):
            raise ValueError(f"sample {self.sample.index} has the reward {self.verdict.reward}: rewards are finite")

    @property
    def reward(self) -> float:
        return self.verdict.reward

    @property
    def judged(self) -> bool:
        return not math.isnan(self.verdict.reward)


@dataclass(frozen=True)
class Couple:
    """A preference pair. Not to be confused with `Pairs`, the structure of rows in training."""

    chosen: Candidate
    rejected: Candidate

    @property
    def gap(self) -> float:
        """Difference of the rewards, positive."""
        return self.chosen.reward - self.rejected.reward

    @property
    def length_ratio(self) -> float:
        """Longer answer over shorter one, at least 1."""
        lengths = (self.chosen.sample.length, self.rejected.sample.length)
        assert min(lengths) > 0, "an answer with text has a length"
        return max(lengths) / min(lengths)


@dataclass(frozen=True)
class Key:
    """What chance depends on: the seed and the prompt's index."""

    seed: int
    prompt_index: int

    def rank(self, *samples: int) -> bytes:
        """A keyed hash of these samples, to order equals by."""
        text = " ".join(map(str, (self.seed, self.prompt_index, *samples)))
        return blake2b(text.encode(), digest_size=16).digest()

    def couple(self, couple: Couple) -> bytes:
        return self.rank(couple.chosen.sample.index, couple.rejected.sample.index)


@runtime_checkable
class Rule(Protocol):
    """Which of the possible pairs to one prompt are taken, best first."""

    def __call__(self, couples: Sequence[Couple], key: Key) -> list[Couple]: ...


@dataclass(frozen=True)
class BestWorst:
    """One pair: the best answer that may win against the worst."""

    def __call__(self, couples: Sequence[Couple], key: Key) -> list[Couple]:
        return _widest_first(couples, key)[:1]


@dataclass(frozen=True)
class Margin:
    """Pairs whose rewards differ by at least `margin`, the widest first: the widest one, or every one.

    Args:
        margin: in units of the reward, above 0; met also where binary rounding (1e-9) takes something off.
    """

    margin: float
    every_pair: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.margin < math.inf:
            raise ValueError(f"margin must be positive and finite, not {self.margin}")

    def __call__(self, couples: Sequence[Couple], key: Key) -> list[Couple]:
        wide = [couple for couple in couples if couple.gap >= self.margin - _ROUNDING]
        return _widest_first(wide, key)[: None if self.every_pair else 1]


@dataclass(frozen=True)
class Different:
    """Every pair of different reward, in an order of chance."""

    def __call__(self, couples: Sequence[Couple], key: Key) -> list[Couple]:
        return sorted(couples, key=key.couple)


@dataclass(frozen=True)
class LengthMatched:
    """Pairs of different reward whose lengths have the smallest ratio: the closest one, or every one, closest first;
    of equally close ones the one of wider rewards first. Against length bias: what is preferred is then not the length.

    Args:
        max_ratio: of the longer to the shorter answer, at least 1; None: no limit.
    """

    max_ratio: float | None = None
    every_pair: bool = False

    def __post_init__(self) -> None:
        if self.max_ratio is not None and not self.max_ratio >= 1:
            raise ValueError(f"max_ratio must be at least 1, not {self.max_ratio}")

    def __call__(self, couples: Sequence[Couple], key: Key) -> list[Couple]:
        limit = math.inf if self.max_ratio is None else self.max_ratio
        close = [couple for couple in couples if couple.length_ratio <= limit]
        ordered = sorted(close, key=lambda couple: (couple.length_ratio, -couple.gap, key.couple(couple)))
        return ordered[: None if self.every_pair else 1]


@dataclass(frozen=True)
class AtMost:
    """The first `max_pairs` pairs of a rule, for each prompt."""

    rule: Rule
    max_pairs: int

    def __post_init__(self) -> None:
        if self.max_pairs < 1:
            raise ValueError(f"max_pairs must be at least 1, not {self.max_pairs}")

    def __call__(self, couples: Sequence[Couple], key: Key) -> list[Couple]:
        return self.rule(couples, key)[: self.max_pairs]


def _widest_first(couples: Sequence[Couple], key: Key) -> list[Couple]:
    return sorted(couples, key=lambda couple: (-couple.gap, key.couple(couple)))


def distinct(samples: Sequence[Sample]) -> list[Sample]:
    """The different answers with text, by index: of equal ones (less white space around them) the first, with the
    others as its `copies`. It counts as finished if any of them is, and as not known if none is and one is not known.
    """
    groups: dict[str, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: sample.index):
        if sample.text.strip():
            groups.setdefault(sample.text.strip(), []).append(sample)
    return [_merged(group) for group in groups.values()]


def _merged(equal: list[Sample]) -> Sample:
    known = [sample.finished for sample in equal]
    finished = True if True in known else None if None in known else False
    copies = tuple(sample.index for sample in equal[1:])
    return replace(equal[0], finished=finished, copies=copies)


def possible(candidates: Sequence[Candidate]) -> list[Couple]:
    """Every pair in which an answer that may win has the higher reward and the texts differ, by sample index."""
    judged = sorted((each for each in candidates if each.judged), key=lambda each: each.sample.index)
    return [
        Couple(better, worse)
        for better in judged
        for worse in judged
        if better.may_win and better.reward > worse.reward and better.sample.text.strip() != worse.sample.text.strip()
    ]


@dataclass(frozen=True)
class Outcome:
    """What became of one prompt: its samples as they were drawn, the candidates among them, its pairs, and, if it has
    none, why."""

    prompt_index: int
    samples: tuple[Sample, ...]
    candidates: tuple[Candidate, ...]
    couples: tuple[Couple, ...]
    unused: str | None


def paired(
    prompt_index: int, samples: Sequence[Sample], candidates: Sequence[Candidate], rule: Rule, seed: int
) -> Outcome:
    """Apply a rule to the candidates of a prompt."""
    options = possible(candidates)
    couples = rule(options, Key(seed, prompt_index))
    unused = None if couples else _why_none(candidates, options)
    return Outcome(prompt_index, tuple(samples), tuple(candidates), tuple(couples), unused)


def _why_none(candidates: Sequence[Candidate], options: Sequence[Couple]) -> str:
    rewards = [each.reward for each in candidates if each.judged]
    if len(candidates) < 2:
        return "fewer than two different answers"
    if len(rewards) < 2:
        return "fewer than two answers could be judged"
    if len(set(rewards)) == 1:
        return "all verdicts are equal"
    return "no pair meets the rule" if options else "what is better may not win (unfinished)"
