"""The same question on text: does an estimator of lower variance give a better aligned model?

    python benchmarks/variance_training/text.py [--stage all]

Needs what variance_frontier/run.py leaves (its stage `base`): a small model and pairs of text. Stages: `grid`
(learning rate of every arm on validation pairs), `arms`, `report`. A finished run leaves one JSON file and is not run
again; several processes may work together.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from common import POINTS, Curve, HeldOut, Job, do, trainer_settings
from datasets import Dataset, disable_progress_bars
from run import OURS, PAPER

from vrpo import VRPOConfig, VRPOTrainer, load
from vrpo.coupling import Paired
from vrpo.data.tokenize import tokenize_preferences
from vrpo.models.hf import HFDenoiser
from vrpo.plans import BalancedMasks, Levels

sys.path.append(str(Path(__file__).parent.parent / "variance_frontier"))
from texts import misread

BATCH = 8
PAIRS = 256  # of an arm in protocol (a): 32 steps
DRAWS = 4 * PAIRS  # draws per answer and run in protocol (b)
BETA = 0.2
SETTINGS: dict[str, dict[str, Any]] = {
    "naive": {**PAPER, "num_times": 1, "share_draws": False},
    **{f"paper{n}": {**PAPER, "num_times": n} for n in (1, 4)},
    **{f"ours{n}": {**OURS, "num_times": n} for n in (1, 4)},
}
RATES = (3e-5, 1e-4, 3e-4, 1e-3)
SEEDS = (1, 2, 3, 4, 5)
SAME_STEPS = [(arm, PAIRS) for arm in SETTINGS]
SAME_PASSES = [(arm, DRAWS // int(SETTINGS[arm]["num_times"])) for arm in SETTINGS]
COMPARED = [  # each minus the other
    (("ours4", PAIRS), ("paper4", PAIRS)),
    (("ours1", PAIRS), ("paper1", PAIRS)),
    (("ours1", DRAWS), ("paper1", DRAWS)),
    (("paper1", PAIRS), ("naive", PAIRS)),
    (("paper4", PAIRS), ("naive", PAIRS)),
    (("paper1", DRAWS), ("naive", DRAWS)),
    (("paper4", PAIRS), ("paper1", PAIRS)),
    (("ours4", PAIRS), ("ours1", PAIRS)),
    (("paper1", DRAWS), ("paper4", PAIRS)),
    (("ours1", DRAWS), ("ours4", PAIRS)),
]
PARTS = ("misread", "gsm8k", "ultrafeedback")  # of the held-out pairs


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


@dataclass(frozen=True)
class Study:
    """What all runs share, loaded once."""

    source: Path
    runs: Path

    @cached_property
    def base(self) -> HFDenoiser:
        return load(self.source / "base", dtype=torch.float32)

    def examples(self, table: list[dict[str, str]]) -> Dataset:
        fields = {"max_length": 112, "max_prompt_length": 40, "truncation_mode": "keep_end"}
        return tokenize_preferences(Dataset.from_list(table), self.base.tokenizer, **fields)[0]

    @cached_property
    def pool(self) -> Dataset:
        return self.examples(rows(self.source / "data" / "pairs.jsonl"))

    def subset(self, job: Job) -> Dataset:
        """The first pairs of an order that depends on the seed only, so that arms of one seed are paired."""
        order = torch.randperm(len(self.pool), generator=torch.Generator().manual_seed(job.seed))
        return self.pool.select(order[: job.num_pairs].tolist())

    def held_out(self, part: str) -> list[dict[str, str]]:
        """Pairs of questions that nothing was trained on; `misread` are right solutions against a copy with wrong
        numbers, as half of the training pairs are, of questions other than those in `gsm8k`."""
        table = rows(self.source / "data" / f"{'ultrafeedback' if part == 'ultrafeedback' else 'gsm8k'}.jsonl")
        if part != "misread":
            return table[:108]
        return [{**row, "rejected": misread(row["chosen"], seed)} for seed, row in enumerate(table[108:])]


@cache
def held_out(study: Study, name: str) -> HeldOut:
    table = {
        "misread": lambda: study.held_out("misread")[:108],
        "gsm8k": lambda: study.held_out("gsm8k"),
        "ultrafeedback": lambda: study.held_out("ultrafeedback"),
        "validate": lambda: (
            study.held_out("misread")[108:172] + rows(study.source / "data" / "ultrafeedback.jsonl")[108:]
        ),
        "curve": lambda: study.held_out("misread")[172:204],
    }[name]()
    plan = Paired(BalancedMasks(Levels(8, 2, 0.5)))
    return HeldOut.of(study.base, study.examples(table), plan, BETA)


def train(study: Study, job: Job) -> dict[str, Any]:
    """The run of a job, and what came out."""
    denoiser = load(study.source / "base", dtype=torch.float32)
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
            warn_displacement=False,
            logging_steps=float(job.steps // POINTS),
            **SETTINGS[job.arm],
        )
    )
    callbacks = [Curve(denoiser, held_out(study, "curve"), job.steps)] if job.test else []
    trainer = VRPOTrainer(denoiser, args=config, train_dataset=study.subset(job), callbacks=callbacks)
    start = time.time()
    trainer.train()
    result = {
        "job": asdict(job),
        "steps": job.steps,
        "seconds": time.time() - start,
        "log": [entry for entry in trainer.state.log_history if "loss" in entry],
        "curve": [point for callback in callbacks for point in callback.points],
    }
    parts = PARTS if job.test else ("validate",)
    return {**result, "pairs": {part: held_out(study, part).measure(denoiser) for part in parts}}


def job_of(point: tuple[str, int], rate: float, seed: int, test: bool) -> Job:
    return Job(*point, 1, rate, seed, BETA, test, BATCH)


def points() -> list[tuple[str, int]]:
    return list(dict.fromkeys([*SAME_STEPS, *SAME_PASSES]))


def grid_jobs() -> list[Job]:
    return [job_of(point, rate, 0, test=False) for point in points() for rate in RATES]


def best_rate(study: Study, point: tuple[str, int]) -> float:
    """The learning rate with the lowest loss on validation pairs: every arm's own."""

    def loss(rate: float) -> float:
        path = study.runs / "results" / f"{job_of(point, rate, 0, test=False).name}.json"
        return float(json.loads(path.read_text())["pairs"]["validate"]["loss"])

    return min(RATES, key=loss)


def arm_jobs(study: Study) -> list[Job]:
    rate = {point: best_rate(study, point) for point in points()}
    return [job_of(point, rate[point], seed, test=True) for seed in SEEDS for point in rate]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=Path("runs/text"))
    parser.add_argument("--runs", type=Path, default=Path("runs/text_training"))
    parser.add_argument("--stage", default="all", choices=("all", "grid", "arms", "report"))
    arguments = parser.parse_args()
    disable_progress_bars()
    study = Study(arguments.source, arguments.runs)
    stages: dict[str, Callable[[], list[Job]]] = {"grid": grid_jobs, "arms": lambda: arm_jobs(study)}
    for stage, jobs in stages.items():
        if arguments.stage in ("all", stage):
            do(arguments.runs, jobs(), lambda job: train(study, job))
    if arguments.stage in ("all", "report"):
        from text_report import report

        report(arguments.runs, points(), PARTS, COMPARED, lambda point: best_rate(study, point))


if __name__ == "__main__":
    main()
