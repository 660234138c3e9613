"""What the picture of `vrpo eval` shows, read off its axes."""

from pathlib import Path
from typing import Any

import pytest

from vrpo.diagnostics import eval_picture as room
from vrpo.diagnostics.plots import figure_class
from vrpo.evals.report import measure_of, results_of

MODELS = {"before": 4, "after": 9, "worse": 1}


def _results(*names: str) -> list[dict[str, Any]]:
    found = {name: {str(item): float(item < MODELS[name]) for item in range(10)} for name in names}
    shares = {name: {item: value + 0.5 for item, value in values.items()} for name, values in found.items()}
    measures = [measure_of("gsm8k", "reward", found), measure_of("ifeval", "reward", shares)]
    return [one.as_json() for one in results_of(measures, seed=0, resamples=199)]


def test_differences_are_paired_and_from_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kills: values in place of differences, the second against the third, percentages of what is no share."""
    figures = []

    class Kept(figure_class()):  # type: ignore[misc]
        def savefig(self, *given: Any, **named: Any) -> None:
            figures.append(self)
            super().savefig(*given, **named)

    monkeypatch.setattr(room, "figure_class", lambda: Kept)
    room.eval_picture(tmp_path / "eval.png", _results("before", "after", "worse"))
    points = [[float(one.lines[0].get_xdata()[0]) for one in axes.containers] for axes in figures[0].axes]
    assert points == [
        pytest.approx([40.0, 90.0, 10.0]),
        pytest.approx([50.0, -30.0]),
        pytest.approx([0.9, 1.4, 0.6]),
        pytest.approx([0.5, -0.3]),
    ]
    assert figures[0].axes[1].get_xlabel() == "minus before, percentage points"
    room.eval_picture(tmp_path / "alone.png", _results("before"))
    assert len(figures[1].axes) == 2
    assert (tmp_path / "alone.png").stat().st_size > 5000
