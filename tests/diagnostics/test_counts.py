"""The law of the masked count: reweighted second moments are the enumerated ones, and a power law is found again."""

from itertools import product

import pytest
import torch

from tests.exact import count_law as law_of
from tests.training.runs import pairs as preference_pairs
from tests.training.runs import tiny
from vrpo.data.collate import PreferenceCollator, tokens_of
from vrpo.diagnostics.counts import count_law, fit_counts, second_moment
from vrpo.diagnostics.replicates import AnswerGradients, replicated
from vrpo.draws import FixedCount
from vrpo.estimator import pack_terms

LENGTH = 8


def answers(power: float, scale: float = 1.0) -> AnswerGradients:
    """Every count once in each of three replicates; |gradient|^2 = scale * share^power, without noise."""
    masked = torch.arange(1, LENGTH + 1, dtype=torch.float64).expand(3, 2, LENGTH)
    square = scale * (masked / LENGTH) ** power
    return AnswerGradients(masked.clone(), square, torch.tensor([LENGTH, LENGTH]))


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_reweighted_second_moments(exponent: float) -> None:
    """sum_m q(m) ((1/L) / q(m))^2 s(m), by enumeration. Kills: weights not squared, q not normalised, share for m."""
    share = torch.arange(1, LENGTH + 1, dtype=torch.float64)[None, None] / LENGTH
    square = torch.linspace(3, 1, LENGTH, dtype=torch.float64)[None, None]
    law = law_of(exponent, LENGTH)
    expected = sum(q * (1 / LENGTH / q) ** 2 * float(s) for q, s in zip(law, square.flatten(), strict=True))
    assert second_moment(share, square, torch.tensor([LENGTH]).double(), exponent) == pytest.approx(expected)


@pytest.mark.parametrize("power", [-1.2, -0.5, 0.0])
def test_a_power_law_is_found_again(power: float) -> None:
    """Answers of very different size count alike. Kills: an exponent of -b, or of b / 2; a fit that long answers rule.

    The slope is exact; the best exponent is -b / 2 because q ~ sqrt(second moment).
    """
    found = count_law([answers(power), answers(power, 1000.0)])
    assert found.slope.value == pytest.approx(power, abs=1e-6)
    assert found.exponent_of_slope.value == pytest.approx(-power / 2, abs=1e-6)
    assert found.exponent == pytest.approx(-power / 2, abs=0.026)
    assert found.reduction.value <= 1 + 1e-12
    mean = sum((m / LENGTH) ** power for m in range(1, LENGTH + 1)) / LENGTH
    assert found.law(0.5) == pytest.approx(0.5**power / mean, rel=1e-5)
    assert sum(part.draws for part in found.bins) == 2 * 2 * 3 * LENGTH
    shares = [part.share for part in found.bins]
    assert shares == sorted(shares)


def test_an_answer_of_one_token_has_no_count_to_choose() -> None:
    one = AnswerGradients(torch.ones(3, 2, LENGTH).double(), torch.ones(3, 2, LENGTH).double(), torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="no answer has two tokens"):
        count_law([one])
    assert count_law([one, answers(-1.0)]).slope.value == pytest.approx(-1.0)


def test_fitting_is_the_law_of_measured_gradients() -> None:
    """`fit_counts` of pairs is `count_law` of gradients by autograd under the same draws, which a reference has no part
    in. Kills: the margin's gradient in place of each answer's; weights left out; one pair for all."""
    denoiser = tiny()
    parameters = list(denoiser.module.parameters())
    collate = PreferenceCollator(denoiser.pad_id)
    pairs = [tokens_of(collate([row]), seed=0, epoch=0) for row in preference_pairs(2)]
    passes: list[int] = []
    found = fit_counts(
        denoiser, pairs, parameters, max_tokens=64, num_replicates=3, num_times=2, progress=passes.append
    )
    assert sum(passes) == 2 * 2 * 3 * 2
    answers = []
    for pair in pairs:
        tokens, structure = replicated(pair, 3)
        draws = FixedCount(2)(tokens, structure)
        square = torch.zeros(6, 2, dtype=torch.float64)
        for row, k in product(range(6), range(2)):
            term = 2 * pack_terms(denoiser, tokens, draws, torch.tensor([[row, k]])).sum()
            square[row, k] = sum(part.square().sum() for part in torch.autograd.grad(term, parameters))
        sides = [part.unflatten(0, (2, 3)).transpose(0, 1) for part in (draws.masked.sum(-1).double(), square)]
        answers.append(AnswerGradients(*sides, pair.length))
    expected = count_law(answers)
    assert found.exponent == expected.exponent
    assert found.reduction.value == pytest.approx(expected.reduction.value, rel=1e-9)
    assert found.slope.value == pytest.approx(expected.slope.value, rel=1e-6)
