"""Does an estimator of lower variance give a better aligned model? 4x4 Sudoku with a verifier, on one CPU core.

    python benchmarks/variance_training/run.py --data FOLDER [--stage all]

FOLDER holds train.jsonl.gz and test.csv (see README.md). Stages: `base` (SFT of a small model to middling accuracy),
`pairs` (its own sampled answers, judged by the verifier), `beta` (a pre-study), `grid` (learning rate of every arm on
validation pairs), `arms`, `same_rate` (the same at one learning rate), `pairs_vs_n`, `report`. A finished run leaves
one JSON file and is not run again. Several processes may work on a stage together: each claims the runs it does (a
killed one leaves a file in claims/ to delete).
"""

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import task
import torch
from common import POINTS, Curve, HeldOut, Job, do, trainer_settings
from datasets import Dataset, disable_progress_bars

from vrpo import FixedCount, SFTConfig, SFTTrainer, VRPOConfig, VRPOTrainer, load
from vrpo.data.tokenize import tokenize_preferences
from vrpo.models.hf import HFDenoiser
from vrpo.models.tiny import from_config, train_tokenizer

BASE_STEPS = 360
PAIRS = 512  # of an arm in protocol (a): 32 steps
DRAWS = 8 * PAIRS  # draws per answer and run in protocol (b) and in pairs_vs_n
FEW = 128  # distinct pairs of pairs_vs_n, repeated
GAP = 3  # a pair's answers differ by at least so many right cells
PAPER = {"plan": "fixed_count"}
OURS = {
    "plan": "balanced",
    "plan_kwargs": {"exponent": 0.5},
    "pair_coupling": "aligned",
}  # groups: 2 for n >= 4, else 1
SETTINGS: dict[str, dict[str, Any]] = {
    "naive": {**PAPER, "num_times": 1, "share_draws": False},
    **{f"paper{n}": {**PAPER, "num_times": n} for n in (1, 2, 4, 8, 16)},
    **{f"ours{n}": {**OURS, "num_times": n} for n in (1, 2, 4, 8, 16)},
    "auto": {**OURS, "num_times": 8, "num_draws": "auto"},
}
RATES = (1e-5, 3e-5, 1e-4, 3e-4)
BETAS = (0.2, 1.0)
BETA = 1.0  # of every job that does not say otherwise
COMMON_RATE = 3e-5  # of the comparison in which only the estimator differs
SEEDS = (1, 2, 3, 4, 5)
SAMPLED = 200  # test puzzles that are also answered at temperature 1


@dataclass(frozen=True)
class Study:
    """What all runs share, loaded once: the base model, the pool of pairs, the evaluation sets."""

    data: Path
    runs: Path

    @cached_property
    def base(self) -> HFDenoiser:
        return load(self.runs / "base", dtype=torch.float32)

    def examples(self, part: str) -> Dataset:
        """Pairs of a part whose answers differ enough."""
        rows = [json.loads(line) for line in (self.runs / f"{part}.jsonl").read_text().split("\n") if line]
        rows = [row for row in rows if row["right"][0] - row["right"][1] >= GAP]
        rows = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
        return tokenize_preferences(Dataset.from_list(rows), self.base.tokenizer)[0]

    @cached_property
    def pool(self) -> Dataset:
        return self.examples("pairs")

    def subset(self, job: Job) -> Dataset:
        """The first pairs of an order that depends on the seed only, so that arms of one seed are paired."""
        order = torch.randperm(len(self.pool), generator=torch.Generator().manual_seed(job.seed))
        assert job.num_pairs <= len(order), f"{job.name}: there are {len(order)} pairs"
        return self.pool.select(order[: job.num_pairs].tolist())


@cache
def held_out(study: Study, name: str) -> HeldOut:
    """Pairs of puzzles that are not trained on: many draws for the last word, fewer for curves."""
    part, first, last, num_times = {
        "final": ("heldout", 0, 160, 32),
        "curve": ("heldout", 160, 224, 8),
        "validate": ("validate", 0, 128, 16),
    }[name]
    return HeldOut.of(study.base, study.examples(part).select(range(first, last)), FixedCount(num_times), BETA)


def make_base(data: Path, runs: Path) -> None:
    """SFT from scratch on solved puzzles, stopped before the model can do them all."""
    if (runs / "base.json").is_file():
        return
    tokenizer = train_tokenizer(["01234="], 262)  # bytes and special tokens: no digits are merged
    denoiser = from_config(
        tokenizer, hidden_size=96, num_layers=3, num_heads=4, intermediate_size=256, max_length=64, seed=0
    )
    rows = [{"prompt": f"{puzzle}=", "completion": grid} for puzzle, grid in task.training_puzzles(data, "sft")]
    fields = {"max_steps": BASE_STEPS, "per_device_train_batch_size": 128, "learning_rate": 2e-3, "warmup_steps": 20.0}
    config = SFTConfig(**trainer_settings(runs / "base", logging_steps=40.0, **fields))
    trainer = SFTTrainer(denoiser, args=config, train_dataset=Dataset.from_list(rows))
    trainer.train()
    trainer.save_model()
    puzzles = [puzzle for puzzle, _ in task.training_puzzles(data, "validate")]
    found = {
        "parameters": sum(parameter.numel() for parameter in denoiser.module.parameters()),
        "test": solved(denoiser, task.test_puzzles(data)),
        "test_sampled": solved(denoiser, task.test_puzzles(data)[:SAMPLED], temperature=1.0),
        "validate": solved(denoiser, puzzles),
        "sampled": solved(denoiser, puzzles, temperature=1.0),
    }
    (runs / "base.json").write_text(json.dumps(found))
    print("base", found, flush=True)


def solved(denoiser: HFDenoiser, puzzles: list[str], temperature: float = 0.0) -> dict[str, float]:
    """Share of puzzles solved and of cells right."""
    denoiser.module.eval()
    marks = task.marks(puzzles, task.answers(denoiser, puzzles, temperature))
    right = [mark == task.CELLS for mark in marks]
    return {"solved": sum(right) / len(right), "cells": sum(marks) / len(marks) / task.CELLS}


def make_pairs(study: Study) -> None:
    """Two answers per puzzle, sampled at temperature 1 and judged."""
    study.base.module.eval()
    for part in ("validate", "heldout", "pairs"):
        path = study.runs / f"{part}.jsonl"
        if path.is_file():
            continue
        puzzles = [puzzle for puzzle, _ in task.training_puzzles(study.data, part)]
        samples = [task.answers(study.base, puzzles, 1.0, seed) for seed in (1, 2)]
        rows = [pair for pair in map(task.pair_of, puzzles, *samples) if pair]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(part, len(rows), "pairs of", len(puzzles), "puzzles", flush=True)


def train(study: Study, job: Job) -> dict[str, Any]:
    """The run of a job, and what came out."""
    denoiser = load(study.runs / "base", dtype=torch.float32)
    config = VRPOConfig(
        **trainer_settings(
            study.runs / "trainer" / str(os.getpid()),
            num_train_epochs=float(job.epochs),
            per_device_train_batch_size=job.batch,
            learning_rate=job.learning_rate,
            warmup_steps=float(job.steps // 10),
            beta=job.beta,
            seed=job.seed,
            max_tokens_per_forward=8192,
            log_gradient_snr=False,
            warn_displacement=False,  # part of what is measured
            logging_steps=float(job.steps // POINTS),
            **SETTINGS[job.arm],
        )
    )
    callbacks = [Curve(denoiser, held_out(study, "curve"), job.steps)] if job.test else []
    trainer = VRPOTrainer(denoiser, args=config, train_dataset=study.subset(job), callbacks=callbacks)
    start = time.time()
    trainer.train()
    seconds = time.time() - start
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    curve = [point for callback in callbacks for point in callback.points]
    result = {"job": asdict(job), "steps": job.steps, "seconds": seconds, "log": log, "curve": curve}
    if not job.test:
        return {**result, "pairs": held_out(study, "validate").measure(denoiser)}
    puzzles = task.test_puzzles(study.data)
    return {
        **result,
        "puzzles": solved(denoiser, puzzles),
        "sampled": solved(denoiser, puzzles[:SAMPLED], temperature=1.0),
        "pairs": held_out(study, "final").measure(denoiser),
    }


def points(n_of: dict[str, int], draws: int) -> list[tuple[str, int]]:
    """Arms with the pairs that a budget of draws per answer lets them see."""
    return [(arm, draws // n) for arm, n in n_of.items()]


SAME_STEPS = [(arm, PAIRS) for arm in ("naive", "paper1", "paper2", "paper8", "ours2", "ours8", "auto")]
SAME_PASSES = points({"naive": 1, "paper1": 1, "paper2": 2, "ours2": 2}, DRAWS)
RATE_OF = {**{f"ours{n}": f"paper{n}" for n in (1, 2, 4, 8, 16)}, "auto": "paper8"}  # chosen with the paper's plan


def beta_jobs() -> list[Job]:
    return [Job("paper8", PAIRS, 1, rate, 0, beta, test=False) for beta in BETAS for rate in RATES]


def grid_jobs(where: list[tuple[str, int]]) -> list[Job]:
    """Each rate, for arms that have a choice of their own."""
    return [Job(arm, pairs, 1, rate, 0, test=False) for arm, pairs in where if arm not in RATE_OF for rate in RATES]


def result_of(study: Study, job: Job) -> dict[str, Any]:
    return json.loads((study.runs / "results" / f"{job.name}.json").read_text())


def best_rate(study: Study, arm: str, pairs: int) -> float:
    """The learning rate with the lowest loss on validation pairs. Ours take the one chosen with the paper's plan at the
    same n."""
    jobs = grid_jobs([(RATE_OF.get(arm, arm), pairs)])
    return min(jobs, key=lambda job: result_of(study, job)["pairs"]["loss"]).learning_rate


def arm_jobs(study: Study) -> list[Job]:
    """Both protocols, seed by seed, so that an interrupted stage leaves whole seeds."""
    where = [*SAME_STEPS, *SAME_PASSES]
    rate = {point: best_rate(study, *point) for point in where}
    return [Job(*point, 1, rate[point], seed) for seed in SEEDS for point in where]


def same_rate_jobs() -> list[Job]:
    """Protocol (a) once more, at one learning rate for all."""
    return [Job(arm, pairs, 1, COMMON_RATE, seed) for seed in SEEDS for arm, pairs in SAME_STEPS]


def pairs_vs_n_jobs(study: Study, plans: tuple[str, ...], counts: tuple[int, ...]) -> list[Job]:
    """As many draws for all: few pairs seen again and again, or pairs seen once, at the rate chosen for the latter."""
    plenty = points({f"{plan}{n}": n for n in counts for plan in plans}, DRAWS)
    rate = {point: best_rate(study, *point) for point in plenty}
    return [
        Job(arm, distinct, pairs // distinct, rate[arm, pairs], seed)
        for seed in SEEDS[:3]
        for arm, pairs in plenty
        for distinct in (FEW, pairs)
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/sudoku"))
    stages = ("all", "base", "pairs", "beta", "grid", "arms", "same_rate", "pairs_vs_n", "report")
    parser.add_argument("--stage", default="all", choices=stages)
    arguments = parser.parse_args()
    disable_progress_bars()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    study = Study(arguments.data, arguments.runs)

    def work(jobs: list[Job]) -> None:
        do(arguments.runs, jobs, lambda job: train(study, job))

    def due(stage: str) -> bool:
        return arguments.stage in ("all", stage)

    if due("base"):
        make_base(arguments.data, arguments.runs)
    if due("pairs"):
        make_pairs(study)
    if due("beta"):
        work(beta_jobs())
    if due("grid"):
        work(grid_jobs([*SAME_STEPS, *SAME_PASSES]))
    if due("arms"):
        work(arm_jobs(study))
    if due("same_rate"):
        work(same_rate_jobs())
    if due("pairs_vs_n"):
        work(pairs_vs_n_jobs(study, ("paper",), (1,)))
        work(pairs_vs_n_jobs(study, ("paper", "ours"), (8, 2)))
        for n in (16, 4):
            work(grid_jobs(points({f"paper{n}": n}, DRAWS)))
            work(pairs_vs_n_jobs(study, ("paper", "ours"), (n,)))

    if due("report"):
        from report import report

        n8 = [point for point in SAME_STEPS if point[0] in ("paper8", "ours8", "auto")]
        protocols = {"(a) same steps": SAME_STEPS, "(b) same passes": [*SAME_PASSES, *n8]}
        report(arguments.runs, protocols, lambda arm, pairs: best_rate(study, arm, pairs), COMMON_RATE, DRAWS, FEW)
