"""When num_draws=auto pays: the noise of a pair's loss gradient, plain and with the shipped roulette, at equal compute.

    python benchmarks/table2_same_checkpoint/auto.py [--runs runs/table2]

Reads the replicates that run.py left (the paper's plan, each draw its own group), writes auto.json and auto.md; runs no
model. Plain: 8 draws. Auto: the values of 12 for the slope, gradients of those that vrpo.roulette.Roulette keeps, at
the threshold where the mean probability over the pairs is RATE, which is where DrawBudget steers it. Both cost 40
forward passes per answer on average (training/budget.py).
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from vrpo.roulette import Roulette
from vrpo.training.budget import RATE, auto_times

from vrpo.diagnostics.statistics import SATURATED, jackknife
from vrpo.types import Pairs

HERE = Path(__file__).parent
PLAIN = 8
AUTO = auto_times(PLAIN)
OFFSETS = (0, 4, 8, 12)  # a replicate's 16 draws in a circle: blocks that start here use each of them equally often
COINS = 32  # throws per block


@dataclass(frozen=True)
class Setting:
    """The temperature, and what is added to every score. Stored margins are those of training at beta 0.2, shift 0."""

    beta: float
    shift: float

    def slope(self, margin: Tensor) -> Tensor:
        return -self.beta * torch.sigmoid(-self.score(margin))

    def score(self, margin: Tensor) -> Tensor:
        return self.beta * margin + self.shift

    @property
    def name(self) -> str:
        return f"beta {self.beta:g}" + (f", score + {self.shift:g}" if self.shift else "")


SETTINGS = (Setting(0.2, 0), Setting(1, 0), Setting(5, 0), Setting(0.2, 2), Setting(0.2, 4))


@dataclass(frozen=True)
class Draws:
    """Margins and their gradients of P pairs, in R replicates of K independent draws; inner products per replicate."""

    margin: Tensor  # [P, R, K]
    gradient: Tensor  # [P, R, K, D]
    gram: Tensor  # [P, R, K, K]

    def of_pairs(self, keep: Tensor) -> "Draws":
        return Draws(self.margin[keep], self.gradient[keep], self.gram[keep])

    def of_replicates(self, keep: Tensor) -> "Draws":
        return Draws(self.margin[:, keep], self.gradient[:, keep], self.gram[:, keep])


def stored(margin: Tensor, gradient: Tensor) -> Draws:
    margin, gradient = margin.double(), gradient.double()
    return Draws(margin, gradient, gradient @ gradient.transpose(-1, -2))


def rows(slope: Tensor) -> tuple[Tensor, Pairs]:
    """Slopes [M] of M pairs as a loss has them, a mean over the pairs: the same for all draws of an answer, the
    rejected answer's with the other sign."""
    count = len(slope)
    index = torch.arange(count)
    both = torch.cat([slope, -slope])[:, None].expand(-1, AUTO) / count
    return both, Pairs(index, index + count, torch.ones(2 * count, dtype=torch.long))


def steered(slope: Tensor) -> Roulette:
    """The roulette whose mean probability is RATE, by bisection of the logarithm of its threshold."""
    both, pairs = rows(slope)
    size = slope.abs()
    low, high = math.log(float(size[size > 0].min())) - 5, math.log(float(size.max())) + 5
    for _ in range(60):
        middle = (low + high) / 2
        above = float(Roulette(math.exp(middle)).probability(both, pairs).mean()) > RATE
        low, high = (middle, high) if above else (low, middle)
    return Roulette(math.exp(high))


def thrown(roulette: Roulette, slope: Tensor) -> Tensor:
    """What the roulette multiplies the draws' slopes by: [M, COINS, AUTO], 0 or 1 / pi."""
    both, pairs = rows(slope)
    group = torch.arange(AUTO).expand(len(both), -1)
    found = []
    for coin in range(COINS):
        key = torch.arange(len(both)) + coin * len(both)
        found.append(roulette(both, pairs, key, group)[: len(slope)] / both[: len(slope)])
    return torch.stack(found, 1)


def block(draws: Draws, size: int, offset: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean margin [P, R], gradients' mean [P, R, D] and inner products [P, R, size, size] of `size` draws."""
    index = (offset + torch.arange(size)) % draws.margin.shape[2]
    gram = draws.gram[:, :, index][:, :, :, index]
    return draws.margin[:, :, index].mean(2), draws.gradient[:, :, index].mean(2), gram


@dataclass(frozen=True)
class Spread:
    """Of the estimates of a pair [P]: E |e|^2, and E e as one mean per replicate [P, R, D]."""

    square: Tensor
    mean: Tensor

    def parts(self) -> dict[str, float]:
        """Trace of the covariance of one pair's gradient: `draws`, inside a pair; `pairs`, of E e. Both unbiased."""
        count, number = self.mean.shape[:2]
        total = self.mean.sum(1)
        same = (total.square().sum(-1) - self.mean.square().sum((1, 2))) / (number * (number - 1))
        centre = total / number
        other = (centre.sum(0).square().sum() - centre.square().sum()) / (count * (count - 1))
        return {"draws": float((self.square - same).mean()), "pairs": float(same.mean() - other)}


def plain(draws: Draws, setting: Setting, size: int) -> Spread:
    square, mean = 0, 0
    for offset in OFFSETS:
        margin, gradient, _ = block(draws, size, offset)
        estimate = setting.slope(margin)[:, :, None] * gradient
        square, mean = square + estimate.square().sum(-1).mean(1) / len(OFFSETS), mean + estimate / len(OFFSETS)
    return Spread(square, mean)


def auto(draws: Draws, setting: Setting) -> tuple[Spread, dict[str, float]]:
    """The estimates with the roulette, and what it did: draws kept on average, and the slopes' spread."""
    blocks = [block(draws, AUTO, offset) for offset in OFFSETS]
    slope = torch.stack([setting.slope(margin) for margin, _, _ in blocks], -1)  # [P, R, O]
    factor = thrown(steered(slope.flatten()), slope.flatten()).unflatten(0, slope.shape)  # [P, R, O, COINS, AUTO]
    noise = factor - 1  # the roulette is unbiased: around the exact mean, few coins do not blur what is not theirs
    joint = noise.transpose(-1, -2) @ noise / COINS  # covariance of two draws' factors, over coins
    square, mean = 0, 0
    for place, (_, gradient, gram) in enumerate(blocks):
        f = slope[:, :, place]
        coins = (joint[:, :, place] * gram).sum((-1, -2)) / AUTO**2
        square = square + (f.square() * (coins + gradient.square().sum(-1))).mean(1) / len(OFFSETS)
        mean = mean + f[:, :, None] * gradient / len(OFFSETS)
    size = slope.abs()
    alike = float(size.mean() ** 2 / size.square().mean())
    return Spread(square, mean), {"kept": float((factor != 0).double().sum(-1).mean()), "alike": alike}


def compared(draws: Draws, setting: Setting) -> dict[str, float]:
    """Ratios of auto to plain. `alike`: (E|slope|)^2 / E slope^2, 1 if all slopes are equal; `rule`: 1.5 times it."""
    base = plain(draws, setting, PLAIN).parts()
    whole = plain(draws, setting, AUTO).parts()
    spread, did = auto(draws, setting)
    found = spread.parts()
    score = setting.score(block(draws, PLAIN, 0)[0])
    total, base_total = (sum(part.values()) for part in (found, base))
    return {
        "draws": found["draws"] / base["draws"],
        "total": total / base_total,
        "all_gradients": whole["draws"] / base["draws"],
        "pairs": found["pairs"] / base["pairs"],
        "share_of_draws": base["draws"] / base_total,
        "rule": AUTO / PLAIN * did["alike"],
        **did,
        "above": float((score > SATURATED).double().mean()),
        "below": float((score < -SATURATED).double().mean()),
    }


def at(draws: Draws, setting: Setting) -> dict[str, dict[str, dict[str, float]]]:
    """With 95 % intervals over pairs, a sample, and over replicates, these pairs given; the threshold is found anew."""
    whole = compared(draws, setting)
    count, number = draws.margin.shape[:2]
    left = {
        "pairs": [compared(draws.of_pairs(torch.arange(count) != i), setting) for i in range(count)],
        "replicates": [compared(draws.of_replicates(torch.arange(number) != r), setting) for r in range(number)],
    }
    return {
        name: {kind: vars(jackknife(value, [one[name] for one in found])) for kind, found in left.items()}
        for name, value in whole.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/table2"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for path in args.runs.glob("*_*.safetensors"):
        found = load_file(path)
        ratio = found["1/policy"] - found["1/reference"]
        draws = stored(ratio[:, :, 0] - ratio[:, :, 1], found["1/gradient"])
        task, step = path.stem.rsplit("_", 1)
        settings = [
            {"beta": one.beta, "shift": one.shift, "name": one.name, "ratios": at(draws, one)} for one in SETTINGS
        ]
        results.append({"task": task, "step": int(step), "pairs": len(draws.margin), "settings": settings})
        print(path.stem, flush=True)
    results.sort(key=lambda one: (one["task"] != "text", one["step"]))
    (HERE / "auto.json").write_text(json.dumps(results, indent=1) + "\n")
    (HERE / "auto.md").write_text(page(results))
    print(page(results))


HEAD = (
    "Variance of a pair's loss gradient with num_draws=auto (values of 12 draws, gradients of 5.33 on average), "
    "relative to 8 draws of everything, at the same expected compute: below 1 auto pays. 95 % intervals by the "
    "jackknife over pairs, a sample; the threshold is found anew without each. Alike: (E|slope|)^2 / E slope^2. Rule: "
    "1.5 times it, the ratio to be expected if all pairs' gradients were equally noisy and slopes had no noise. "
    "Only `beta 0.2` was measured; the others are constructions, other temperatures or shifted scores on the same "
    "margins and gradients.",
    "",
    "| stage | setting | score > 4, % | score < -4, % | alike | rule | the draws' part | total "
    "| 12 draws of everything: the draws' part | share of draws in plain's total |",
    "|---|---|---|---|---|---|---|---|---|---|",
)


def shown(value: dict[str, dict[str, float]]) -> str:
    return "{value:.2f} [{low:.2f}, {high:.2f}]".format(**value["pairs"])


def page(results: list[dict]) -> str:
    lines = list(HEAD)
    for one in results:
        for setting in one["settings"]:
            ratios = setting["ratios"]
            value = {name: kinds["pairs"]["value"] for name, kinds in ratios.items()}
            cells = [
                f"{100 * value['above']:.0f}",
                f"{100 * value['below']:.0f}",
                f"{value['alike']:.2f}",
                f"{value['rule']:.2f}",
                shown(ratios["draws"]),
                shown(ratios["total"]),
                f"{value['all_gradients']:.2f}",
                f"{value['share_of_draws']:.2f}",
            ]
            lines.append(f"| {one['task']}, step {one['step']} | {setting['name']} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
