"""From the replicates to result.json, the plot and the tables of README.md (called by run.py --stage report)."""

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from run import FIELDS, HERE, PAIRS, PLANS, SETS, SINGLES, STEP, N, held_out
from safetensors.torch import load_file

from vrpo import FixedCount, elbo, load
from vrpo.diagnostics.replicates import Replicates
from vrpo.diagnostics.statistics import Interval, total_variance
from vrpo.plans import shared_tokens
from vrpo.types import Pairs, Tokens

GOAL = {"ultrafeedback": 0.5, "gsm8k": 0.4}


def stored(folder: Path, fields: tuple[str, ...]) -> list[torch.Tensor]:
    """Of every pair, all rounds together."""
    rounds = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    return [torch.cat([one[field] for one in rounds], 1).double() for field in fields]


def replicates(folder: Path) -> list[Replicates]:
    return [Replicates(*part) for part in zip(*stored(folder, FIELDS), strict=True)]


def gradient_variance(one: Replicates) -> float:
    return total_variance(one.gradient[:, 0])


def score_variance(one: Replicates) -> float:
    change = (one.policy - one.reference)[:, :, 0]
    return float((change[:, 0] - change[:, 1]).var())


@dataclass(frozen=True)
class Singles:
    """Independent single draws of one pair with m from q(m) ~ 1/m, weighted: B of them.

    `change`: policy minus reference bound of each answer; `square`: |gradient|^2 of each answer's bound, exact;
    `masked`: m; `gradient`: sketches of the margin's gradient.
    """

    change: torch.Tensor  # [B, 2]
    square: torch.Tensor  # [B, 2]
    masked: torch.Tensor  # [B, 2]
    gradient: torch.Tensor  # [B, D]
    length: torch.Tensor  # [2]

    def without(self, block: int, blocks: int) -> "Singles":
        keep = torch.arange(len(self.change)) % blocks != block
        return Singles(self.change[keep], self.square[keep], self.masked[keep], self.gradient[keep], self.length)

    def law(self, exponent: float) -> torch.Tensor:
        """[B, 2]: the probability of each draw's count under m^-exponent."""
        mass = [sum(m**-exponent for m in range(1, int(size) + 1)) for size in self.length]
        return self.masked**-exponent / torch.tensor(mass, dtype=torch.float64)

    def excess(self, squares: torch.Tensor, exponent: float) -> float:
        """What the second moments of both answers gain when m comes from m^-exponent instead of q."""
        return float((squares * (self.law(SINGLES) / self.law(exponent) - 1)).mean(0).sum())


def single_gradient(one: Singles, exponent: float) -> float:
    """Var of the margin's gradient by one draw of m ~ m^-exponent: that under q, plus the difference of the answers'
    second moments; what is linear in the gradients does not depend on the law."""
    return total_variance(one.gradient) + one.excess(one.square, exponent)


def single_score(one: Singles, exponent: float) -> float:
    return float((one.change[:, 0] - one.change[:, 1]).var()) + one.excess(one.change.square(), exponent)


def singles(folder: Path) -> list[Singles]:
    policy, reference, gradient, square, masked = stored(folder, (*FIELDS, "square", "masked"))
    length = load_file(folder / "0.safetensors")["length"].double()
    change = (policy - reference).transpose(2, 3).flatten(1, 2)
    parts = (change, square.transpose(2, 3).flatten(1, 2), masked.transpose(2, 3).flatten(1, 2), gradient.flatten(1, 2))
    return [Singles(*part) for part in zip(*parts, length, strict=True)]


MEASURES = {"gradient": (gradient_variance, single_gradient), "score": (score_variance, single_score)}
INDEPENDENT = {"paper": 0.0, "importance 1/4": 0.25, "importance 1/2": 0.5, "importance 3/4": 0.75}


@dataclass(frozen=True)
class Sum:
    """A sum over pairs with its standard error: each pair's by the jackknife over its own replicates."""

    value: float
    error: float


def summed(pairs: list[Any], statistic: Callable[[Any], float], left_out: Callable[[Any], list[Any]]) -> Sum:
    value = variance = 0.0
    for one in pairs:
        parts = [statistic(part) for part in left_out(one)]
        mean = sum(parts) / len(parts)
        value += statistic(one)
        variance += (len(parts) - 1) / len(parts) * sum((part - mean) ** 2 for part in parts)
    return Sum(value, variance**0.5)


def quotient(above: Sum, below: Sum) -> dict[str, float]:
    """Ratio of independent sums with a 95 % interval (delta method; hundreds of degrees of freedom)."""
    value = above.value / below.value
    half = 1.96 * value * math.hypot(above.error / above.value, below.error / below.value)
    return vars(Interval(value, value - half, value + half))


def replicate_left_out(one: Replicates) -> list[Replicates]:
    return [one.without(r) for r in range(len(one.policy))]


def block_left_out(one: Singles) -> list[Singles]:
    return [one.without(block, 16) for block in range(16)]


def compared(runs: Path, name: str) -> dict[str, Any]:
    """Every plan's variances relative to the paper's plan; plans of independent draws come from single draws."""
    folder = runs / "measured" / name
    draws = singles(folder / "singles")
    found: dict[str, Any] = {label: {"replicates": "single draws"} for label in INDEPENDENT}
    absolute: dict[str, float] = {}
    for measure, (statistic, single) in MEASURES.items():
        own = {a: summed(draws, partial(single, exponent=a), block_left_out) for a in INDEPENDENT.values()}
        paper = Sum(own[0.0].value / N, own[0.0].error / N)
        absolute[measure] = paper.value / len(draws)
        for label, a in INDEPENDENT.items():
            found[label][measure] = quotient(own[a], own[0.0]) if a else vars(Interval(1.0, 1.0, 1.0))
        for label in PLANS:
            if label not in INDEPENDENT and (folder / label / "0.safetensors").is_file():
                pairs = replicates(folder / label)
                entry = found.setdefault(label, {"replicates": len(pairs[0].policy)})
                entry[measure] = quotient(summed(pairs, statistic, replicate_left_out), paper)
    found["independent reference draws"] = unshared(folder, absolute["score"])
    return {"pairs": len(draws), "single_draws": len(draws[0].change), "paper": absolute, "plans": found}


def unshared(folder: Path, paper: float) -> dict[str, Any]:
    """The paper's plan, the reference on draws of its own: the gradient of the score does not change."""
    pairs = [one.independent() for one in replicates(folder / "paper")]
    score = quotient(summed(pairs, score_variance, replicate_left_out), Sum(paper * len(pairs), 0.0))
    return {"replicates": len(pairs[0].policy), "score": score, "gradient": vars(Interval(1.0, 1.0, 1.0))}


def floors(plans: dict[str, Any], measure: str) -> dict[str, float]:
    """Of n draws, relative to the paper's n. With V = V_t + V_y one draw's variance: masks exact given m leave V_t / n
    (n levels; nothing if they are stratified), levels exact given the order of unmasking leave V_order / n."""
    level, order = (plans[name][measure]["value"] for name in ("one level, 8 masks", "one order"))
    # V(1 x n) = V_t + V_y / n, V(n x 1) = (V_t + V_y) / n = 1 here; likewise for orders
    return {"levels": (level - 1) / (N - 1), "orders": (order - 1) / (N - 1)}


def per_token(model: Any, pairs: list[Tokens]) -> dict[str, float]:
    """Nats per token of the chosen answers: the model's bound, with 64 draws."""
    total = count = 0.0
    with torch.no_grad():
        for pair in pairs:
            estimate = elbo(model, pair, FixedCount(64)(pair), max_tokens=8192)
            total, count = total - float(estimate.value[0]), count + int(pair.length[0])
    return {"bound": total / count, "tokens": count}


def unigram(runs: Path, model: Any, pairs: list[Tokens]) -> float:
    """Nats per token of the same answers under token frequencies of the base model's training answers, plus one."""
    lines = (runs / "data" / "base.jsonl").read_text().split("\n")
    counts: Counter[int] = Counter()
    for line in lines:
        if line:
            counts.update(model.tokenizer(json.loads(line)["completion"])["input_ids"] + [model.tokenizer.eos_token_id])
    size = len(model.tokenizer)
    weight = torch.ones(size, dtype=torch.float64)
    for token, number in counts.items():
        weight[token] += number
    logp = (weight / weight.sum()).log()
    answers = [pair.ids[0][pair.response[0]] for pair in pairs]
    return float(-torch.cat([logp[answer] for answer in answers]).mean())


def quality(runs: Path) -> dict[str, Any]:
    base = load(runs / "base", dtype=torch.float32)
    pairs = {name: held_out(runs, name, base, PAIRS) for name in SETS}
    return {
        name: {**per_token(base, part), "unigram": unigram(runs, base, part), "shared_tokens": shared(part)}
        for name, part in pairs.items()
    }


def shared(pairs: list[Tokens]) -> float:
    """Share of the rejected answers' tokens that alignment finds in the chosen ones."""
    structure = Pairs(torch.tensor([0]), torch.tensor([1]), torch.tensor([0, 0]))
    found = sum(int((shared_tokens(pair, structure) >= 0).sum()) for pair in pairs)
    return found / sum(int(pair.length[1]) for pair in pairs)


def plot(result: dict[str, Any]) -> None:
    labels = [*PLANS][::-1]
    figure = Figure(figsize=(11, 8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, measure in zip(panels, ("gradient", "score"), strict=True):
        for shift, (name, colour) in zip((0.17, -0.17), (("gsm8k", "C0"), ("ultrafeedback", "C1")), strict=True):
            plans = result["sets"][name]["plans"]
            place = [index + shift for index, label in enumerate(labels) if label in plans]
            values = [plans[label][measure] for label in labels if label in plans]
            error = [[v["value"] - v["low"] for v in values], [v["high"] - v["value"] for v in values]]
            panel.errorbar([v["value"] for v in values], place, xerr=error, fmt="o", ms=4, color=colour, label=name)
            if measure == "gradient":
                panel.axvline(GOAL[name], color=colour, linestyle=":", linewidth=1)
        panel.axvline(1, color="grey", linewidth=0.8)
        panel.set(
            xscale="log",
            xticks=(0.4, 0.5, 0.7, 1, 1.5, 2, 3),
            xlabel=f"variance of the {measure}, relative to the paper's plan",
        )
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_locator(NullLocator())
        panel.grid(axis="y", alpha=0.3)
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].legend(loc="upper right")
    figure.suptitle(f"{N} forward passes per answer, {result['sets']['gsm8k']['pairs']} pairs; dotted: the goals")
    figure.savefig(HERE / "frontier.png", dpi=110)


def shown(value: dict[str, float]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def tables(result: dict[str, Any]) -> str:
    sets = result["sets"]
    lines = ["| plan | replicates | " + " | ".join(f"{name}: gradient | {name}: score" for name in SETS) + " |"]
    lines.append("|---" * (2 + 2 * len(SETS)) + "|")
    order = sorted(sets["gsm8k"]["plans"], key=lambda label: -sets["gsm8k"]["plans"][label]["gradient"]["value"])
    for label in order:
        cells = [
            shown(sets[name]["plans"][label][measure]) if label in sets[name]["plans"] else ""
            for name in SETS
            for measure in ("gradient", "score")
        ]
        counts = ", ".join(str(sets[name]["plans"].get(label, {}).get("replicates", "-")) for name in SETS)
        lines.append(f"| {label} | {counts} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| floor, relative | " + " | ".join(f"{name}: gradient | {name}: score" for name in SETS) + " |",
    ]
    lines.append("|---" * (1 + 2 * len(SETS)) + "|")
    for floor, text in (
        ("levels", "E[term given m] exact: V_t / n"),
        ("orders", "E[term given the order] exact, n orders"),
    ):
        cells = [f"{sets[name]['floors'][measure][floor]:.3f}" for name in SETS for measure in ("gradient", "score")]
        lines.append(f"| {text} | " + " | ".join(cells) + " |")
    lines += ["", "| held-out answers | tokens | bound, nats per token | unigram |", "|---|---|---|---|"]
    for name, one in result["quality"].items():
        lines.append(f"| {name} | {one['tokens']:.0f} | {one['bound']:.3f} | {one['unigram']:.3f} |")
    return "\n".join(["![frontier](frontier.png)", "", *lines, ""])


def report(runs: Path) -> None:
    sets = {name: compared(runs, name) for name in SETS}
    for one in sets.values():
        one["floors"] = {measure: floors(one["plans"], measure) for measure in ("gradient", "score")}
    result = {"step": STEP, "passes": N, "quality": quality(runs), "sets": sets}
    (HERE / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(result)
    page, marker = HERE / "README.md", "<!-- generated by report.py -->\n"
    written = page.read_text().split(marker)[0] if page.is_file() else ""
    page.write_text(written + marker + tables(result))
