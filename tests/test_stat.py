"""The statistical assertions themselves: they seldom cry wolf, and they can fail."""

import pytest
import torch
from torch import Tensor

from tests.stat import assert_law, assert_mean, law_resolution, mean_width

LAW = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
TRIALS, SAMPLES = 400, 2000


def fails(check: object, *arguments: object, **options: object) -> bool:
    try:
        check(*arguments, **options)  # type: ignore[operator]
    except AssertionError:
        return True
    return False


def counts(law: Tensor, generator: torch.Generator) -> Tensor:
    return torch.multinomial(law, SAMPLES, replacement=True, generator=generator).bincount(minlength=len(law))


def test_law_false_alarms_are_at_most_the_stated_rate() -> None:
    """At alarm = 0.05, 400 true hypotheses: more than 45 alarms has probability < 1e-6 at a rate of 0.05 (Chernoff)."""
    generator = torch.Generator().manual_seed(0)
    alarms = sum(fails(assert_law, counts(LAW, generator), LAW, resolution=1.0, alarm=0.05) for _ in range(TRIALS))
    assert alarms <= 45


def test_law_sees_its_resolution() -> None:
    """A law moved by exactly the stated resolution is always found."""
    moved = LAW.clone()
    resolution = law_resolution(SAMPLES, len(LAW))
    moved[0] -= resolution
    moved[1] += resolution
    generator = torch.Generator().manual_seed(1)
    assert all(fails(assert_law, counts(moved, generator), LAW, resolution=resolution) for _ in range(100))


def test_law_finds_impossible_outcomes_and_weak_tests() -> None:
    law = torch.tensor([1.0, 0.0])
    assert_law(torch.tensor([5000, 0]), law, resolution=0.1)
    with pytest.raises(AssertionError, match="impossible"):
        assert_law(torch.tensor([4999, 1]), law, resolution=0.1)
    with pytest.raises(AssertionError, match="too weak"):
        assert_law(torch.tensor([10, 0]), law, resolution=0.1)
    with pytest.raises(AssertionError, match="not a law"):
        assert_law(torch.tensor([10, 0]), torch.tensor([0.6, 0.6]), resolution=0.1)


def test_mean_false_alarms_are_at_most_the_stated_rate() -> None:
    generator = torch.Generator().manual_seed(2)
    alarms = sum(
        fails(assert_mean, torch.rand(500, generator=generator), 0.5, 0, 1, resolution=1.0, alarm=0.05)
        for _ in range(TRIALS)
    )
    assert alarms <= 45


def test_mean_sees_its_resolution() -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(100):
        samples = torch.rand(SAMPLES, generator=generator)
        resolution = 2 * mean_width(samples, 0, 1)
        assert fails(assert_mean, samples, 0.5 + resolution, 0, 1, resolution=resolution)
        assert fails(assert_mean, samples, 0.5 - resolution, 0, 1, resolution=resolution)


def test_mean_refuses_weak_tests_and_wrong_bounds() -> None:
    samples = torch.linspace(0, 1, 100)
    with pytest.raises(AssertionError, match="too weak"):
        assert_mean(samples, 0.5, 0, 1, resolution=0.01)
    with pytest.raises(AssertionError, match="above"):
        assert_mean(samples, 0.5, 0, 0.9, resolution=10)
