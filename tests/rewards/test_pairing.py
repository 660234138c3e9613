"""Rules of pair selection against brute force, on any candidates: ties, copies, unjudged and unfinished answers."""

import math
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrpo.rewards.pairing import (
    AtMost,
    BestWorst,
    Candidate,
    Couple,
    Different,
    Key,
    LengthMatched,
    Margin,
    Rule,
    Sample,
    distinct,
    paired,
    possible,
)
from vrpo.rewards.verdict import Verdict

pytestmark = pytest.mark.filterwarnings(  # beartype checks an item of a tuple that it chooses at random
    "ignore:Do not use the `random` module inside strategies"
)
RULES: list[Rule] = [
    BestWorst(),
    Margin(0.3),
    Margin(0.3, every_pair=True),
    Different(),
    LengthMatched(),
    LengthMatched(1.5),
    LengthMatched(2.0, every_pair=True),
    AtMost(Different(), 2),
    AtMost(LengthMatched(every_pair=True), 1),
]
rule_of = st.sampled_from(RULES)


@st.composite
def samples_of(draw: st.DrawFn) -> list[Sample]:
    indices = draw(st.lists(st.integers(0, 9), unique=True, max_size=6))
    texts = st.sampled_from(["a", " a", "b", "c\n", "d", "", "  "])
    ends = st.sampled_from([True, False, None])
    return [Sample(index, draw(texts), draw(st.integers(1, 12)), draw(ends)) for index in indices]


@st.composite
def candidates_of(draw: st.DrawFn) -> list[Candidate]:
    """Judged answers in any order, as they come after merging equal ones, and sometimes before."""
    samples = draw(samples_of())
    if draw(st.booleans()):
        samples = distinct(samples)
    rewards = st.sampled_from([0.0, 0.4, 0.7, 1.0, -3.5, math.nan])
    found = [Candidate(sample, Verdict(draw(rewards)), draw(st.booleans())) for sample in samples]
    return draw(st.permutations(found))


def brute(candidates: list[Candidate]) -> list[Couple]:
    """Every ordered pair that satisfies the definition, written down once more."""
    return [
        Couple(one, other)
        for one, other in product(candidates, candidates)
        if one.reward > other.reward and one.may_win and one.sample.text.strip() != other.sample.text.strip()
    ]


@given(candidates_of(), rule_of, st.integers(0, 3))
def test_every_pair_prefers_the_better_one(candidates: list[Candidate], rule: Rule, seed: int) -> None:
    """Kills: >= for >, equal texts, an answer that may not win as the chosen one, nan rewards, pairs taken twice."""
    outcome = paired(0, [], candidates, rule, seed)
    assert len(set(outcome.couples)) == len(outcome.couples)
    for couple in outcome.couples:
        assert couple in brute(candidates)
        assert couple.chosen.reward > couple.rejected.reward
        assert couple.chosen.sample.text.strip() != couple.rejected.sample.text.strip()
    assert (outcome.unused is None) == bool(outcome.couples)


@given(candidates_of(), rule_of, st.integers(0, 3), st.randoms())
def test_the_order_of_samples_does_not_matter(
    candidates: list[Candidate], rule: Rule, seed: int, random: object
) -> None:
    """Kills: the first of equals, whichever that is; a hash of positions instead of samples."""
    shuffled = list(candidates)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert paired(1, [], candidates, rule, seed).couples == paired(1, [], shuffled, rule, seed).couples


@given(candidates_of())
def test_possible_is_the_definition(candidates: list[Candidate]) -> None:
    assert set(possible(candidates)) == set(brute(candidates))


@given(candidates_of())
def test_best_and_worst(candidates: list[Candidate]) -> None:
    """Kills: best against second, an unfinished answer's reward as the best, no pair because the best may not win."""
    found, options = BestWorst()(possible(candidates), Key(0, 0)), brute(candidates)
    assert len(found) == bool(options)
    for couple in found:
        assert couple.gap == max(option.gap for option in options)
        if len({each.sample.text.strip() for each in candidates}) == len(candidates):  # else the worst may be a copy
            assert couple.rejected.reward == min(each.reward for each in candidates if each.judged)


@given(candidates_of(), st.sampled_from([0.3, 0.4, 0.7, 1.0]))
def test_margins(candidates: list[Candidate], margin: float) -> None:
    """Kills: > for >=, a margin lost to binary rounding (0.7 - 0.4 < 0.3), narrow ones before wide ones."""
    wide = {couple for couple in brute(candidates) if round(couple.gap, 6) >= margin}
    every = Margin(margin, every_pair=True)(possible(candidates), Key(0, 0))
    assert set(every) == wide
    assert [couple.gap for couple in every] == sorted((couple.gap for couple in every), reverse=True)
    assert Margin(margin)(possible(candidates), Key(0, 0)) == every[:1]


@given(candidates_of(), st.sampled_from([None, 1.0, 1.5, 3.0]))
def test_length_matching_minimises(candidates: list[Candidate], limit: float | None) -> None:
    """Kills: differences for ratios, chosen over rejected without the inverse, a limit that is not one."""
    ratios = [
        max(couple.chosen.sample.length / couple.rejected.sample.length,
            couple.rejected.sample.length / couple.chosen.sample.length)
        for couple in brute(candidates)
    ]  # fmt: skip
    within = sorted(ratio for ratio in ratios if limit is None or ratio <= limit)
    every = LengthMatched(limit, every_pair=True)(possible(candidates), Key(0, 0))
    assert [couple.length_ratio for couple in every] == pytest.approx(within)
    assert LengthMatched(limit)(possible(candidates), Key(0, 0)) == every[:1]


@given(candidates_of(), rule_of, st.integers(1, 3))
def test_the_maximum_takes_the_first(candidates: list[Candidate], rule: Rule, count: int) -> None:
    """Kills: one too many, the last instead of the first."""
    whole = rule(possible(candidates), Key(5, 2))
    assert AtMost(rule, count)(possible(candidates), Key(5, 2)) == whole[:count]


@given(candidates_of())
def test_every_different_pair(candidates: list[Candidate]) -> None:
    found = Different()(possible(candidates), Key(0, 0))
    assert len(found) == len(set(found))
    assert set(found) == set(brute(candidates))


@given(samples_of(), st.randoms())
def test_distinct(samples: list[Sample], random: object) -> None:
    """Kills: empty answers kept, text compared with its white space, copies lost, the first by position."""
    found = distinct(samples)
    texts = [sample.text.strip() for sample in found]
    assert len(set(texts)) == len(texts)
    assert set(texts) == {sample.text.strip() for sample in samples} - {""}
    for merged in found:
        equal = {sample.index: sample for sample in samples if sample.text.strip() == merged.text.strip()}
        assert merged.index == min(equal)
        assert sorted((merged.index, *merged.copies)) == sorted(equal)
        assert merged.text == equal[merged.index].text
        ends = {sample.finished for sample in equal.values()}
        assert merged.finished is (True if True in ends else None if None in ends else False)
    shuffled = list(samples)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert distinct(shuffled) == found


def candidate(index: int, reward: float, length: int = 3, may_win: bool = True) -> Candidate:
    return Candidate(Sample(index, f"answer {index}", length), Verdict(reward), may_win)


def test_chance_is_the_seed_and_the_prompt() -> None:
    """Among equals every one is taken by some prompt, and by the same one again. Kills: always the first, a hash
    without the seed or without the prompt, Python's hash (another one in every process)."""
    equals = [candidate(0, 0.0), *(candidate(index, 1.0) for index in (1, 2, 3))]
    by_prompt = [paired(prompt, [], equals, BestWorst(), 0).couples[0].chosen.sample.index for prompt in range(40)]
    by_seed = [paired(0, [], equals, BestWorst(), seed).couples[0].chosen.sample.index for seed in range(40)]
    assert set(by_prompt) == set(by_seed) == {1, 2, 3}
    assert by_prompt != by_seed
    assert Key(3, 4).rank(1, 2) != Key(3, 4).rank(2, 1)
    assert Key(1, 23).rank() != Key(12, 3).rank()


def test_equally_close_lengths_take_the_wider_rewards() -> None:
    found = LengthMatched()(possible([candidate(0, 0.0), candidate(1, 0.5), candidate(2, 1.0)]), Key(0, 0))
    assert [(couple.chosen.sample.index, couple.rejected.sample.index) for couple in found] == [(2, 0)]


@pytest.mark.parametrize(
    ("candidates", "rule", "reason"),
    [
        ([candidate(0, 1.0)], BestWorst(), "fewer than two different answers"),
        ([candidate(0, 1.0), candidate(1, math.nan)], BestWorst(), "fewer than two answers could be judged"),
        ([candidate(0, 1.0), candidate(1, 1.0)], BestWorst(), "all verdicts are equal"),
        ([candidate(0, 1.0, may_win=False), candidate(1, 0.0)], BestWorst(), "may not win"),
        ([candidate(0, 1.0), candidate(1, 0.0)], Margin(2.0), "no pair meets the rule"),
        ([candidate(0, 1.0, 9), candidate(1, 0.0, 2)], LengthMatched(1.2), "no pair meets the rule"),
    ],
)
def test_prompts_without_a_pair_say_why(candidates: list[Candidate], rule: Rule, reason: str) -> None:
    outcome = paired(0, [], candidates, rule, 0)
    assert outcome.couples == ()
    assert reason in str(outcome.unused)


def test_bad_parameters() -> None:
    """Kills: margins of 0, which every pair has; infinite rewards, of which every margin is infinite or nan."""
    for make in (
        lambda: Margin(0.0),
        lambda: Margin(math.nan),
        lambda: LengthMatched(0.5),
        lambda: LengthMatched(math.nan),
    ):
        with pytest.raises(ValueError, match="must be"):
            make()
    with pytest.raises(ValueError, match="max_pairs must be at least 1"):
        AtMost(Different(), 0)
    with pytest.raises(ValueError, match="sample 4 has the reward inf"):
        replace(candidate(4, 0.0), verdict=Verdict(math.inf))
