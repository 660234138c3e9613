"""Rows of the report: which pairs a mean is over, and how a reader is told."""

import pytest
import torch

from vrpo.diagnostics.designs import allocations
from vrpo.diagnostics.replicates import Replicates
from vrpo.diagnostics.report import report_cell
from vrpo.diagnostics.statistics import left_out_numbers, noise
from vrpo.diagnostics.summary import Row

BETA = 0.2


def row(pairs: list[Replicates]) -> Row:
    left_out = [list(part) for part in zip(*(left_out_numbers(pair, BETA) for pair in pairs), strict=True)]
    return Row(allocations([1])[0], 1, True, [noise(pair, BETA) for pair in pairs], left_out)


def test_pairs_without_a_correlation_are_not_counted() -> None:
    """One pair of three has answers of one token, whose bounds have no noise; all other means are over all three.

    Kills: a column of nan because of one pair; a mean over the others that does not say so.
    """
    policy = torch.tensor([[[3.0], [1.0]], [[5.0], [2.0]], [[1.0], [4.0]], [[2.0], [0.0]]], dtype=torch.float64)
    gradient = torch.ones(4, 1, 2, dtype=torch.float64)
    noisy = Replicates(policy, policy + policy.roll(1, 0), gradient)
    quiet = Replicates(policy[:1].expand(4, 2, 1), policy[:1].expand(4, 2, 1), gradient)
    found = row([noisy, quiet, noisy])
    assert found.mean("correlation") == row([noisy]).mean("correlation")
    assert found.counted("correlation") == [0, 2]
    assert found.mean("score_variance").value == pytest.approx(2 / 3 * noise(noisy, BETA).score_variance)
    assert report_cell(found, "correlation").endswith("(2 pairs)")
    assert "pairs" not in report_cell(found, "score_variance")
    assert report_cell(row([quiet]), "correlation") == "not resolved (0 pairs)"
    assert found.as_json()["correlation"]["counted"] == 2
