"""The columns of the paper's Table 2 on one checkpoint at a time, at several steps of training.

For one policy, reference and set of pairs the score's variance obeys Lemma 5 exactly: V_t / n_t + V_y / (n_t n_y). All
columns come from the same replicates, of one, two and four masks at a level. The part `split` says what the noise of a
minibatch gradient is made of, draws or pairs. The model is the one of text that variance_frontier measures.
"""

import math
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch

from benchmarks.harness.models import held_out, text_base, text_policy
from benchmarks.harness.picture import panels
from benchmarks.harness.study import Options, Part, Row, Run, Study, option
from benchmarks.harness.tables import table
from vrpo import FixedCount, FrozenReference, load
from vrpo.diagnostics.minibatch import minibatch
from vrpo.diagnostics.replicates import Replicates, replicate
from vrpo.diagnostics.statistics import averaged, noise
from vrpo.sketch import Sketch

PAPER = {  # Table 2 of arXiv 2505.19223, in its order: n_t, n_y, shared; variance of score, loss, gradient
    "4 / 1 / yes": (4, 1, True, 2.2, 3.1e-3, 2.5),
    "1 / 1 / yes": (1, 1, True, 44.0, 8.7e-2, 13.0),
    "8 / 1 / yes": (8, 1, True, 1.0, 2.6e-3, 1.6),
    "1 / 4 / yes": (1, 4, True, 7.3, 3.2e-2, 4.7),
    "2 / 2 / yes": (2, 2, True, 4.7, 7.3e-3, 2.5),
    "4 / 1 / no": (4, 1, False, 2183.7, 62.0, 10.6),
}
FIRST = "4 / 1 / yes"
MEASURES = {"score_variance": "score", "loss_variance": "loss", "loss_gradient_variance": "gradient of the loss"}
DRAWS, BETA = 16, 0.2
COSTS = (1, 10, 100)  # of making a pair, in draws


@dataclass
class Table2(Options):
    steps: list[int] = option([10, 40, 160], "Steps of VRPO whose checkpoints are measured.")
    pairs: int = option(12, "Held-out pairs.")
    replicates: int = option(8, "Replicates of each pair and column.")


@cache
def measured(run: Run, step: int, masks: int) -> list[Replicates]:
    """Replicates of every pair, with so many masks at one level."""
    base = text_base(run)
    policy, reference = (load(each, dtype=torch.float32) for each in (text_policy(run, step), base))
    return [
        replicate(
            policy,
            FrozenReference(reference),
            pair,
            FixedCount(DRAWS // masks, masks),
            parameters=list(policy.module.parameters()),
            num_replicates=run.options.replicates,
            sketch=Sketch(),
            max_tokens=8192,
        )
        for pair in held_out(base.parent / "data" / "gsm8k.jsonl", policy, run.options.pairs)
    ]


def columns(run: Run, case: Row) -> Row:
    """Variances of every column, with intervals from replicates."""
    found: dict[str, Any] = {}
    for name, (levels, masks, shared, *_) in PAPER.items():
        every = measured(run, case["step"], masks)
        pairs = every if shared else [one.independent() for one in every]
        found[name] = {
            measure: asdict(averaged(pairs, lambda one, m=measure, n=levels: getattr(noise(one.at(n), BETA), m)))
            for measure in MEASURES
        }
    every = [noise(one.at(8), BETA) for one in measured(run, case["step"], 1)]
    facts = {"mean_score": sum(one.score_mean for one in every) / len(every)}
    return {"columns": found, **facts, "correlation": sum(one.correlation for one in every) / len(every)}


def split(run: Run, case: Row) -> Row:
    """The variance of a minibatch gradient: what its draws and what its pairs make of it, by n."""
    pairs, budgets = measured(run, case["step"], 1), (1, 2, 4, 8, 16)
    found = minibatch({n: [noise(one.at(n), BETA) for one in pairs] for n in budgets}, pair_cost=0.0)
    kept = ("draws", "pairs", "share", "bias_squared")
    return {"curves": {name: {str(n): asdict(value) for n, value in found[name].items()} for name in kept}}


def lemma5(row: Row, name: str) -> float:
    """What V_t and V_y, from the columns 1/1 and 1/4, make of another column's score."""
    one, four = (row["columns"][each]["score_variance"]["value"] for each in ("1 / 1 / yes", "1 / 4 / yes"))
    within = (one - four) * 4 / 3
    levels, masks, *_ = PAPER[name]
    return (one - within) / levels + within / (levels * masks)


def shown(value: Row, form: str = ".3g") -> str:
    return f"{value['value']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"


def report(run: Run) -> str:
    rows, head = run.rows("columns"), ["step", *PAPER]
    lines: list[list[Any]] = [["paper, 8B", *(f"{cells[3] / PAPER[FIRST][3]:.2f}" for cells in PAPER.values())]]
    for row in rows:
        score = {name: row["columns"][name]["score_variance"]["value"] / lemma5(row, FIRST) for name in PAPER}
        law = {name: f" ({lemma5(row, name) / lemma5(row, FIRST):.2f})" if PAPER[name][2] else "" for name in PAPER}
        lines.append([row["step"], *(f"{score[name]:.2f}{law[name]}" for name in PAPER)])
    parts = [table(head, lines, f"Variance of the score relative to {FIRST}; in brackets by Lemma 5")]
    for place, (measure, title) in enumerate(MEASURES.items(), 3):
        lines = [["paper, 8B", *(f"{cells[place]:g}" for cells in PAPER.values())]]
        lines += [[row["step"], *(shown(row["columns"][name][measure]) for name in PAPER)] for row in rows]
        parts.append(table(head, lines, f"Variance of the {title}, mean over pairs [95 %]"))
    lines = []
    for row in run.rows("split"):
        curves = row["curves"]
        share = [shown(curves["share"][n], ".2f") for n in ("1", "4", "8", "16")]
        ratio = curves["draws"]["1"]["value"] / curves["pairs"]["1"]["value"]
        best = [f"{max(1.0, math.sqrt(cost * ratio)):.1f}" if ratio > 0 else "not known" for cost in COSTS]
        lines.append([row["step"], *share, ", ".join(best)])
    head = ["step", "share of draws: n = 1", "n = 4", "n = 8", "n = 16", "best n at a pair's cost of 1, 10, 100"]
    return "\n".join([*parts, table(head, lines, "What the noise of a minibatch gradient is made of")])


def draw(run: Run) -> Any:
    names = ("score_variance", "loss_gradient_variance")
    figure, axes = panels([MEASURES[name] for name in names], x="step of VRPO", y="variance", log="xy")
    for axis, measure in zip(axes, names, strict=True):
        for name in PAPER:
            rows = run.rows("columns")
            values = [row["columns"][name][measure]["value"] for row in rows]
            axis.plot([row["step"] for row in rows], values, label=name)
    axes[0].legend()
    return figure


def check(run: Run) -> None:
    """Kills: columns that break what is exact for the score, 1/1 over 4/1 and over 8/1, beyond their intervals."""
    for row in run.rows("columns"):
        one = row["columns"]["1 / 1 / yes"]["score_variance"]
        for name, factor in (("4 / 1 / yes", 4), ("8 / 1 / yes", 8)):
            other = row["columns"][name]["score_variance"]
            slack = 2 * ((one["high"] - one["value"]) + factor * (other["high"] - other["value"]))
            assert abs(factor * other["value"] - one["value"]) <= slack, (name, row["step"], one, other)


def stages(run: Run) -> list[Row]:
    return [{"step": step} for step in run.options.steps]


TINY = {"steps": [4], "pairs": 3, "replicates": 4}
STUDY = Study({"columns": Part(stages, columns), "split": Part(stages, split)}, report, TINY, Table2, draw, check)
