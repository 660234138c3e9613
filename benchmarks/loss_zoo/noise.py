"""What each loss does with the noise of the estimate it is given, exactly: Gaussian noise, by quadrature.

    python benchmarks/loss_zoo/noise.py             writes noise.json, of which noise_measured.py keeps its own part
    python benchmarks/loss_zoo/noise_report.py      writes noise.md, noise.png and the tables of docs/losses.md

A loss of a margin u is given u^ = u + N(0, V), in the loss's own unit (beta h). Losses that look at each answer by
itself are given u/2 and -u/2, each with noise of its own of variance V/2; a list of three answers has scores u, 0, -u.
The integrals are trapezoidal sums, whose error for a function that is analytic in a strip of half-width pi falls like
exp(-2 pi^2 / step); the step is halved as a check. A kink (hinge) takes its closed form.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from math import erf, exp, log, pi, sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vrpo.losses import KTO, PlackettLuce
from vrpo.pair_losses import IPO, ORPO, APODown, APOZero, Hinge, PairLoss, ReverseKL, Robust, Sigmoid
from vrpo.pools import harmonic
from vrpo.temperature import Constant
from vrpo.types import Labels, Rankings

HERE = Path(__file__).parent
MARGINS = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
VARIANCES = (0.0, 1.0, 2.2, 7.3, 44.0)  # 2.2, 7.3 and 44: the paper's Table 2
GROUPS = 8  # independent groups of draws, for the corrected variants
STEP, REACH = 0.5, 10.0  # in units of u; in standard deviations
GRID = torch.arange(-60, 60.001, 0.01, dtype=torch.float64)  # where suprema are looked for
PAPER = {0.0: -1.149, 1.0: -0.950, 2.2: -0.817, 7.3: -0.571, 44.0: -0.267}  # METHODS.md: E slope of dmpo_rkl at u = 0
LENGTH, BETA = 128, 0.2  # of the comparison of losses per token with those of sums, and the mean bound there
ODDS_AT = -1.0


@dataclass(frozen=True)
class Case:
    """A loss of d scores: where u puts them, which of them share noise, and along what the slope is taken.

    Scores are at(u) + sqrt(V) * spread @ z, z standard normal. `lipschitz` and `smooth` are formulas for the suprema,
    None where there is only the grid; `closed`: a function of (u, V) in place of the quadrature.
    """

    loss: Callable[[Tensor], Tensor]  # [B, d] -> [B]
    at: Callable[[float], list[float]]
    spread: list[list[float]]
    along: list[float]
    lipschitz: float | None
    smooth: float | None
    closed: Callable[[float, float], dict[str, float]] | None = None


def margin(leaf: PairLoss, lipschitz: float | None, smooth: float | None, closed: Any = None) -> Case:
    """Of the margin alone: noise of variance V in it, however it is shared between the answers."""
    halves = [[0.5], [-0.5]]
    return Case(_pair(leaf), lambda u: [u / 2, -u / 2], halves, [0.5, -0.5], lipschitz, smooth, closed)


def each_answer(leaf: PairLoss, lipschitz: float | None, smooth: float | None) -> Case:
    own = [[sqrt(0.5), 0.0], [0.0, sqrt(0.5)]]
    return Case(_pair(leaf), lambda u: [u / 2, -u / 2], own, [0.5, -0.5], lipschitz, smooth)


def _pair(leaf: PairLoss) -> Callable[[Tensor], Tensor]:
    return lambda s: leaf(s[:, 0], s[:, 1], 1.0)


def _kto(s: Tensor) -> Tensor:
    """A desirable answer, z0 = 0."""
    count = len(s)
    rows = torch.arange(count)
    mismatched = torch.tensor([count])  # one more row, of ratio 0
    labels = Labels(rows, torch.ones(count, dtype=torch.bool), mismatched, torch.ones(count + 1, dtype=torch.long))
    terms = torch.cat([s, torch.zeros_like(s[:1])])
    return KTO(Constant(1.0)).items(terms, torch.zeros_like(terms)[:, None], labels)


def _list(s: Tensor) -> Tensor:
    order = torch.arange(s.numel()).reshape(s.shape)
    terms = s.reshape(-1, 1)
    structure = Rankings(order, torch.ones(len(terms), dtype=torch.long))
    return PlackettLuce(Constant(1.0)).items(terms, torch.zeros_like(terms)[:, None], structure)


def _pool(s: Tensor) -> Tensor:
    """What the second of two references adds to the log-ratio to the first; s is the difference of the ratios."""
    ratio = torch.cat([torch.zeros_like(s), s], 1)
    return harmonic(ratio, torch.full_like(ratio, 0.5))


def _orpo_at(u: float) -> list[float]:
    """Mean bounds per token: the rejected answer's is ODDS_AT, the log odds of the chosen one are larger by u."""
    odds = ODDS_AT - log(1 - exp(ODDS_AT)) + u
    return [-log(1 + exp(-odds)), ODDS_AT]


def _ipo(u: float, v: float) -> dict[str, float]:
    m = u - 0.5
    return {"bias": v, "sd": sqrt(4 * m**2 * v + 2 * v**2), "slope": 2 * m, "slope_sd": 2 * sqrt(v)}


def _hinge(u: float, v: float) -> dict[str, float]:
    m, s = 1 - u, sqrt(v)
    inside = (1 + erf(m / s / sqrt(2))) / 2 if v else float(m > 0)
    density = exp(-(m**2) / (2 * v)) / sqrt(2 * pi) if v else 0.0
    mean, square = m * inside + s * density, (m**2 + v) * inside + m * s * density
    found = {"bias": mean - max(0.0, m), "sd": sqrt(max(0.0, square - mean**2)), "slope": -inside}
    return {**found, "slope_sd": sqrt(inside * (1 - inside)), "pull": density / s / 2 if v else 0.0}


_BEND = 1 / (6 * sqrt(3))  # sup |sigmoid''|
_TOKEN = sqrt(0.5) / (BETA * LENGTH)  # of a mean per token whose sum over LENGTH has the variance (V / 2) / BETA^2
_CORRELATED = [[1.0, 0.0], [0.0, 0.0], [0.5, sqrt(0.75)]]  # three scores minus the second one, all with variance V / 2
CASES = {
    "sigmoid": margin(Sigmoid(), 1.0, 0.25),
    "sigmoid, label_smoothing 0.1": margin(Sigmoid(0.1), 0.9, 0.25),
    "robust, label_smoothing 0.1": margin(Robust(0.1), 0.9 / 0.8, 0.25),
    "simpo, gamma 0.5": margin(Sigmoid(gamma=0.5), 1.0, 0.25),
    "ipo_sum, ipo": margin(IPO(), None, 2.0, _ipo),
    "hinge": margin(Hinge(), 1.0, None, _hinge),
    "exo_pair, label_smoothing 0.1": margin(ReverseKL(0.1), None, None),
    "dmpo_rkl, alpha 0.01": margin(ReverseKL(0.01), None, None),
    "apo_zero": each_answer(APOZero(), 0.25, _BEND),
    "apo_down": each_answer(APODown(), 0.25, 1.5 * _BEND),
    "kto": Case(_kto, lambda u: [u], [[1.0]], [1.0], 0.25, _BEND),
    "plackett_luce, 3 answers": Case(_list, lambda u: [u, 0.0, -u], _CORRELATED, [1.0, 0.0, -1.0], None, None),
    "orpo, 128 tokens": Case(_pair(ORPO()), _orpo_at, [[_TOKEN, 0.0], [0.0, _TOKEN]], [0.5, -0.5], None, None),
    "harmonic pool of 2": Case(_pool, lambda u: [u], [[1.0]], [1.0], 1.0, 0.25),
}


def gradients(case: Case, points: Tensor) -> tuple[Tensor, Tensor]:
    leaf = points.clone().requires_grad_()
    value = case.loss(leaf)
    (slope,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), slope


def nodes(case: Case, v: float, step: float) -> tuple[Tensor, Tensor]:
    """Standard normal points [B, k] and their weights: equidistant, no further apart than `step` in a score."""
    if not v:
        return torch.zeros(1, len(case.spread[0]), dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    spread = torch.tensor(case.spread, dtype=torch.float64)
    widest = float((spread[:, None] - spread).square().sum(-1).max().sqrt().clamp(min=float(spread.abs().max())))
    each = torch.arange(0, REACH, min(step, step / (widest * sqrt(v))), dtype=torch.float64)
    each = torch.cat([-each[1:].flip(0), each])
    weight = torch.exp(-each.square() / 2)
    axes = [each] * len(case.spread[0])
    grid = torch.cartesian_prod(*axes).reshape(-1, len(axes))
    together = torch.cartesian_prod(*[weight / weight.sum()] * len(axes)).reshape(-1, len(axes)).prod(1)
    return grid, together


def expected(case: Case, u: float, v: float, step: float = STEP) -> dict[str, float]:
    """Mean and standard deviation of loss and slope; `pull`, the derivative of the mean loss in V."""
    z, weight = nodes(case, v, step)
    spread, centre = (torch.tensor(part, dtype=torch.float64) for part in (case.spread, case.at(u)))
    noise = z @ spread.T
    value, gradient = gradients(case, centre + sqrt(v) * noise)
    slope = gradient @ torch.tensor(case.along, dtype=torch.float64)
    mean, mean_slope = weight @ value, weight @ slope
    sd, slope_sd = ((weight @ (x - m).square()).sqrt() for x, m in ((value, mean), (slope, mean_slope)))
    truth = case.loss(centre[None])[0]
    found = {"bias": mean - truth, "sd": sd, "slope": mean_slope, "slope_sd": slope_sd}
    if v:
        found["pull"] = weight @ (gradient * noise).sum(1) / (2 * sqrt(v))
    return {name: float(each) for name, each in found.items()}


def believable(case: Case, u: float, v: float) -> bool:
    """Whether Gaussian noise is thinkable: a bound per token (orpo) is below 0, and estimates but one in 10^9 are."""
    return case.at is not _orpo_at or max(case.at(u)) + 6 * _TOKEN * sqrt(v) < 0


def cell(case: Case, u: float, v: float) -> dict[str, float]:
    """One true margin and one variance. `jackknife_*`: of GROUPS groups; `halves_*`: of two; `cross_fit_slope`."""
    moment = case.closed or (lambda u, v: expected(case, u, v))
    found = {"u": u, "V": v, **moment(u, v)}
    own = expected(case, u, 0.0)
    found["true_slope"] = own["slope"]
    for name, groups in (("jackknife", GROUPS), ("halves", 2)):
        whole, part = moment(u, v), moment(u, v * groups / (groups - 1))
        for what in ("bias", "slope"):
            found[f"{name}_{what}"] = groups * whole[what] - (groups - 1) * part[what]
    found["cross_fit_slope"] = moment(u, v * GROUPS / (GROUPS - 1))["slope"]
    return found


def suprema(case: Case) -> dict[str, float | None]:
    """sup |f'| and sup |f''| on a grid: of the norm of the gradient and of the Laplacian, in units of the noise.

    Var f(u^) <= sup |f'|^2 V (Poincare) and |E f(u^) - f(u)| <= sup |f''| V / 2 hold for these.
    """
    spread = torch.tensor(case.spread, dtype=torch.float64)
    k = spread.shape[1]
    side = GRID if k == 1 else torch.arange(-24, 24.001, 0.06, dtype=torch.float64)
    z = torch.cartesian_prod(*[side] * k).reshape(-1, k).requires_grad_()
    value = case.loss(torch.tensor(case.at(0.0), dtype=torch.float64) + z @ spread.T)
    (first,) = torch.autograd.grad(value.sum(), z, create_graph=True)
    second = [torch.autograd.grad(first[:, i].sum(), z, retain_graph=True)[0][:, i] for i in range(k)]
    return {
        "lipschitz": float(first.detach().square().sum(1).sqrt().max()),
        "smooth": float(torch.stack(second).sum(0).abs().max()),
    }


def constants(name: str, case: Case) -> dict[str, float | None]:
    """By formula where there is one, beside the grid's; None: unbounded."""
    if name.startswith("orpo"):  # at a bound of 0 its odds have no derivative
        return {"lipschitz": None, "smooth": None, "lipschitz_on_grid": None, "smooth_on_grid": None}
    grid = suprema(case)
    unbounded = {"lipschitz": name.startswith("ipo"), "smooth": name == "hinge"}
    found: dict[str, float | None] = {}
    for what in ("lipschitz", "smooth"):
        formula = getattr(case, what)
        found[what] = None if unbounded[what] else grid[what] if formula is None else formula
        found[f"{what}_on_grid"] = None if unbounded[what] else grid[what]
    return found


def exact() -> dict[str, Any]:
    return {
        name: {
            "constants": constants(name, case),
            "cells": [cell(case, u, v) for u in MARGINS for v in VARIANCES if believable(case, u, v)],
        }
        for name, case in CASES.items()
    }


def checks(found: dict[str, Any]) -> dict[str, Any]:
    """What could be wrong with the numbers, as numbers."""
    halved = {}
    for name, case in CASES.items():
        if case.closed is None:
            finer = [
                (expected(case, u, v), expected(case, u, v, STEP / 2))
                for u, v in ((0.0, 1.0), (0.0, 44.0), (2.0, 7.3))
                if believable(case, u, v)
            ]
            halved[name] = max(abs(one[what] - other[what]) for one, other in finer for what in one)
    beyond = []
    for name, one in found.items():
        bound = one["constants"]
        for each in one["cells"]:
            bias, sd, v = each["bias"], each["sd"], each["V"]
            smooth, lipschitz = bound["smooth"], bound["lipschitz"]
            if smooth is not None and abs(bias) > smooth * v / 2 * (1 + 1e-6) + 1e-9:
                beyond.append([name, each["u"], v, "bias"])
            if lipschitz is not None and sd > lipschitz * sqrt(v) * (1 + 1e-6) + 1e-9:
                beyond.append([name, each["u"], v, "sd"])
    dmpo = {each["V"]: each["slope"] for each in found["dmpo_rkl, alpha 0.01"]["cells"] if each["u"] == 0}
    return {
        "largest_change_when_the_step_is_halved": halved,
        "ipo_by_quadrature_minus_formula": max(
            abs(expected(CASES["ipo_sum, ipo"], u, v)[what] - _ipo(u, v)[what])
            for u in MARGINS for v in VARIANCES for what in ("bias", "sd", "slope", "slope_sd")
        ),
        "cells_beyond_a_bound": beyond,
        "dmpo_slope_at_0": {str(v): [dmpo[v], PAPER[v]] for v in VARIANCES},
    }  # fmt: skip


def per_token() -> dict[str, float]:
    """Var u^ of losses per token where sums at BETA have V = 1, both answers LENGTH tokens long."""
    return {"simpo, beta 2": (2 / (BETA * LENGTH)) ** 2, "ipo, beta 0.1": (0.1 / (BETA * LENGTH)) ** 2}


def main() -> None:
    torch.set_num_threads(1)
    path = HERE / "noise.json"
    stored = json.loads(path.read_text()) if path.is_file() else {}
    found = exact()
    stored |= {"exact": found, "checks": checks(found), "per_token": per_token()}
    path.write_text(json.dumps(stored, indent=1) + "\n")
    print(json.dumps(stored["checks"], indent=1))


if __name__ == "__main__":
    main()
