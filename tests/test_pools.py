"""Pools of references: by their formulas on probabilities, and what they are where references agree."""

from collections.abc import Callable
from math import exp, log

import pytest
import torch
from torch import Tensor

from tests.objectives import BETA, LABELS, PAIRS, RANKINGS, of, terms
from vrpo.losses.objective import Mixture
from vrpo.losses.pairwise import DPO, Preference, Sigmoid
from vrpo.losses.pools import (
    Confidence,
    Fixed,
    Mean,
    Pool,
    Pooled,
    ReferenceFree,
    bounds,
    geometric,
    harmonic,
    log_ratios,
)

THREE = (0.2, 0.5, 0.3)
both = pytest.mark.parametrize("mean", [harmonic, geometric])


def pooled(pool: Pool, references: int = 3, seed: int = 0) -> list[float]:
    return pool(of(*terms(references, seed)), PAIRS).tolist()


def plain_bounds(references: int = 3, seed: int = 0) -> tuple[list[float], list[list[float]]]:
    """B of each row, by policy and by each reference."""
    policy, reference = terms(references, seed)
    return [sum(row) for row in policy.tolist()], [[sum(draws) for draws in row] for row in reference.tolist()]


# Values ---------------------------------------------------------------------------------------------------------------


def test_the_harmonic_pool_is_its_formula() -> None:
    """R = -log sum_k a_k / pi_k, the reference being exp R (METHODS section 5, MRPO).

    Kills: the arithmetic mean, or a sign of it; log a left out; weights of the other references.
    """
    policy, reference = plain_bounds()
    expected = [
        b + log(sum(a / exp(value) for a, value in zip(THREE, row, strict=True)))
        for b, row in zip(policy, reference, strict=True)
    ]
    assert pooled(Pooled(harmonic, Fixed(THREE))) == pytest.approx(expected, abs=1e-13)


def test_the_geometric_pool_is_its_formula() -> None:
    """R = sum_k a_k log pi_k. Kills: weights that are ignored, or those of the others."""
    policy, reference = plain_bounds()
    expected = [
        b - sum(a * value for a, value in zip(THREE, row, strict=True))
        for b, row in zip(policy, reference, strict=True)
    ]
    assert pooled(Pooled(geometric, Fixed(THREE))) == pytest.approx(expected, abs=1e-13)


def confidence(reference: list[list[float]]) -> dict[int, list[float]]:
    """ARWC of each row, from the bounds of its pair: |log pi_k(y_w) - log pi_k(y_l)|, adding up to 1."""
    weight = {}
    for chosen, rejected in ((2, 0), (1, 3), (5, 4)):
        gap = [abs(w - r) for w, r in zip(reference[chosen], reference[rejected], strict=True)]
        weight[chosen] = weight[rejected] = [value / sum(gap) for value in gap]
    return weight


@both
@pytest.mark.parametrize("clip", [None, 0.1])
def test_confidence_weights_and_clipping_are_their_formulas(mean: Mean, clip: float | None) -> None:
    """ARWC before CTRO: weights of the bounds as they are, references 2 and 3 within 10 % of the first.

    Kills: weights that do not add up to 1, of the clipped bounds, of a row instead of its pair, or on another row; the
    clip the wrong way (bounds are below 0), or of the first reference.
    """
    policy, reference = plain_bounds()
    weight = confidence(reference)
    expected, cut = [], 0
    for row, (b, values) in enumerate(zip(policy, reference, strict=True)):
        first = values[0]
        kept = values if clip is None else [min(max(v, (1 + clip) * first), (1 - clip) * first) for v in values]
        cut += kept != values
        if mean is harmonic:
            expected.append(b + log(sum(a / exp(v) for a, v in zip(weight[row], kept, strict=True))))
        else:
            expected.append(b - sum(a * v for a, v in zip(weight[row], kept, strict=True)))
    assert cut == (0 if clip is None else 5)  # rows where the clip does something
    assert pooled(Pooled(mean, Confidence(), clip)) == pytest.approx(expected, abs=1e-13)


def test_confidence_where_no_reference_tells_the_answers_apart() -> None:
    """All count alike; one that does, counts alone. Kills: 0 / 0."""
    bound = torch.tensor([[-3.0, -5.0], [-3.0, -5.0], [-3.0, -5.0], [-1.0, -5.0]], dtype=torch.float64)
    rows = torch.tensor([0, 2]), torch.tensor([1, 3])
    weight = Confidence()(bound, type(PAIRS)(*rows, PAIRS.length[:4]))
    assert weight.tolist() == [[0.5, 0.5], [0.5, 0.5], [1.0, 0.0], [1.0, 0.0]]


def test_confidence_weights_have_no_gradient() -> None:
    """A reference with a graph gives none to its weights. Kills: detach missing."""
    leaf = terms(2)[1].requires_grad_()
    assert not Confidence()(bounds(leaf), PAIRS).requires_grad


def test_confidence_needs_every_row_in_one_pair() -> None:
    """Rows outside of pairs, and answers of lists, have no weights. Kills: weights of 0 in silence."""
    bound = bounds(terms(2)[1])
    fewer = type(PAIRS)(PAIRS.chosen[:2], PAIRS.rejected[:2], PAIRS.length)
    for structure in (fewer, RANKINGS.pairs):
        with pytest.raises(ValueError, match="every row in exactly one pair"):
            Confidence()(bound, structure)


# Identities -----------------------------------------------------------------------------------------------------------


@both
def test_one_reference_is_dpo(mean: Mean) -> None:
    """Bit for bit, with any way of weighting. Kills: a weight of 1 that changes something."""
    policy, reference = terms(1)
    for weights in (Fixed((1.0,)), Confidence()):
        for clip in (None, 0.1):  # the first reference is never clipped
            found = Preference(Sigmoid(), BETA, Pooled(mean, weights, clip)).items(of(policy, reference), PAIRS)
            torch.testing.assert_close(found, DPO(0.7).items(of(policy, reference), PAIRS), rtol=1e-15, atol=0)


@both
def test_equal_references_are_dpo(mean: Mean) -> None:
    policy, reference = terms(1)
    for weights in (Fixed(THREE), Confidence()):
        found = Preference(Sigmoid(), BETA, Pooled(mean, weights))(of(policy, reference.expand(6, 3, 3)), PAIRS)
        assert float(found) == pytest.approx(float(DPO(0.7)(of(policy, reference), PAIRS)), abs=1e-15)


@both
@pytest.mark.parametrize("one", [0, 1, 2])
def test_one_hot_weights_are_dpo_against_that_reference(mean: Mean, one: int) -> None:
    """Value and slope. Kills: log 0 with a NaN in value or slope; weights in another order."""
    policy, reference = terms(3)
    leaf = policy.requires_grad_()
    weights = Fixed(tuple(float(k == one) for k in range(3)))
    found = Preference(Sigmoid(), BETA, Pooled(mean, weights))(of(leaf, reference), PAIRS)
    plain = DPO(0.7)(of(leaf, reference[:, one : one + 1]), PAIRS)
    assert float(found.detach()) == pytest.approx(float(plain.detach()), abs=1e-15)
    torch.testing.assert_close(*(torch.autograd.grad(loss, leaf)[0] for loss in (found, plain)), rtol=1e-13, atol=0)


@both
def test_policy_equal_to_all_references(mean: Mean) -> None:
    """Common draws cancel in a pool too: the ratio is 0. Kills: log a missing in the harmonic pool."""
    policy, _ = terms()
    ratio = Pooled(mean, Fixed(THREE))(of(policy, policy[:, None].expand(6, 3, 3)), PAIRS)
    torch.testing.assert_close(ratio, torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-15)


def test_the_harmonic_pool_is_below_the_geometric_one() -> None:
    """Of probabilities; so its log-ratios are larger (inequality of the means). Kills: the arithmetic mean, above."""
    lower, higher = (torch.tensor(pooled(Pooled(mean, Fixed(THREE)))) for mean in (geometric, harmonic))
    assert (higher > lower).all()


REORDERED = [2, 0, 1]


@pytest.mark.parametrize(
    "make",
    [
        lambda weights: Preference(Sigmoid(), BETA, Pooled(harmonic, Fixed(weights))),
        lambda weights: Preference(Sigmoid(), BETA, Pooled(geometric, Fixed(weights))),
        lambda weights: Preference(Sigmoid(), BETA, Pooled(harmonic, Confidence())),
        lambda weights: Mixture(DPO(0.7), Fixed(weights)),
    ],
)
def test_references_with_their_weights_have_no_order(make: Callable[[tuple[float, ...]], Preference | Mixture]) -> None:
    """Kills: a weight on another reference; the first reference treated apart."""
    policy, reference = terms(3)
    found = make(tuple(THREE[k] for k in REORDERED))(of(policy, reference[:, REORDERED]), PAIRS)
    assert float(found) == pytest.approx(float(make(THREE)(of(policy, reference), PAIRS)), abs=1e-14)


def test_the_first_reference_is_the_one_that_clips() -> None:
    """CTRO is not symmetric. Kills: clip that does nothing."""
    policy, reference = terms(3)
    pool = Pooled(harmonic, Fixed((0.4, 0.3, 0.3)), 0.1)
    assert (pool(of(policy, reference), PAIRS) != pool(of(policy, reference[:, REORDERED]), PAIRS)).all()


def test_a_mixture_is_a_sum_of_losses() -> None:
    """sum_k w_k DPO_k, which for one reference is DPO. Kills: weights on other references; a mean of margins."""
    policy, reference = terms(3)
    alone = [DPO(0.7).items(of(policy, reference[:, k : k + 1]), PAIRS) for k in range(3)]
    expected = sum(a * items for a, items in zip(THREE, alone, strict=True))
    torch.testing.assert_close(
        Mixture(DPO(0.7), Fixed(THREE)).items(of(policy, reference), PAIRS), expected, rtol=1e-14, atol=0
    )
    one = Mixture(DPO(0.7), Fixed((1.0,)))(of(policy, reference[:, :1]), PAIRS)
    assert torch.equal(one, DPO(0.7)(of(policy, reference[:, :1]), PAIRS))


# Numbers --------------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("level", [-1e4, -1e-3])
@pytest.mark.parametrize("apart", [0.0, 5e3])
def test_pools_of_extreme_bounds(mean: Mean, level: float, apart: float) -> None:
    """Bounds of -1e4, where no probability exists, and references 5e3 nats apart. Kills: exp before log."""
    policy = torch.full((6, 1), level, dtype=torch.float64).requires_grad_()
    reference = torch.stack([torch.full((6, 1), value, dtype=torch.float64) for value in (level, level - apart)], 1)
    for weights in (Fixed((0.25, 0.75)), Confidence()):
        for clip in (None, 0.1):
            pool = Pooled(mean, weights, clip)
            ratio = pool(of(policy, reference), PAIRS)
            (slope,) = torch.autograd.grad(ratio.sum(), policy)
            torch.testing.assert_close(slope, torch.ones_like(slope), rtol=1e-12, atol=0)  # pi over a constant
            if isinstance(weights, Fixed) and clip is None:
                exact = log(0.75) + apart if apart and mean is harmonic else 0.75 * apart
                torch.testing.assert_close(
                    ratio.detach(), torch.full_like(ratio.detach(), exact), rtol=1e-12, atol=1e-11
                )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bounds_are_float64(dtype: torch.dtype) -> None:
    """Sums of terms, whatever these are in: 300 of -1 and one of -2^-10. Kills: sums in bf16, which stop at -256."""
    given = torch.cat([torch.full((6, 300), -1.0), torch.full((6, 1), -(2.0**-10))], 1).to(dtype)
    exact = torch.full((6,), -300 - 2.0**-10, dtype=torch.float64)
    zero = torch.zeros(6, 1, 1, dtype=dtype)
    found: list[Tensor] = [
        bounds(given),
        ReferenceFree()(of(given, zero[:, :0]), PAIRS),
        log_ratios(of(given, zero))[:, 0],
    ]
    found.append(-log_ratios(of(torch.zeros_like(given), given[:, None]))[:, 0])
    for each in found:
        assert torch.equal(each.abs(), exact.abs())


def test_a_pool_of_bounds_above_zero_is_clipped_around_the_first() -> None:
    """Estimates with control variates may be. Kills: an interval of which the ends are exchanged."""
    reference = torch.tensor([[[2.0], [3.0], [2.1]]], dtype=torch.float64)
    ratio = Pooled(geometric, Fixed((0.0, 0.5, 0.5)), 0.1)(
        of(torch.zeros(1, 1, dtype=torch.float64), reference), LABELS
    )
    assert ratio.tolist() == pytest.approx([-(2.2 + 2.1) / 2])


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(), (0.5, 0.6), (1.5, -0.5), (float("nan"), 1.0), (1.0, float("nan"))])
def test_weights_are_shares(weights: tuple[float, ...]) -> None:
    """Kills: comparisons that NaN passes; weights that are normalised in silence."""
    with pytest.raises(ValueError, match="add up to 1"):
        Fixed(weights)


@pytest.mark.parametrize("clip", [-0.1, 1.0, float("nan")])
def test_a_clip_is_a_share(clip: float) -> None:
    with pytest.raises(ValueError, match="clip"):
        Pooled(harmonic, Confidence(), clip)


def test_there_are_as_many_weights_as_references() -> None:
    """Kills: the last reference dropped in silence."""
    for objective in (
        Preference(Sigmoid(), BETA, Pooled(harmonic, Fixed((0.5, 0.5)))),
        Mixture(DPO(), Fixed((0.5, 0.5))),
    ):
        with pytest.raises(ValueError, match="2 weights for 3 references"):
            objective(of(*terms(3)), PAIRS)
