"""From the replicates to result.json, the plot and the tables of README.md (called by run.py --stage report)."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from plans import N
from ratios import MEASURES, compared, floors
from run import HERE, PAIRS, SETS, STEP, held_out

from vrpo import FixedCount, elbo, load
from vrpo.plans import shared_tokens
from vrpo.types import Pairs, Tokens

GOAL = {"ultrafeedback": 0.5, "gsm8k": 0.4}
UNSHARED = "independent reference draws"


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
    labels = [label for label in by_gradient(result["sets"]) if label != UNSHARED]
    figure = Figure(figsize=(11, 8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, measure in zip(panels, ("gradient", "score"), strict=True):
        for shift, (name, colour) in zip((0.17, -0.17), (("gsm8k", "C0"), ("ultrafeedback", "C1")), strict=True):
            plans = result["sets"][name]["plans"]
            place = [index + shift for index in range(len(labels))]
            values = [plans[label][measure] for label in labels]
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


def by_gradient(sets: dict[str, Any]) -> list[str]:
    """The plans, noisiest gradient first."""
    plans = sets["gsm8k"]["plans"]
    return sorted(plans, key=lambda label: -plans[label]["gradient"]["value"])


def shown(value: dict[str, float]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def tables(result: dict[str, Any]) -> str:
    sets = result["sets"]
    lines = ["| plan | replicates | " + " | ".join(f"{name}: gradient | {name}: score" for name in SETS) + " |"]
    lines.append("|---" * (2 + 2 * len(SETS)) + "|")
    for label in by_gradient(sets):
        cells = [shown(sets[name]["plans"][label][measure]) for name in SETS for measure in MEASURES]
        counts = ", ".join(dict.fromkeys(str(sets[name]["plans"][label]["replicates"]) for name in SETS))
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
        cells = [shown(sets[name]["floors"][measure][floor]) for name in SETS for measure in MEASURES]
        lines.append(f"| {text} | " + " | ".join(cells) + " |")
    lines += ["", "| held-out answers | tokens | bound, nats per token | unigram |", "|---|---|---|---|"]
    for name, one in result["quality"].items():
        lines.append(f"| {name} | {one['tokens']:.0f} | {one['bound']:.3f} | {one['unigram']:.3f} |")
    return "\n".join(["![frontier](frontier.png)", "", *lines, ""])


def report(runs: Path) -> None:
    sets = {name: compared(runs / "measured" / name) for name in SETS}
    for one in sets.values():
        one["floors"] = {measure: floors(one["plans"], measure) for measure in MEASURES}
    result = {"step": STEP, "passes": N, "quality": quality(runs), "sets": sets}
    (HERE / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(result)
    page, marker = HERE / "README.md", "<!-- generated by report.py -->\n"
    written = page.read_text().split(marker)[0] if page.is_file() else ""
    page.write_text(written + marker + tables(result))
