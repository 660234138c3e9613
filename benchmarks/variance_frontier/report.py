"""From the replicates to result.json, the plot and the tables of README.md (called by run.py --stage report)."""

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from run import FIELDS, HERE, PAIRS, PLANS, SETS, STEP, N, held_out
from safetensors.torch import load_file

from vrpo import FixedCount, elbo, load
from vrpo.diagnostics.replicates import Replicates
from vrpo.diagnostics.statistics import Interval, averaged, total_variance
from vrpo.types import Tokens

BETA = 0.2
GOAL = {"ultrafeedback": 0.5, "gsm8k": 0.4}


def replicates(folder: Path) -> list[Replicates]:
    """Of every pair, all rounds together."""
    rounds = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    parts = [torch.cat([one[field] for one in rounds], 1).double() for field in FIELDS]
    return [Replicates(*part) for part in zip(*parts, strict=True)]


def gradient_variance(one: Replicates) -> float:
    return total_variance(one.gradient[:, 0])


def score_variance(one: Replicates) -> float:
    change = (one.policy - one.reference)[:, :, 0]
    return float((change[:, 0] - change[:, 1]).var())


def elbo_variance(one: Replicates) -> float:
    return float(one.policy[:, :, 0].var(0).mean())


MEASURES = {"gradient": gradient_variance, "score": score_variance, "elbo": elbo_variance}


def against(pairs: list[Replicates], paper: list[Replicates], statistic: Callable[[Replicates], float]) -> Interval:
    """Ratio of mean variances; the two sets of replicates are independent, so that their relative errors add up."""
    one, other = (averaged(part, statistic) for part in (pairs, paper))
    value = one.value / other.value
    relative = [(part.high - part.low) / 2 / part.value for part in ((one, other) if pairs is not paper else ())]
    half = value * math.hypot(*relative)
    return Interval(value, value - half, value + half)


def compared(runs: Path, name: str) -> dict[str, Any]:
    """Every plan's variances relative to the paper's plan, and the floors."""
    folder = runs / "measured" / name
    paper = replicates(folder / "paper")
    found: dict[str, Any] = {}
    for label in PLANS:
        if (folder / label / "0.safetensors").is_file():
            pairs = replicates(folder / label)
            found[label] = {measure: vars(against(pairs, paper, statistic)) for measure, statistic in MEASURES.items()}
            found[label]["replicates"] = len(pairs[0].policy)
    apart = [one.independent() for one in paper]
    found["independent reference draws"] = {
        "gradient": vars(Interval(1.0, 1.0, 1.0)),
        "score": vars(against(apart, paper, score_variance)),
        "elbo": vars(Interval(1.0, 1.0, 1.0)),
    }
    absolute = {measure: sum(map(statistic, paper)) / len(paper) for measure, statistic in MEASURES.items()}
    return {"pairs": len(paper), "replicates": len(paper[0].policy), "paper": absolute, "plans": found}


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
    return {name: {**per_token(base, part), "unigram": unigram(runs, base, part)} for name, part in pairs.items()}


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
        panel.set(xscale="log", xlabel=f"variance of the {measure}, relative to the paper's plan")
        panel.grid(axis="y", alpha=0.3)
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].legend(loc="lower right")
    figure.suptitle(f"{N} forward passes per answer, {result['sets']['gsm8k']['pairs']} pairs; dotted: the goals")
    figure.savefig(HERE / "frontier.png", dpi=110)


def shown(value: dict[str, float]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def tables(result: dict[str, Any]) -> str:
    sets = result["sets"]
    lines = ["| plan | " + " | ".join(f"{name}: gradient | {name}: score" for name in SETS) + " |"]
    lines.append("|---" * (1 + 2 * len(SETS)) + "|")
    order = sorted(sets["gsm8k"]["plans"], key=lambda label: -sets["gsm8k"]["plans"][label]["gradient"]["value"])
    for label in order:
        cells = [
            shown(sets[name]["plans"][label][measure]) if label in sets[name]["plans"] else ""
            for name in SETS
            for measure in ("gradient", "score")
        ]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += ["", "| floor, relative | " + " | ".join(f"{name}: gradient | {name}: score" for name in SETS) + " |"]
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
