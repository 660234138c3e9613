"""Losses of pairs: values by plain formulas, and what the papers say about them."""

from collections.abc import Callable
from math import exp, log, sqrt

import pytest
import torch
from torch import Tensor

from tests.objectives import BETA, LENGTH, PAIRS, WEIGHTED, of, terms
from vrpo.losses.objective import dpo
from vrpo.losses.pairwise import (
    DPO,
    IPO,
    ORPO,
    APODown,
    APOZero,
    Hinge,
    PairLoss,
    Preference,
    ReverseKL,
    Robust,
    Sigmoid,
)
from vrpo.losses.pools import ReferenceFree, log_ratios
from vrpo.losses.temperature import Constant
from vrpo.types import Pairs

Formula = Callable[[float, float, float], float]  # of (chosen ratio, rejected ratio, beta)


def s(x: float) -> float:
    return 1 / (1 + exp(-x))


def kl(p: float, q: float) -> float:
    """KL of two coins."""
    return p * log(p / q) + (1 - p) * log((1 - p) / (1 - q))


def log_odds(b: float) -> float:
    return log(exp(b) / (1 - exp(b)))


# As in the papers (METHODS section 5; TRL 1.16 where it has the loss), written without a look at the code.
FORMULAS: dict[str, tuple[PairLoss, Formula]] = {
    "sigmoid": (Sigmoid(), lambda w, r, b: -log(s(b * (w - r)))),
    "smoothed": (Sigmoid(0.1), lambda w, r, b: -0.9 * log(s(b * (w - r))) - 0.1 * log(s(b * (r - w)))),
    "target": (Sigmoid(gamma=0.5), lambda w, r, b: -log(s(b * w - b * r - 0.5))),
    "smoothed target": (
        Sigmoid(0.2, 0.5),
        lambda w, r, b: -0.8 * log(s(b * w - b * r - 0.5)) - 0.2 * log(s(0.5 - b * w + b * r)),
    ),
    "robust": (Robust(0.2), lambda w, r, b: (-0.8 * log(s(b * (w - r))) + 0.2 * log(s(b * (r - w)))) / 0.6),
    "robust without": (Robust(0.0), lambda w, r, b: -log(s(b * (w - r)))),
    "ipo": (IPO(), lambda w, r, b: (w - r - 1 / (2 * b)) ** 2),
    "hinge": (Hinge(), lambda w, r, b: max(0.0, 1 - b * (w - r))),
    "apo_zero": (APOZero(), lambda w, r, b: 1 - s(b * w) + s(b * r)),
    "apo_down": (APODown(), lambda w, r, b: s(b * w) + 1 - s(b * (w - r))),
    "reverse_kl": (ReverseKL(0.01), lambda w, r, b: kl(s(b * (w - r)), 0.99)),
    "orpo": (ORPO(), lambda w, r, b: -w - b * log(s(log_odds(w) - log_odds(r)))),
}
every_formula = pytest.mark.parametrize(("loss", "formula"), list(FORMULAS.values()), ids=list(FORMULAS))


@every_formula
@pytest.mark.parametrize("beta", [0.2, 1.7])
def test_a_loss_is_its_formula(loss: PairLoss, formula: Formula, beta: float) -> None:
    """In float64, on margins of both signs and sizes. Kills: any sign, weight, share or constant of a leaf wrong."""
    points = [(-0.3, -2.0), (-2.0, -0.3), (-1.5, -1.5), (-6.0, -0.01), (-0.01, -6.0), (-1.1, -0.9)]
    chosen, rejected = torch.tensor(points, dtype=torch.float64).unbind(-1)
    expected = [formula(w, r, beta) for w, r in points]
    assert loss(chosen, rejected, beta).tolist() == pytest.approx(expected, abs=1e-13)
    each = torch.full_like(chosen, beta)
    assert torch.equal(loss(chosen, rejected, each), loss(chosen, rejected, beta))


@every_formula
def test_beta_may_differ_between_pairs(loss: PairLoss, formula: Formula) -> None:
    """Kills: the mean of betas; one pair's beta for all."""
    points, betas = [(-0.3, -2.0), (-2.5, -0.4), (-1.0, -0.8)], [0.2, 1.0, 2.3]
    chosen, rejected = torch.tensor(points, dtype=torch.float64).unbind(-1)
    found = loss(chosen, rejected, torch.tensor(betas, dtype=torch.float64))
    expected = [formula(w, r, b) for (w, r), b in zip(points, betas, strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-13)


@every_formula
def test_a_loss_at_extremes(loss: PairLoss, formula: Formula) -> None:
    """Ratios of -1e4 and 0, and what lies between, either way: value and slope are finite.

    Kills: log of a sigmoid that is 0; 0 * inf; odds of a probability of 1."""
    for low, high in ((-1e4, -1e-3), (-1e4, -1e4), (-1e-3, -1e-13), (-1e4, 0.0), (0.0, 0.0)):
        for pair in ((low, high), (high, low)):
            chosen, rejected = torch.tensor(pair, dtype=torch.float64).requires_grad_().unbind()
            value = loss(chosen[None], rejected[None], 1.0).sum()
            assert value.isfinite()
            assert all(slope.isfinite() for slope in torch.autograd.grad(value, (chosen, rejected), allow_unused=True))


def test_values_at_a_margin_of_ten_thousand() -> None:
    """What each loss says of a pair that is surely right, and surely wrong (u = +-1e4), exactly.

    Kills: margins clamped in silence; a bounded loss that is not; the wrong limit.
    """
    expected = {
        "sigmoid": (0.0, 1e4),
        "smoothed": (1e3, 9e3),
        "robust": (-0.2 * 1e4 / 0.6, 0.8 * 1e4 / 0.6),  # no lower bound
        "robust without": (0.0, 1e4),
        "ipo": ((1e4 - 0.5) ** 2, (1e4 + 0.5) ** 2),
        "hinge": (0.0, 10001.0),
        "apo_zero": (0.5, 1.5),  # ratios are 0 and -1e4, or the other way round
        "apo_down": (0.5, 1.0),
        "reverse_kl": (-log(0.99), -log(0.01)),  # bounded: learns nothing from what is badly wrong
    }
    ends = torch.tensor([0.0, -1e4], dtype=torch.float64)
    for name, values in expected.items():
        assert FORMULAS[name][0](ends, ends.flip(0), 1.0).tolist() == pytest.approx(values, rel=1e-14), name


# Identities -----------------------------------------------------------------------------------------------------------


def at(loss: PairLoss, u: float | Tensor) -> Tensor:
    """The loss and its graph at u, beta being 1."""
    u = torch.as_tensor(u, dtype=torch.float64).reshape(-1)
    return loss(u, torch.zeros_like(u), 1.0)


def slopes(loss: PairLoss, u: float) -> list[float]:
    """First and second derivative at u."""
    point = torch.tensor(u, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(at(loss, point).sum(), point, create_graph=True)
    return [float(first.detach()), float(torch.autograd.grad(first, point)[0])]


GRID = torch.linspace(-6, 6, 25, dtype=torch.float64)


@pytest.mark.parametrize("a", [0.01, 0.1, 0.3])
def test_reverse_kl_has_the_minimum_and_curvature_of_conservative_dpo(a: float) -> None:
    """At u* = log((1 - a) / a), where the loss is 0 and its Hessian a (1 - a), as cDPO's (METHODS section 5).

    Kills: a and 1 - a exchanged; the forward KL, which is cDPO itself up to a constant.
    """
    best = log((1 - a) / a)
    assert float(at(ReverseKL(a), best)) == pytest.approx(0, abs=1e-15)
    for loss in (ReverseKL(a), Sigmoid(a)):
        first, second = slopes(loss, best)
        assert first == pytest.approx(0, abs=1e-15)
        assert second == pytest.approx(a * (1 - a), rel=1e-12)
    entropy = a * log(a) + (1 - a) * log(1 - a)
    forward = at(Sigmoid(a), GRID) + entropy  # KL the other way round
    expected = [kl(1 - a, s(u)) for u in GRID.tolist()]
    assert forward.tolist() == pytest.approx(expected, abs=1e-13)
    assert float((forward - at(ReverseKL(a), GRID)).abs().max()) > 0.1


def test_reverse_kl_becomes_a_share_of_errors() -> None:
    """ReverseKL(a) / log(1 / a) -> 1 - sigmoid(u) as a -> 0, the error being at most log 2 / log(1 / a)."""
    errors = []
    for a in (1e-2, 1e-8, 1e-32, 1e-128):
        share = at(ReverseKL(a), GRID) / log(1 / a)
        errors.append(float((share - (-GRID).sigmoid()).abs().max()))
        assert errors[-1] <= (log(2) + 2 * a) / log(1 / a) * (1 + 1e-12)
    assert errors == sorted(errors, reverse=True)


def test_the_slope_of_reverse_kl_vanishes_where_a_pair_is_badly_wrong() -> None:
    """And under noise: the expected slope at a true margin of 0 and a = 0.01 for five variances of the margin, by the
    trapezoidal rule (METHODS section 5 has them to 0.001); DPO's stays -0.5 by symmetry. Kills: another loss."""
    assert abs(slopes(ReverseKL(0.01), -30)[0]) < 1e-10
    assert slopes(Sigmoid(), -30)[0] == pytest.approx(-1)
    z = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2)
    for variance, expected in ((0, -1.1488), (1, -0.9494), (2.2, -0.8164), (7.3, -0.5702), (44, -0.2668)):
        for loss, mean in ((ReverseKL(0.01), expected), (Sigmoid(), -0.5)):
            u = (sqrt(variance) * z).requires_grad_()
            (slope,) = torch.autograd.grad(at(loss, u).sum(), u)
            assert float((slope * density).sum() / density.sum()) == pytest.approx(mean, abs=6e-5)


@pytest.mark.parametrize("e", [0.05, 0.2, 0.45])
def test_robust_is_unbiased_under_flipped_labels(e: float) -> None:
    """(1 - e) * robust(u) + e * robust(-u) = DPO(u): the mean over labels of which a share e is flipped (Eq. 12 of
    arXiv 2403.00409); conservative DPO's is not. Kills: (1 - 2e) missing; e on the other side."""
    mean = (1 - e) * at(Robust(e), GRID) + e * at(Robust(e), -GRID)
    torch.testing.assert_close(mean, at(Sigmoid(), GRID), rtol=1e-12, atol=1e-12)
    smoothed = (1 - e) * at(Sigmoid(e), GRID) + e * at(Sigmoid(e), -GRID)
    assert float((smoothed - at(Sigmoid(), GRID)).abs().max()) > 0.1


def test_smoothing_is_the_mean_over_labels() -> None:
    """cDPO(e) = (1 - e) DPO(u) + e DPO(-u), symmetric in its labels at e -> 1/2. Kills: shares exchanged."""
    mean = 0.8 * at(Sigmoid(), GRID) + 0.2 * at(Sigmoid(), -GRID)
    torch.testing.assert_close(at(Sigmoid(0.2), GRID), mean, rtol=1e-14, atol=1e-15)
    half = Sigmoid(0.5 - 1e-12)
    torch.testing.assert_close(at(half, GRID), at(half, -GRID), rtol=1e-10, atol=0)


@pytest.mark.parametrize("loss", [Sigmoid(), Sigmoid(0.1), Robust(0.2), IPO(), Hinge(), ReverseKL(0.1)])
def test_a_loss_of_the_margin_sees_nothing_else(loss: PairLoss) -> None:
    """A constant on both ratios changes nothing; exchanged answers are a margin of the other sign. Kills: a loss of one
    answer alone."""
    chosen, rejected = torch.tensor([[0.3, -2.0, 4.0], [1.0, 1.5, -3.0]], dtype=torch.float64)
    value = loss(chosen, rejected, 0.7)
    torch.testing.assert_close(loss(chosen + 2.5, rejected + 2.5, 0.7), value, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(loss(-rejected, -chosen, 0.7), value, rtol=1e-13, atol=1e-13)


def test_parameters_that_make_no_sense_are_refused() -> None:
    for wrong in (-0.1, 0.5, 0.7, float("nan")):
        for leaf in (Sigmoid, Robust, ReverseKL):
            with pytest.raises(ValueError, match="label_smoothing"):
                leaf(wrong)
    with pytest.raises(ValueError, match="epsilon"):
        ReverseKL(0.0)


# The pipeline ---------------------------------------------------------------------------------------------------------


def ratios(policy: Tensor, reference: Tensor) -> list[float]:
    """D of each row, in plain Python."""
    return [sum(p) - sum(q) for p, q in zip(policy.tolist(), reference[:, 0].tolist(), strict=True)]


def test_dpo_is_minus_log_sigmoid_of_the_averaged_margin() -> None:
    """Eq. 7-8 in plain Python. Kills: -log sigmoid averaged over draws; sum over pairs; chosen and rejected swapped;
    the reference added or left out; beta outside the sigmoid; pair weights ignored."""
    policy, reference = terms()
    ratio = ratios(policy, reference)
    losses = [-log(s(0.7 * (ratio[chosen] - ratio[rejected]))) for chosen, rejected in ((2, 0), (1, 3), (5, 4))]
    assert DPO(0.7).items(of(policy, reference), PAIRS).tolist() == pytest.approx(losses, abs=1e-14)
    assert float(DPO(0.7)(of(policy, reference), PAIRS)) == pytest.approx(sum(losses) / 3, abs=1e-14)
    weighted = (0.5 * losses[0] + 2.0 * losses[1] + 1.5 * losses[2]) / 3
    assert float(DPO(0.7)(of(policy, reference), WEIGHTED)) == pytest.approx(weighted, abs=1e-14)


@pytest.mark.parametrize("seed", range(3))
def test_dpo_written_out_is_dpo_of_leaves(seed: int) -> None:
    """Value and slope. Kills: chosen and rejected exchanged on the page that one reads first; another beta."""
    policy, reference = terms(seed=seed)
    leaf = policy.requires_grad_()
    losses = [dpo(of(leaf, reference), PAIRS, 0.7), DPO(0.7)(of(leaf, reference), PAIRS)]
    assert float(losses[0].detach()) == pytest.approx(float(losses[1].detach()), rel=1e-14)
    torch.testing.assert_close(*(torch.autograd.grad(loss, leaf)[0] for loss in losses), rtol=1e-13, atol=0)


@every_formula
@pytest.mark.parametrize("per_token", [False, True])
def test_the_pipeline_ends_in_the_loss(loss: PairLoss, formula: Formula, per_token: bool) -> None:
    """Of log-ratios or of bounds, per token (TRL's ipo, simpo, orpo) or summed (ipo_sum).

    Kills: the padded length; the length of the other answer; a length where none is wanted, and the other way round.
    """
    policy, reference = terms()
    length = LENGTH.tolist() if per_token else [1] * 6
    for pool, values in (
        (ReferenceFree(), [sum(row) for row in policy.tolist()]),
        (None, ratios(policy, reference)),
    ):
        if pool is None and isinstance(loss, ORPO):
            continue  # of probabilities only
        objective = (
            Preference(loss, BETA, per_token=per_token) if pool is None else Preference(loss, BETA, pool, per_token)
        )
        value = [v / n for v, n in zip(values, length, strict=True)]
        expected = [formula(value[w], value[r], 0.7) for w, r in ((2, 0), (1, 3), (5, 4))]
        assert objective.items(of(policy, reference), PAIRS).tolist() == pytest.approx(expected, abs=1e-13)


def test_averaging_inside_the_sigmoid_is_below_averaging_outside() -> None:
    """Jensen: loss(mean score) <= mean loss(score), equal for one draw. Our terms carry 1/K, so K * term is a score."""
    policy, reference = terms()
    inside = DPO(1.0)(of(policy, reference), PAIRS)
    outside = torch.stack(
        [DPO(1.0)(of(3 * policy[:, k : k + 1], 3 * reference[..., k : k + 1]), PAIRS) for k in range(3)]
    )
    assert inside < outside.mean() - 0.1
    one = [part[..., :1] for part in (policy, reference)]
    assert float(DPO(1.0)(of(*one), PAIRS)) == pytest.approx(
        float(DPO(1.0)(of(one[0].expand(6, 3) / 3, one[1].expand(6, 1, 3) / 3), PAIRS)), abs=1e-14
    )


def test_dpo_does_not_know_the_length() -> None:
    """Kills: ELBO divided by response length, so that beta = 0.2 acts as 0.2 / 512."""
    policy, reference = terms()
    longer = Pairs(PAIRS.chosen, PAIRS.rejected, PAIRS.length * 100)
    assert torch.equal(DPO()(of(policy, reference), PAIRS), DPO()(of(policy, reference), longer))


def test_dpo_at_the_reference() -> None:
    """Policy equal to reference, draws in common: log 2 exactly, slopes -+ beta / 2 / P."""
    policy, _ = terms()
    leaf = policy.clone().requires_grad_()
    loss = DPO(0.2)(of(leaf, policy[:, None]), PAIRS)
    assert float(loss.detach()) == pytest.approx(log(2), abs=1e-16)
    assert torch.equal(
        DPO(0.2).items(of(policy, policy[:, None]), PAIRS), torch.full((3,), 2.0, dtype=torch.float64).log()
    )
    (slope,) = torch.autograd.grad(loss, leaf)
    sign = torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0, -1.0], dtype=torch.float64)  # rows 2, 1 and 5 are chosen
    torch.testing.assert_close(slope, (0.2 / 2 / 3) * sign[:, None].expand(6, 3), rtol=1e-15, atol=0)


def test_a_reference_may_have_its_own_number_of_draws() -> None:
    policy, reference = terms()
    more = torch.cat([reference / 2, reference / 2], -1)
    torch.testing.assert_close(log_ratios(of(policy, reference)), log_ratios(of(policy, more)))


@pytest.mark.parametrize("references", [0, 2])
def test_a_missing_reference_is_an_error(references: int) -> None:
    """Kills: a missing reference value replaced by 0; the second of two references dropped in silence."""
    policy, reference = terms()
    with pytest.raises(ValueError, match="exactly one reference"):
        DPO()(of(policy, reference.expand(6, 2, 3)[:, :references]), PAIRS)


@pytest.mark.parametrize("beta", [0.0, -0.2, float("nan"), float("inf")])
def test_beta_is_positive(beta: float) -> None:
    with pytest.raises(ValueError, match="beta"):
        Constant(beta)
