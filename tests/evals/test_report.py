"""Tables of models."""

import pytest

from vrpo.evals.compare import mcnemar
from vrpo.evals.presets import setting_of
from vrpo.evals.report import measure_of, results_of, tables

BEFORE = {str(i): float(i < 4) for i in range(10)}
AFTER = {str(i): float(i < 9) for i in reversed(range(10))}  # in another order
WORSE = {str(i): 0.0 for i in range(10)}


def test_items_are_matched_by_name() -> None:
    """Kills: values paired by position in the file."""
    one = measure_of("gsm8k", "reward", {"before": BEFORE, "after": AFTER})
    assert one.values["after"] == tuple(float(int(item) < 9) for item in one.items)
    with pytest.raises(ValueError, match="different items, such as 9"):
        measure_of("gsm8k", "reward", {"before": BEFORE, "after": {k: v for k, v in AFTER.items() if k != "9"}})


def test_p_values_are_adjusted_for_all_tests_of_the_page() -> None:
    """Three models on one measure, two on another: values that are no verdicts count for nothing. Kills: adjusted per
    task, adjusted values given to the wrong pair."""
    verdicts = measure_of("gsm8k", "reward", {"before": BEFORE, "after": AFTER, "worse": WORSE})
    shares = measure_of("ifeval", "share", {"before": {"a": 0.5, "b": 1.0}, "after": {"a": 0.25, "b": 1.0}})
    first, second = results_of([verdicts, shares], seed=0, resamples=199)
    raw = {(v.first, v.second): v.comparison.p_value for v in first.versus}
    assert raw == {
        ("before", "after"): mcnemar(0, 5),
        ("before", "worse"): mcnemar(4, 0),
        ("after", "worse"): mcnemar(9, 0),
    }
    adjusted = {(v.first, v.second): v.p_holm for v in first.versus}
    assert adjusted[("after", "worse")] == pytest.approx(3 * mcnemar(9, 0))
    assert adjusted[("before", "after")] == pytest.approx(2 * mcnemar(0, 5))
    assert adjusted[("before", "worse")] == pytest.approx(max(2 * mcnemar(0, 5), mcnemar(4, 0)))
    assert second.versus[0].p_holm is None


def test_tables_say_what_was_found() -> None:
    one = measure_of("gsm8k", "reward", {"before": BEFORE, "after": AFTER}, setting_of("llada15", "gsm8k"))
    text = tables(results_of([one], seed=0, resamples=199), "llada15")
    assert "| task | metric | items | before | after | published, llada15: internal / OpenCompass |" in text
    assert "| gsm8k | reward | 10 | 40.0 [16.8, 68.7] % | 90.0 [59.6, 98.2] % | 83.8 / 83.6 |" in text
    assert "| gsm8k | reward | before | after | 50.0 [" in text
    assert "| 0 | 5 | 0.062 | 0.062 |" in text
    alone = tables(results_of([measure_of("t", "m", {"only": {"a": 0.5, "b": 1.5}})], seed=0, resamples=199), None)
    assert "published" not in alone
    assert "second minus first" not in alone


def test_json_has_every_value() -> None:
    one = measure_of("gsm8k", "reward", {"before": BEFORE, "after": AFTER})
    (found,) = (result.as_json() for result in results_of([one], seed=0, resamples=199))
    assert found["items"] == list(BEFORE)
    assert found["values"]["before"] == list(BEFORE.values())
    assert found["comparisons"][0]["p_value"] == mcnemar(0, 5)
    assert found["comparisons"][0]["first"] == "before"
    assert found["models"]["after"]["mean"] == 0.9
