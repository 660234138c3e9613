"""The estimators of slopes.py and auto.py on synthetic pairs whose answers are known.

    python benchmarks/table2_same_checkpoint/check.py

A pair: margins mu + sigma * noise, gradients a + c * noise + independent noise. Its expected gradients are integrals
over one Gaussian (Gauss-Hermite). Writes check.json: true values, mean estimates with their standard errors, and how
often intervals contain the truth.
"""

import json
import math
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import auto
import slopes
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor

HERE = Path(__file__).parent
PAIRS, REPLICATES, DRAWS, WIDTH, SIGMA, NOISE = 16, 8, 16, 6, 10.0, 1.0
EXPERIMENTS = 100


class Population:
    """Pairs of random mean margin, gradient and coupling of margin and gradient."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.normal = normal
        self.mean = 5 * normal(count)
        self.gradient = 0.7 + normal(count, WIDTH)
        self.coupling = 0.5 + 0.3 * normal(count, WIDTH)

    def draws(self) -> tuple[Tensor, Tensor]:
        shared = self.normal(len(self.mean), REPLICATES, DRAWS)
        own = NOISE * self.normal(*shared.shape, WIDTH)
        gradient = self.gradient[:, None, None] + self.coupling[:, None, None] * shared[..., None] + own
        return self.mean[:, None, None] + SIGMA * shared, gradient

    def expected(self, n: int) -> tuple[Tensor, Tensor]:
        """E f(mean of n) and E f(mean of n) * noise of the mean."""
        nodes, weights = (torch.as_tensor(part) for part in hermegauss(80))
        weights = weights / weights.sum()
        noise = nodes / math.sqrt(n)
        slope = -slopes.BETA * torch.sigmoid(-slopes.BETA * (self.mean[:, None] + SIGMA * noise))
        return slope @ weights, (slope * noise) @ weights

    def plain(self, n: int) -> Tensor:
        slope, product = self.expected(n)
        return slope[:, None] * self.gradient + product[:, None] * self.coupling

    def bias(self, name: str, n: int) -> Tensor:
        if name == "plain":
            estimate = self.plain(n)
        elif name == "cross_fit":
            estimate = self.expected(n - 1)[0][:, None] * self.gradient
        else:
            estimate = n * self.plain(n) - (n - 1) * self.plain(n - 1)
        return estimate - self.truth()

    def truth(self) -> Tensor:
        return -slopes.BETA * torch.sigmoid(-slopes.BETA * self.mean)[:, None] * self.gradient


def exact(name: str, n: int, many: Population, these: Population) -> dict[str, float]:
    """Of the population (means over `many` pairs), and of these pairs where they are given."""
    bias, truth = many.bias(name, n), many.truth()
    size = float(truth.square().sum(1).mean())
    mean_bias, mean_truth = these.bias(name, n).mean(0), these.truth().mean(0)
    return {
        "bias_squared": float(bias.square().sum(1).mean()) / size,
        "shared_bias": float(bias.mean(0).square().sum()) / size,
        "shared_truth": float(truth.mean(0).square().sum()) / size,
        "of_mean": float(mean_bias @ mean_truth / mean_truth.square().sum()),
    }


def check_slopes(generator: torch.Generator) -> list[dict[str, Any]]:
    many = Population(20000, generator)
    seen: dict[tuple[str, int, str], list[dict[str, float]]] = {}
    for _ in range(EXPERIMENTS):
        these = Population(PAIRS, generator)
        margin, gradient = these.draws()
        for n in (2, 8):
            for name, found in slopes.at(margin, gradient, n).items():
                if "groups" in name:
                    continue
                for measure, true in exact(name, n, many, these).items():
                    value = found[measure]["replicates" if measure == "of_mean" else "pairs"]
                    seen.setdefault((name, n, measure), []).append({"true": true, **value})
    return [summary({"slope": name, "n": n, "measure": measure}, runs) for (name, n, measure), runs in seen.items()]


def summary(entry: dict[str, Any], runs: list[dict[str, float]]) -> dict[str, Any]:
    """The error of the mean estimate is to be compared with its standard error."""
    error = [run["value"] - run["true"] for run in runs]
    covered = fmean(run["low"] <= run["true"] <= run["high"] for run in runs)
    return {
        **entry,
        "true": fmean(run["true"] for run in runs),
        "mean_error": fmean(error),
        "standard_error": stdev(error) / math.sqrt(len(error)),
        "covered": covered,
    }


def check_auto(generator: torch.Generator) -> list[dict[str, Any]]:
    """Margins without noise, so that the variance of the gradient is known: all slopes alike; half of them nearly 0."""
    setting = auto.Setting(0.2, 0)
    found = []
    for case in ("alike", "half"):
        runs = []
        for _ in range(EXPERIMENTS):
            these = Population(PAIRS, generator)
            these.coupling = torch.zeros_like(these.coupling)
            active = torch.ones(PAIRS, dtype=torch.bool) if case == "alike" else torch.arange(PAIRS) % 2 == 0
            _, gradient = these.draws()
            margin = torch.where(active, 0.0, 80.0)[:, None, None].expand(-1, REPLICATES, DRAWS)
            value = auto.compared(auto.stored(margin, gradient), setting)
            # pi = RATE / share: N of 12 draws are kept, in whole numbers around 12 pi
            pi = auto.RATE / float(active.double().mean())
            part = auto.AUTO * pi % 1
            count = part * (1 - part) / (auto.AUTO * pi) ** 2  # Var N / (E N)^2
            size = float(these.gradient[active].square().sum(1).mean())
            noise = NOISE**2 * WIDTH
            true = (size * count + noise / (auto.AUTO * pi)) / (noise / auto.PLAIN)
            runs.append({"true": true, "value": value["draws"], "low": -math.inf, "high": math.inf})
        found.append(drop(summary({"case": case, "measure": "draws"}, runs)))
    return [*found, *check_noisy(generator)]


def check_noisy(generator: torch.Generator) -> list[dict[str, Any]]:
    """Noisy margins: against the variance of 4,096 independent steps of each pair, roulette thrown once in each."""
    runs: dict[str, list[dict[str, float]]] = {"draws": [], "total": []}
    setting = auto.Setting(0.2, 2)
    for _ in range(EXPERIMENTS // 5):
        these = Population(PAIRS, generator)
        value = auto.compared(auto.stored(*these.draws()), setting)
        spread = simulated(these, setting)
        for name, one in runs.items():
            one.append({"true": spread[name], "value": value[name], "low": -math.inf, "high": math.inf})
    return [drop(summary({"case": "noisy, score + 2", "measure": name}, one)) for name, one in runs.items()]


def simulated(these: Population, setting: auto.Setting) -> dict[str, float]:
    """One step after another: draws, slope, coin, gradient; no inner product, no block, no circle."""
    steps = [these.draws() for _ in range(512)]
    margin, gradient = (torch.cat(part, 1) for part in zip(*steps, strict=True))  # [P, 4096, 16(, D)]
    plain = setting.slope(margin[:, :, : auto.PLAIN].mean(2))[:, :, None] * gradient[:, :, : auto.PLAIN].mean(2)
    slope = setting.slope(margin[:, :, : auto.AUTO].mean(2))
    both, pairs = auto.rows(slope.flatten())
    group = torch.arange(auto.AUTO).expand(len(both), -1)
    kept = auto.steered(slope.flatten())(both, pairs, torch.arange(len(both)) + 1_000_000, group)
    weight = (kept[: slope.numel()] * slope.numel()).unflatten(0, slope.shape)
    thinned = (weight[..., None] * gradient[:, :, : auto.AUTO]).mean(2)
    draws = [float(part.var(1).sum(-1).mean()) for part in (thinned, plain)]
    pairs_part = [
        float(part.mean(1).var(0).sum()) - one / part.shape[1]
        for part, one in zip((thinned, plain), draws, strict=True)
    ]
    return {"draws": draws[0] / draws[1], "total": (draws[0] + pairs_part[0]) / (draws[1] + pairs_part[1])}


def drop(entry: dict[str, Any]) -> dict[str, Any]:
    """Where no interval was made."""
    return {name: value for name, value in entry.items() if name != "covered"}


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    found = {"auto": check_auto(generator), "slopes": check_slopes(generator)}
    (HERE / "check.json").write_text(json.dumps(found, indent=1) + "\n")
    for entry in [*found["auto"], *found["slopes"]]:
        print({name: round(value, 4) if isinstance(value, float) else value for name, value in entry.items()})


if __name__ == "__main__":
    main()
