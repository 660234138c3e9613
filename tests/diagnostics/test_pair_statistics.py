"""The account of pairs: counts by hand, tests and intervals against scipy."""

import math
from pathlib import Path

import pytest
from scipy.stats import binomtest

from tests.loops import each
from vrpo.diagnostics.pair_plots import length_picture, reward_by_length
from vrpo.diagnostics.pair_statistics import (
    distribution,
    length_bias,
    pair_report,
    pair_statistics,
    sign_test,
    wilson,
)
from vrpo.rewards.pairing import BestWorst, Candidate, Different, Outcome, Rule, Sample, distinct, paired
from vrpo.rewards.verdict import Verdict


@each(("above", "below"), [(0, 0), (3, 0), (7, 7), (10, 4), (900, 1000), (40000, 40500)])
def test_sign_test(above: int, below: int) -> None:
    """Kills: a one-sided p, more than 1 in the middle, an overflow of binomials."""
    expected = binomtest(above, above + below).pvalue if above + below else 1.0
    assert sign_test(above, below) == pytest.approx(expected, rel=1e-6)


@each(("right", "count"), [(0, 5), (5, 5), (3, 10), (400, 1000)])
def test_wilson(right: int, count: int) -> None:
    expected = binomtest(right, count).proportion_ci(method="wilson")
    found = wilson(right, count)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert math.isnan(wilson(0, 0).value)


def outcome(prompt: int, *answers: tuple[str, int, float], rule: Rule | None = None) -> Outcome:
    """Of answers (text, length, reward); a text that ends with ... has no end."""
    samples = [Sample(index, text, length, not text.endswith("...")) for index, (text, length, _) in enumerate(answers)]
    candidates = [
        Candidate(sample, Verdict(answers[sample.index][2], None, None if answers[sample.index][2] == 1 else "wrong"))
        for sample in distinct(samples)
    ]
    return paired(prompt, samples, candidates, rule or BestWorst(), 0)


OUTCOMES = [
    outcome(0, ("a", 4, 1.0), ("b", 2, 0.0), (" a ", 4, 1.0), ("", 0, 0.0)),
    outcome(1, ("c", 5, 1.0), ("d...", 6, 1.0)),
    outcome(2, ("e", 1, 0.0), ("f", 1, 0.0), ("g", 2, 0.0)),
    outcome(3, ("h", 3, math.nan), ("i", 3, 1.0)),
    outcome(4, ("j", 9, 0.0), ("k", 3, 1.0)),
]


def test_counts() -> None:
    """Kills: copies not counted, empty answers taken for wrong ones, unjudged ones for equal, pairs for prompts."""
    found = pair_statistics(OUTCOMES, verified=True)
    assert (found.prompts, found.used, found.pairs, found.samples) == (5, 2, 2, 13)
    assert found.unused == {"all verdicts are equal": 2, "fewer than two answers could be judged": 1}
    assert (found.empty, found.duplicates, found.unfinished, found.end_unknown, found.unjudged) == (1, 1, 1, 0, 1)
    assert found.rewards.count == 11
    assert found.rewards.values == {"0": 5, "1": 6}
    assert found.all_equal.value == 2 / 4  # of those with two verdicts
    assert found.all_right is not None
    assert found.all_wrong is not None
    assert (found.all_right.value, found.all_wrong.value) == (2 / 5, 1 / 5)
    assert found.reasons == {"wrong": 6}
    assert pair_statistics(OUTCOMES, verified=False).all_right is None


def test_reasons_without_their_numbers() -> None:
    """Kills: a table of the commonest reasons in which each occurs once."""
    reasons = ["not 18", "not -1/2", "uses [4, 55], not [49, 53]", "uses [1], not [2, 3]", "failed: AssertionError"]
    samples = [Sample(index, f"a{index}", 2) for index in range(5)]
    candidates = [Candidate(each, Verdict(0.0, None, reasons[each.index])) for each in samples]
    found = pair_statistics([paired(0, samples, candidates, BestWorst(), 0)], verified=True).reasons
    assert found == {"not …": 2, "uses …, not …": 2, "failed: AssertionError": 1}


def test_length_bias_counts_prompts() -> None:
    """Kills: the many pairs of one prompt counted as many observations; chosen and rejected exchanged."""
    many = outcome(0, *[(f"right {i}", 9, 1.0) for i in range(4)], *[(f"wrong {i}", 2, 0.0) for i in range(4)],
                   rule=Different())  # fmt: skip
    few = outcome(1, ("a", 2, 1.0), ("b", 3, 0.0))
    found = length_bias([many, few])
    assert found is not None
    assert (found.longer, found.shorter, found.equal) == (1, 1, 0)
    assert found.p_value == 1.0
    assert found.difference.value == (7 - 1) / 2
    assert found.difference.low < 0 < found.difference.high
    assert found.chosen == (16 * 9 + 2) / 17
    one = length_bias([few])
    assert one is not None
    assert math.isnan(one.difference.low)
    assert length_bias(OUTCOMES[1:3]) is None


def test_distribution() -> None:
    found = distribution([1.0, 0.0, 1.0, 1.0])
    assert (found.count, found.mean, found.deviation) == (4, 0.75, math.sqrt(3 / 16))
    assert found.quartiles == (0.0, 1.0, 1.0, 1.0, 1.0)
    assert distribution([]).count == 0
    assert distribution(float(i) for i in range(11)).values is None


def test_reward_by_length() -> None:
    """All judged answers are in it once per copy, equal lengths together, in ascending order."""
    bins = reward_by_length(OUTCOMES)
    assert sum(part.answers for part in bins) == 11
    assert [part.length for part in bins] == sorted(part.length for part in bins)
    assert sum(part.reward * part.answers for part in bins) == pytest.approx(6)
    (four,) = reward_by_length([outcome(0, ("a", 4, 1.0), ("b", 4, 0.0), ("c", 4, 1.0), ("d", 4, 1.0))])
    assert four == (4, 0.75, pytest.approx(0.25), 4)  # deviation 1/2 (n - 1), over the root of 4
    assert reward_by_length([]) == []


@each("outcomes", [OUTCOMES, OUTCOMES[1:3], []])
def test_report_and_picture(outcomes: list[Outcome], tmp_path: Path) -> None:
    """Kills: a report that takes pairs for granted, a table broken by a bar in a field."""
    text = pair_report(pair_statistics(outcomes, verified=True), {"judge": {"pattern": "a|b"}}, "characters")
    tables = [line for line in text.split("\n") if line.startswith("|")]
    assert "a\\|b" in text
    assert "nan" not in text
    assert all(line.rstrip().endswith("|") for line in tables)
    length_picture(tmp_path / "length.png", outcomes, "characters")
    assert (tmp_path / "length.png").read_bytes().startswith(b"\x89PNG")
