"""Does an estimator of lower variance give a better aligned model? On text, every arm at its own learning rate.

Arms differ in plan, draws and sharing. Protocol (a): the same pairs and steps. Protocol (b): the same forward passes,
so that n = 1 sees more pairs. `grid` takes the rate with the lowest loss on validation pairs, one run a rate; `arms`
runs all seeds at that rate and measures held-out pairs, on draws that are the same for every run. The page's Sudoku
half ran at commit c030fc7. The base model is the one of text that variance_frontier measures.
"""

import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid

from benchmarks.harness.models import LIMITS, settings, text_base, text_rows
from benchmarks.harness.picture import panels
from benchmarks.harness.study import Options, Part, Row, Run, Study, option
from benchmarks.harness.tables import grouped, interval, show, table
from benchmarks.harness.tasks import misread
from vrpo import BalancedMasks, VRPOConfig, VRPOTrainer, elbo, load
from vrpo.coupling import Paired
from vrpo.data import PreferenceCollator, tokenize_preferences, tokens_of
from vrpo.data.collate import pairs_of
from vrpo.estimator import Engine
from vrpo.plans import Levels

BETA = 0.2
ARMS: dict[str, Row] = {
    "naive": {"plan": "fixed_count", "num_times": 1, "share_draws": False},
    **{f"paper{n}": {"plan": "fixed_count", "num_times": n} for n in (1, 4)},
    **{f"ours{n}": {"num_times": n} for n in (1, 4)},  # the default plan
}
HELD_OUT = ("misread", "gsm8k", "ultrafeedback")
MEASURES = ("margin", "loss", "accuracy")
COMPARED = [  # in protocol: each minus the other
    ("a", "ours4", "paper4"),
    ("a", "ours1", "paper1"),
    ("b", "ours1", "paper1"),
    ("a", "paper1", "naive"),
    ("a", "paper4", "naive"),
    ("b", "paper1", "naive"),
    ("a", "paper4", "paper1"),
    ("a", "ours4", "ours1"),
    ("b", "paper1", "paper4"),
    ("b", "ours1", "ours4"),
]


@dataclass
class Training(Options):
    arms: list[str] = option(list(ARMS), "Arms.")
    rates: list[float] = option([3e-5, 1e-4, 3e-4, 1e-3], "Learning rates of the grid.")
    seeds: list[int] = option([1, 2, 3, 4, 5], "Seeds: pairs, their order, and draws.")
    pairs: int = option(256, "Pairs of a run in protocol (a). In (b) as many as make four draws a pair of these.")
    batch: int = option(8, "Pairs in a step.")
    held_out: int = option(108, "Held-out pairs of each kind.")


def examples(run: Run, table: list[Row]) -> Dataset:
    return tokenize_preferences(Dataset.from_list(table), base(run).tokenizer, **LIMITS)[0]


@cache
def base(run: Run) -> Any:
    return load(text_base(run), dtype=torch.float32)


@cache
def pool(run: Run) -> Dataset:
    return examples(run, text_rows(text_base(run), "pairs"))


@cache
def held_out(run: Run, name: str) -> tuple[Any, Any, Any, torch.Tensor]:
    """Tokens, pairs and draws of held-out pairs, and the base model's bounds. `misread`: right solutions against copies
    with wrong numbers, of other questions than `gsm8k`; `validate` shares no pair with the others."""
    count, source = (
        run.options.held_out,
        text_rows(text_base(run), "ultrafeedback" if name == "ultrafeedback" else "gsm8k"),
    )
    if name in ("misread", "validate"):
        source = [{**row, "rejected": misread(row["chosen"], seed)} for seed, row in enumerate(source[count:])]
        source = source[count:] if name == "validate" else source
    batch = PreferenceCollator(base(run).pad_id)(list(examples(run, source[:count])))
    tokens, pairs = tokens_of(batch, seed=0, epoch=-1), pairs_of(batch)
    draws = Paired(BalancedMasks(Levels(8, 2, 0.5)))(tokens, pairs)
    return tokens, pairs, draws, bounds(base(run), tokens, draws)


@torch.no_grad()
def bounds(denoiser: Any, tokens: Any, draws: Any) -> torch.Tensor:
    denoiser.module.eval()
    return elbo(denoiser, tokens, draws, Engine(8192)).value


def scored(run: Run, denoiser: Any, name: str) -> Row:
    """Means over held-out pairs: margin h in nats, loss -log sigmoid(beta h), pairs in order."""
    tokens, pairs, draws, reference = held_out(run, name)
    change = bounds(denoiser, tokens, draws) - reference
    margin = change[pairs.chosen] - change[pairs.rejected]
    found = (margin, -logsigmoid(BETA * margin), (margin > 0).double())
    return {measure: float(values.mean()) for measure, values in zip(MEASURES, found, strict=True)}


def trained(run: Run, case: Row, rate: float, seed: int, parts: tuple[str, ...]) -> Row:
    """One run: its pairs are the first of an order that depends on the seed only, so arms of one seed are paired."""
    options, arm = run.options, ARMS[case["arm"]]
    count = options.pairs if case["protocol"] == "a" else 4 * options.pairs // arm["num_times"]
    order = torch.randperm(len(pool(run)), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    denoiser = load(text_base(run), dtype=torch.float32)
    steps = len(order) // options.batch
    fields: Row = {"num_train_epochs": 1.0, "per_device_train_batch_size": options.batch, "seed": seed, "beta": BETA}
    fields |= {"learning_rate": rate, "warmup_steps": float(steps // 10), "max_tokens_per_forward": 8192}
    fields |= {"log_gradient_snr": False, "warn_displacement": False, "logging_steps": max(1.0, steps / 4)}
    args = VRPOConfig(**settings(run.work / "trainer", **fields, **arm))
    trainer = VRPOTrainer(denoiser, args=args, train_dataset=pool(run).select(order))
    start = time.perf_counter()
    trainer.train()
    took = time.perf_counter() - start
    return {"pairs": len(order), "seconds": took, "held_out": {part: scored(run, denoiser, part) for part in parts}}


def grid(run: Run, case: Row) -> Row:
    return trained(run, case, case["rate"], 0, ("validate",))


def arms(run: Run, case: Row) -> Row:
    rate = best_rate(run, case)
    return {"rate": rate, **trained(run, case, rate, case["seed"], HELD_OUT)}


def best_rate(run: Run, case: Row) -> float:
    """Every arm's own: the lowest loss on validation pairs."""
    rows = run.rows("grid", protocol=case["protocol"], arm=case["arm"])
    return min(rows, key=lambda row: row["held_out"]["validate"]["loss"])["rate"]


def points(run: Run) -> list[Row]:
    """In protocol (b) arms of four draws are those of (a)."""
    every = [{"protocol": p, "arm": arm} for p in ("a", "b") for arm in run.options.arms]
    return [each for each in every if each["protocol"] == "a" or ARMS[each["arm"]]["num_times"] < 4]


def values(rows: list[Row], part: str, measure: str) -> dict[int, float]:
    """By seed."""
    return {row["seed"]: row["held_out"][part][measure] for row in rows}


def report(run: Run) -> str:
    columns = [(part, measure) for part in HELD_OUT for measure in MEASURES]
    head, found = [f"{part}: {measure}" for part, measure in columns], grouped(run.rows("arms"), "protocol", "arm")
    lines = []
    for (protocol, arm), rows in found.items():
        cells = [show(interval(list(values(rows, *column).values()))) for column in columns]
        lines.append([protocol, arm, rows[0]["pairs"], f"{rows[0]['rate']:g}", len(rows), *cells])
    parts = [
        table(["protocol", "arm", "pairs", "rate", "seeds", *head], lines, "Means over seeds [95 %], margins in nats")
    ]
    lines = []
    for protocol, one, other in COMPARED:
        own, against = found.get((protocol, one)), found.get((protocol, other)) or found.get(("a", other))
        own = own or found.get(("a", one))
        if own and against:
            cells = []
            for column in columns:
                a, b = values(own, *column), values(against, *column)
                cells.append(show(interval([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())])))
            lines.append([protocol, f"{one} minus {other}", *cells])
    parts.append(table(["protocol", "difference", *head], lines, "Paired by seed"))
    lines = [
        [p, arm, ", ".join(f"{row['rate']:g}: {row['held_out']['validate']['loss']:.4f}" for row in rows)]
        for (p, arm), rows in grouped(run.rows("grid"), "protocol", "arm").items()
    ]
    parts.append(table(["protocol", "arm", "rate: loss on validation pairs"], lines))
    return "\n".join(parts)


def draw(run: Run) -> Any:
    figure, axes = panels(list(HELD_OUT), x="margin on held-out pairs, nats", y="", share=True)
    found = grouped(run.rows("arms"), "protocol", "arm")
    for axis, part in zip(axes, HELD_OUT, strict=True):
        for place, rows in enumerate(found.values()):
            each = list(values(rows, part, "margin").values())
            axis.plot(each, [place] * len(each), ".", color="grey")
            mean, low, high = interval(each)
            axis.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", color="C0", capsize=3)
        axis.axvline(0, color="grey", linewidth=0.8)
    axes[0].set_yticks(range(len(found)), [f"{protocol}: {arm}" for protocol, arm in found])
    return figure


PARTS = {
    "grid": Part(lambda run: [{**each, "rate": rate} for each in points(run) for rate in run.options.rates], grid),
    "arms": Part(lambda run: [{**each, "seed": seed} for seed in run.options.seeds for each in points(run)], arms),
}
TINY = {"arms": ["naive", "ours1"], "rates": [1e-3], "seeds": [1, 2], "pairs": 8, "batch": 4, "held_out": 4}
STUDY = Study(PARTS, report, TINY, Training, draw)
