"""What each plan leaves of the noise of score and gradient, at the same number of forward passes.

Every plan spends eight passes on an answer. Measured: the variance of the preference score, and of its gradient (trace
of the covariance, by sketches), by replicates on held-out pairs that the policy and its reference have not seen,
relative to the paper's plan. Replicates are plain: the page's own numbers came from single draws and control variates
as well (commit 703112e), which need fewer passes for the same interval.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch

from benchmarks.harness.models import held_out, text_base, text_policy
from benchmarks.harness.picture import panels
from benchmarks.harness.study import Options, Part, Row, Run, Study, option
from benchmarks.harness.tables import grouped, jackknife, show, table
from vrpo import BalancedMasks, FixedCount, FrozenReference, Tokens, load
from vrpo.coupling import Paired
from vrpo.diagnostics.replicates import replicate
from vrpo.diagnostics.statistics import total_variance
from vrpo.draws import fold
from vrpo.plans import IndependentMasks, Levels
from vrpo.sketch import Sketch
from vrpo.types import Draws, Plan, Structure

N = 8  # forward passes per answer, of every plan
PAPER = "paper"
PLANS: dict[str, Plan] = {
    PAPER: FixedCount(N),
    **{f"importance {a}": IndependentMasks(Levels(N, N, a)) for a in (0.25, 0.5, 0.75)},
    "stratified": IndependentMasks(Levels(N, 1, 0.0)),
    "stratified, importance 0.5": IndependentMasks(Levels(N, 1, 0.5)),
    "balanced": BalancedMasks(Levels(N, 1, 0.0)),
    "balanced, importance 0.5": BalancedMasks(Levels(N, 1, 0.5)),
    "paired, aligned": Paired(FixedCount(N)),
    **{f"balanced, importance {a}, aligned": Paired(BalancedMasks(Levels(N, 1, a))) for a in (0.25, 0.5, 0.75)},
    "balanced in 2 groups, importance 0.5, aligned": Paired(BalancedMasks(Levels(N, 2, 0.5))),  # VRPOConfig's default
}
MEASURES = ("gradient", "score")


@dataclass
class Frontier(Options):
    sets: list[str] = option(["gsm8k", "ultrafeedback"], "Sets of held-out pairs.")
    plans: list[str] = option(list(PLANS), "Plans, the paper's among them.")
    step: int = option(40, "Step of the policy that is measured.")
    pairs: int = option(64, "Held-out pairs.")
    replicates: int = option(4, "Replicates of each pair, in a round.")
    rounds: int = option(5, "Rounds. All plans gain precision together.")


@dataclass(frozen=True)
class Whole:
    """A plan whose draws count as one group, so that an estimate costs one backward pass."""

    plan: Plan

    def __call__(self, tokens: Tokens, structure: Structure | None = None) -> Draws:
        draws = self.plan(tokens, structure)
        return replace(draws, group=draws.group.clamp(max=0))


@cache
def models(run: Run) -> tuple[Any, FrozenReference]:
    policy = load(text_policy(run, run.options.step), dtype=torch.float32)
    return policy, FrozenReference(load(text_base(run), dtype=torch.float32))


def measure(run: Run, case: Row) -> Row:
    """Of each pair: variance of the score and of its gradient, over a round's replicates."""
    policy, reference = models(run)
    found: dict[str, list[float]] = {name: [] for name in MEASURES}
    path = text_base(run).parent / "data" / f"{case['set']}.jsonl"
    for pair in held_out(path, policy, run.options.pairs):
        one = replicate(
            policy,
            reference,
            replace(pair, key=fold(pair.key, case["round"])),
            Whole(PLANS[case["plan"]]),
            parameters=list(policy.module.parameters()),
            num_replicates=run.options.replicates,
            sketch=Sketch(),
            max_tokens=8192,
        )
        change = (one.policy - one.reference)[..., 0]
        found["gradient"].append(total_variance(one.gradient[:, 0]))
        found["score"].append(float((change[:, 0] - change[:, 1]).var()))
    return {"variance": found}


def relative(run: Run) -> dict[tuple[str, str], dict[str, tuple[float, float, float]]]:
    """By plan and set: variances over the paper's, with intervals by leaving out pairs."""
    found: dict[tuple[str, str], dict[str, tuple[float, float, float]]] = {}
    for (name, plan), rows in grouped(run.rows("plans"), "set", "plan").items():
        paper = run.rows("plans", set=name, plan=PAPER)
        for measure in MEASURES:
            own, base = (np.mean([row["variance"][measure] for row in each], axis=0) for each in (rows, paper))
            ratio = jackknife(np.stack([own, base], 1), lambda parts: parts[:, 0].sum() / parts[:, 1].sum())
            found.setdefault((plan, name), {})[measure] = ratio
    return found


def report(run: Run) -> str:
    found = relative(run)
    head = [f"{name}: {measure}" for name in run.options.sets for measure in MEASURES]
    sets = run.options.sets
    lines = [
        [plan, *(show(found[plan, name][measure]) for name in sets for measure in MEASURES)]
        for plan in sorted({plan for plan, _ in found}, key=lambda plan: -found[plan, sets[0]]["gradient"][0])
    ]
    return table(["plan", *head], lines, "Variance relative to the paper's plan [95 %]")


def draw(run: Run) -> Any:
    figure, axes = panels(run.options.sets, x="variance over the paper's", y="", share=True)
    found = relative(run)
    for axis, name in zip(axes, run.options.sets, strict=True):
        for place, plan in enumerate(run.options.plans):
            for color, measure in enumerate(MEASURES):
                value, low, high = found[plan, name][measure]
                label = measure if place == 0 else None
                where = place + 0.2 * color
                axis.errorbar(
                    value, where, xerr=[[value - low], [high - value]], fmt="o", color=f"C{color}", label=label
                )
        axis.axvline(1, color="grey", linewidth=0.8)
    axes[0].set_yticks(range(len(run.options.plans)), run.options.plans)
    axes[0].legend()
    return figure


def check(run: Run) -> None:
    """Kills: a default plan that is worse than the paper's."""
    for (plan, name), found in relative(run).items():
        assert found["gradient"][1] < 1 or "2 groups" not in plan, (plan, name, found)


def cases(run: Run) -> list[Row]:
    options = run.options
    return [
        {"set": s, "plan": p, "round": n} for n in range(options.rounds) for s in options.sets for p in options.plans
    ]


TINY = {
    "sets": ["gsm8k"],
    "plans": [PAPER, "balanced in 2 groups, importance 0.5, aligned"],
    "step": 4,
    "pairs": 3,
    "replicates": 4,
    "rounds": 1,
}
STUDY = Study({"plans": Part(cases, measure)}, report, TINY, Frontier, draw, check)
