"""What only changes the slope: its bias with n draws, cross-fitted, jackknifed; the reference as a control variate.

    python benchmarks/table2_same_checkpoint/slopes.py [--runs runs/table2]

Reads the replicates that run.py left, writes slopes.json and slopes.md. The gradient of a pair's loss is a sum of
slopes, one per draw, times gradients of margins; the slopes are those of the objectives that `slope` of VRPOConfig
selects. Truth is the slope at the expected score times the expected gradient. It is estimated from the other draws of
the pair only, so that no estimate is compared with itself.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from vrpo.diagnostics.statistics import jackknife
from vrpo.losses import DPO, Objective
from vrpo.slopes import CrossFit, Jackknife
from vrpo.types import Pairs

HERE = Path(__file__).parent
BETA = 0.2
BUDGETS = (1, 2, 4, 8)


def estimators(n: int) -> dict[str, Objective]:
    """The three values of `slope`, by independent draws; for more than two draws also by two groups of them."""
    plain = DPO(BETA)
    found: dict[str, Objective] = {"plain": plain}
    if n > 1:
        found |= {"cross_fit": CrossFit(plain, n), "jackknife": Jackknife(plain, n)}
    if n > 2:
        found |= {"cross_fit, 2 groups": CrossFit(plain, 2), "jackknife, 2 groups": Jackknife(plain, 2)}
    return found


def slopes(margin: Tensor, objective: Objective) -> Tensor:
    """n times d loss / d term of draws [B, n] that estimate the margin each: the slope that a draw's gradient gets."""
    count, n = margin.shape
    terms = torch.cat([margin, torch.zeros_like(margin)]) / n
    index = torch.arange(count)
    pairs = Pairs(index, index + count, torch.ones(2 * count, dtype=torch.long))
    with torch.enable_grad():
        leaf = terms.requires_grad_()
        (slope,) = torch.autograd.grad(objective(leaf, torch.zeros_like(terms)[:, None], pairs), leaf)
    return slope[:count] * count  # the objective is a mean over pairs


def true_slope(mean: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """f and f^2 at the expected margin, from a mean of squared standard error `error`: unbiased up to its square."""
    p = torch.sigmoid(-BETA * mean)
    slope, first = -BETA * p, BETA**2 * p * (1 - p)
    second = -BETA * first * (1 - 2 * p)
    return slope - second * error / 2, slope.square() - (first.square() + slope * second) * error


def others(margin: Tensor, left_out: int) -> tuple[Tensor, Tensor]:
    """Mean of the margins [B] but one, [B], or but two, [B, B], and its squared standard error."""
    centred, count = margin - margin.mean(), len(margin)
    gone, square = centred, centred.square()
    if left_out == 2:
        gone, square = gone[:, None] + gone, square[:, None] + square
    kept = count - left_out
    shift = -gone / kept
    squares = centred.square().sum() - square - kept * shift.square()
    return margin.mean() + shift, squares.clamp(min=0) / (kept * (kept - 1))


@dataclass(frozen=True)
class Blocks:
    """B independent estimates of one pair at one budget and by one estimator; `owner`: the replicate of each."""

    margin: Tensor  # [B]
    gradient: Tensor  # [B, D], of the margin
    estimate: Tensor  # [B, D], of the loss gradient
    owner: Tensor  # [B]

    def without(self, replicate: int) -> "Blocks":
        keep = self.owner != replicate
        return Blocks(self.margin[keep], self.gradient[keep], self.estimate[keep], self.owner[keep])


@dataclass(frozen=True)
class Moments:
    """A pair's own: unbiased |E b|^2, <E b, t>, |t|^2, |E e|^2 and trace of the covariance of e; means of b and t.

    e: estimate, t: truth, b = e - t.
    """

    bias_bias: float
    bias_truth: float
    truth_truth: float
    square: float
    variance: float
    bias: Tensor
    truth: Tensor


def different(gram: Tensor) -> float:
    """Mean over b != c: what an estimate has in common with itself is left out."""
    return float((gram.sum() - gram.diagonal().sum()) / (len(gram) * (len(gram) - 1)))


def moments(blocks: Blocks) -> Moments:
    e, g = blocks.estimate, blocks.gradient
    ee, eg, gg = e @ e.T, e @ g.T, g @ g.T
    slope, square = true_slope(*others(blocks.margin, 2))
    cross = slope * eg
    truth = true_slope(*others(blocks.margin, 1))[0][:, None] * g
    return Moments(
        bias_bias=different(ee - cross - cross.T + square * gg),
        bias_truth=different(cross - square * gg),
        truth_truth=different(square * gg),
        square=different(ee),
        variance=float(ee.diagonal().mean()) - different(ee),
        bias=(e - truth).mean(0),
        truth=truth.mean(0),
    )


def total(pairs: list[Moments]) -> float:
    """Trace of the covariance of one pair's gradient: of draws, and of which pair it is."""
    means = torch.stack([one.bias + one.truth for one in pairs])
    return sum(one.variance + one.square for one in pairs) / len(pairs) - different(means @ means.T)


def combined(pairs: list[Moments], plain: list[Moments], single: list[Moments], n: int) -> dict[str, float]:
    """What pairs say together; all but the last four relative to the mean over pairs of |t|^2.

    `bias_squared`: of a pair. `shared_*`: mean inner products of different pairs, that is of population means: |E b|^2,
    what of the bias does not average out, <E b, E t> and |E t|^2. `of_mean`: bias of the mean gradient of these very
    pairs, along that gradient and relative to it. `variance`: due to draws, relative to plain. `bias_to_noise`:
    |E b|^2 relative to `total`; its inverse is the number of fresh pairs over which the noise averages down to the
    bias. `price`: n * `total`, what a variance costs in draws, relative to `single`, plain at n = 1.
    """
    count = len(pairs)
    bias, truth = (torch.stack([getattr(one, name) for one in pairs]) for name in ("bias", "truth"))
    bt, tt, bb = (different(one @ other.T) for one, other in ((bias, truth), (truth, truth), (bias, bias)))
    own = {
        name: sum(getattr(one, name) for one in pairs) / count
        for name in ("bias_bias", "bias_truth", "truth_truth", "variance")
    }
    size = own["truth_truth"]
    return {
        "bias_squared": own["bias_bias"] / size,
        "shared_bias": bb / size,
        "shared_along": bt / size,
        "shared_truth": tt / size,
        "of_mean": (bt * (count - 1) + own["bias_truth"]) / (tt * (count - 1) + size),
        "variance": own["variance"] / (sum(one.variance for one in plain) / count),
        "bias_to_noise": bb / total(pairs),
        "price": n * total(pairs) / total(single),
    }


def intervals(groups: tuple[list[Blocks], ...], n: int) -> dict[str, dict[str, dict[str, float]]]:
    """`pairs`: by leaving out pairs, which are a sample. `replicates`: by leaving out replicates, these pairs given.

    `groups`: the estimates, plain ones of n draws and plain ones of one draw; each a list over pairs.
    """
    own = [[moments(one) for one in part] for part in groups]
    by_pair = [combined(*([*part[:i], *part[i + 1 :]] for part in own), n) for i in range(len(own[0]))]
    by_replicate = [
        combined(*([moments(one.without(r)) for one in part] for part in groups), n)
        for r in range(int(groups[0][0].owner.max()) + 1)
    ]
    kinds = {"pairs": by_pair, "replicates": by_replicate}
    return {
        name: {kind: vars(jackknife(value, [one[name] for one in left])) for kind, left in kinds.items()}
        for name, value in combined(*own, n).items()
    }


def blocks(margin: Tensor, sketches: Tensor, n: int, objective: Objective) -> list[Blocks]:
    """Of every pair, from margins [P, R, K] and their gradients [P, R, K, D]."""
    replicates, draws = margin.shape[1:]
    owner = torch.arange(replicates).repeat_interleave(draws // n)
    found = []
    for pair in range(len(margin)):
        h = margin[pair].double().reshape(-1, n)
        g = sketches[pair].double().reshape(len(h), n, -1)
        estimate = (slopes(h, objective)[:, :, None] * g).mean(1)
        found.append(Blocks(h.mean(1), g.mean(1), estimate, owner))
    return found


def at(margin: Tensor, sketches: Tensor, n: int) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Per estimator, with intervals of both kinds."""
    single = blocks(margin, sketches, 1, DPO(BETA))
    found = {name: blocks(margin, sketches, n, objective) for name, objective in estimators(n).items()}
    return {name: intervals((own, found["plain"], single), n) for name, own in found.items()}


def controlled(policy: Tensor, reference: Tensor) -> dict[str, float]:
    """Score variance of one draw with the reference as a control variate of coefficient c, relative to c = 1."""
    h, r = ((part[:, :, 0] - part[:, :, 1]).double().flatten(1) for part in (policy, reference))
    h, r = h - h.mean(1, keepdim=True), r - r.mean(1, keepdim=True)
    shared = (h - r).square().sum()
    own = (h * r).sum(1) / r.square().sum(1)  # the best coefficient of each pair
    common = (h * r).sum() / r.square().sum()
    return {
        "best_common_c": float(common),
        "variance_at_common_c": float((h - common * r).square().sum() / shared),
        "variance_at_each_pair_s_c": float((h - own[:, None] * r).square().sum() / shared),
        "variance_at_c_0": float(h.square().sum() / shared),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/table2"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for path in args.runs.glob("*_*.safetensors"):
        stored = load_file(path)
        policy, reference, gradient = (stored[f"1/{name}"] for name in ("policy", "reference", "gradient"))
        margin = (policy - reference)[:, :, 0] - (policy - reference)[:, :, 1]
        task, step = path.stem.rsplit("_", 1)
        results.append(
            {
                "task": task,
                "step": int(step),
                "pairs": len(margin),
                "slopes": {str(n): at(margin, gradient, n) for n in BUDGETS},
                "control": controlled(policy, reference),
            }
        )
    results.sort(key=lambda one: (one["task"] != "text", one["step"]))
    (HERE / "slopes.json").write_text(json.dumps(results, indent=1) + "\n")
    (HERE / "slopes.md").write_text(page(results))
    print(page(results))


def percent(value: dict[str, float], digits: int = 1) -> str:
    low, high = (f"{100 * value[end]:.{digits}f}" for end in ("low", "high"))
    return f"{100 * value['value']:.{digits}f} [{low}, {high}]"


def plainly(value: dict[str, float]) -> str:
    return f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]" if value["high"] > value["low"] else "1"


def inverse(value: dict[str, float]) -> str:
    """1 / x with its interval; open where x may be 0."""
    if value["high"] <= 0:
        return "-"
    low, high = f"{1 / value['high']:,.0f}", f"{1 / value['low']:,.0f}" if value["low"] > 0 else "inf"
    return f"{1 / value['value']:,.0f} [{low}, {high}]" if value["value"] > 0 else f"[{low}, inf]"


HEAD = (
    "95 % intervals by the jackknife over pairs: training pairs are a sample, and the draws of a pair vary with it, so "
    "they contain both. Only the column `these pairs given` leaves out replicates instead. Biases in % "
    "of the mean squared gradient of a pair, but those of the mean gradient in % of that mean (of these pairs). "
    "`cross_fit`, `jackknife`: each draw a group, as VRPOConfig makes them of the paper's plan.",
    "",
    "| stage | n | slope | squared bias of a pair's gradient, % | of which pairs share, % "
    "| bias of the mean gradient, % | the same, these pairs given, % | variance relative to plain "
    "| the same with pairs, at equal draws, relative to n = 1 | fresh pairs whose noise is as large as their bias |",
    "|---|---|---|---|---|---|---|---|---|---|",
)


def row(entry: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    over = {name: kinds["pairs"] for name, kinds in entry.items()}
    return [
        percent(over["bias_squared"]),
        percent(over["shared_bias"], 2),
        percent(over["of_mean"]),
        percent(entry["of_mean"]["replicates"]),
        plainly(over["variance"]),
        plainly(over["price"]),
        inverse(over["bias_to_noise"]),
    ]


def page(results: list[dict]) -> str:
    lines = list(HEAD)
    for one in results:
        for n, found in one["slopes"].items():
            for name, entry in found.items():
                lines.append(f"| {one['task']}, step {one['step']} | {n} | {name} | {' | '.join(row(entry))} |")
    lines += [
        "",
        "What the true gradients of different pairs share, in % of the mean squared gradient of a pair, and the "
        "reference as a control variate: score variance relative to c = 1.",
        "",
        "| stage | pairs | shared gradient, % | best common c | variance at it | at each pair's own c | at c = 0 |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in results:
        c = one["control"]
        shared = percent(one["slopes"]["8"]["plain"]["shared_truth"]["pairs"])
        values = f"{c['variance_at_common_c']:.3f} | {c['variance_at_each_pair_s_c']:.3f} | {c['variance_at_c_0']:.1f}"
        lines.append(
            f"| {one['task']}, step {one['step']} | {one['pairs']} | {shared} | {c['best_common_c']:.4f} | {values} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
