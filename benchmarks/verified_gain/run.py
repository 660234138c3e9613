"""Does preference training on verified pairs of a model's own answers make it solve more, and which estimator does it
best? 4x4 Sudoku and Countdown, models of less than 1M parameters, on CPU cores.

    python benchmarks/verified_gain/run.py --data FOLDER [--task sudoku] [--stage all]

Stages: `base` (SFT from scratch to a middling accuracy), `pairs` (`vrpo generate` and `vrpo pairs`), `grid` (learning
rate and beta of every arm, on validation problems), `arms` (five seeds, on test problems), `report`. A finished run
leaves one JSON file and is not run again. Several processes may work on a stage together: each claims the runs it does
(a killed one leaves a file in claims/ to delete).
"""

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from tasks import TASKS, Row, Task
from transformers import TrainerCallback

from vrpo import SFTConfig, SFTTrainer, VRPOConfig, VRPOTrainer, generate, load
from vrpo.cli import main
from vrpo.models.hf import HFDenoiser
from vrpo.models.tiny import from_config, train_tokenizer
from vrpo.rewards.judges import verifier
from vrpo.rewards.verdict import Answer
from vrpo.training.base import DiffusionTrainer

sys.path.append(str(Path(__file__).parent.parent / "variance_training"))
from common import claimed, trainer_settings

SAMPLES, TEMPERATURE, PER_PROMPT = 8, 1.0, 2
BATCH, POINTS = 32, 4
VRPO8: dict[str, Any] = {"num_times": 8}
PAPER: dict[str, Any] = {"plan": "fixed_count"}
# settings of an arm, and its repeats of the pairs in each protocol: (a) same steps, (b) same forward passes
SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {**PAPER, "num_times": 1},
    "naive": {**PAPER, "num_times": 1, "share_draws": False},
    "vrpo": {**PAPER, **VRPO8},
    "vrpo_default_plan": VRPO8,
}
REPEATS = {"a": dict.fromkeys(SETTINGS, 1), "b": {"sft": 32, "naive": 8, "vrpo": 1, "vrpo_default_plan": 1}}
RATES = (3e-5, 1e-4, 3e-4, 1e-3)
BETAS = (1.0, 5.0)
SEEDS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Job:
    """One training run. `epochs`: repeats of the pairs; `beta` 0 for SFT, which has none."""

    task: str
    arm: str
    epochs: int
    learning_rate: float
    beta: float
    seed: int
    test: bool

    @property
    def name(self) -> str:
        split = "test" if self.test else "validate"
        return f"{self.task}/{split}/{self.arm}_x{self.epochs}_lr{self.learning_rate:g}_b{self.beta:g}_s{self.seed}"

    @property
    def steps(self) -> int:
        return self.epochs * TASKS[self.task].num_pairs // BATCH

    @property
    def passes(self) -> int:
        """Sequences through a model, forward: of the policy and of the reference."""
        rows = 1 if self.arm == "sft" else 4
        return TASKS[self.task].num_pairs * self.epochs * rows * SETTINGS[self.arm]["num_times"]


@dataclass(frozen=True)
class Study:
    """A task, and what all its runs share."""

    task: Task
    data: Path
    runs: Path

    @cached_property
    def pool(self) -> list[Row]:
        rows = [json.loads(line) for line in (self.runs / "pairs.jsonl").read_text().split("\n") if line]
        return [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]

    @cached_property
    def validate(self) -> list[Row]:
        return self.task.rows(self.data, "validate")

    @cached_property
    def test(self) -> list[Row]:
        return self.task.rows(self.data, "test")

    def pairs(self, seed: int) -> list[Row]:
        """So many pairs of the pool, another subset for each seed, the same for all arms."""
        order = torch.randperm(len(self.pool), generator=torch.Generator().manual_seed(seed))
        assert len(order) >= self.task.num_pairs, f"{self.task.name}: there are {len(order)} pairs"
        return [self.pool[index] for index in order[: self.task.num_pairs].tolist()]

    def marks(self, denoiser: HFDenoiser, rows: list[Row], temperature: float = 0.0) -> list[int]:
        """1 where the answer is right."""
        denoiser.module.eval()
        answers = generate(
            denoiser,
            [row["prompt"] for row in rows],
            max_new_tokens=self.task.length,
            temperature=temperature,
            generator=torch.Generator().manual_seed(0) if temperature else None,
            batch_size=512,
            progress=False,
        )
        verdicts = verifier(self.task.judge)(
            [Answer(row["prompt"], answer.text or "", row) for row, answer in zip(rows, answers, strict=True)]
        )
        return [int(verdict.reward) for verdict in verdicts]


class Curve(TrainerCallback):
    """Share of validation problems solved while a run goes on."""

    def __init__(self, study: Study, denoiser: HFDenoiser, steps: int):
        self.study, self.denoiser, self.every = study, denoiser, steps // POINTS
        self.points: list[tuple[int, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            marks = self.study.marks(self.denoiser, self.study.validate)
            self.points.append((state.global_step, sum(marks) / len(marks)))


def settings_of(task: Task, folder: Path, **fields: Any) -> dict[str, Any]:
    return trainer_settings(folder, eos_padding=task.eos_padding, log_gradient_snr=False, **fields)


def make_base(study: Study) -> None:
    """SFT from scratch, stopped before the model can do it all."""
    task = study.task
    if (study.runs / "base.json").is_file():
        return
    shape = {"hidden_size": task.width, "intermediate_size": 8 * task.width // 3, "num_layers": task.layers}
    tokenizer = train_tokenizer(["01234="], 262)  # bytes and special tokens: no digits are merged
    denoiser = from_config(tokenizer, **shape, num_heads=4, max_length=64, seed=0)
    rows = [{"prompt": row["prompt"], "completion": task.completion(row)} for row in task.rows(study.data, "sft")]
    fields = {"max_steps": task.base_steps, "per_device_train_batch_size": 128, "learning_rate": task.base_rate}
    config = SFTConfig(**settings_of(task, study.runs / "base", logging_steps=40.0, warmup_steps=20.0, **fields))
    trainer = SFTTrainer(denoiser, args=config, train_dataset=Dataset.from_list(rows))
    trainer.train()
    trainer.save_model()
    found: dict[str, Any] = {"parameters": sum(parameter.numel() for parameter in denoiser.module.parameters())}
    for name in ("validate", "test"):
        found[name] = study.marks(denoiser, getattr(study, name))
        found[f"{name}_sampled"] = study.marks(denoiser, getattr(study, name), TEMPERATURE)
    (study.runs / "base.json").write_text(json.dumps(found))
    print(
        "base", {name: sum(marks) / len(marks) for name, marks in found.items() if isinstance(marks, list)}, flush=True
    )


def make_pairs(study: Study) -> None:
    """The base model's own answers, judged and paired, by the commands that a user would take."""
    task, runs = study.task, study.runs
    prompts = runs / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in task.rows(study.data, "pairs")))
    where = [
        "--model_name_or_path",
        str(runs / "base"),
        "--prompts",
        str(prompts),
        "--output",
        str(runs / "samples.jsonl"),
    ]
    how = ["--num_samples", str(SAMPLES), "--temperature", str(TEMPERATURE), "--max_new_tokens", str(task.length)]
    assert main(["generate", *where, *how, "--batch_size", "512", "--seed", "1", "--device", "cpu"]) == 0
    rule = ["--judge", task.judge, "--rule", "all", "--max_pairs", str(PER_PROMPT)]
    files = ["--samples", str(runs / "samples.jsonl"), "--output", str(runs / "pairs.jsonl")]
    assert main(["pairs", *files, *rule, "--report", str(runs / "pairs")]) == 0


def train(study: Study, job: Job) -> dict[str, Any]:
    """The run of a job, and what came out."""
    denoiser = load(study.runs / "base", dtype=torch.float32)
    fields = {
        "num_train_epochs": float(job.epochs),
        "per_device_train_batch_size": BATCH,
        "learning_rate": job.learning_rate,
        "warmup_steps": float(job.steps // 10),
        "seed": job.seed,
        "logging_steps": float(job.steps // POINTS),
        "max_tokens_per_forward": 8192,
        **SETTINGS[job.arm],
    }
    folder = study.runs / "trainer" / str(os.getpid())
    rows = study.pairs(job.seed)
    callbacks = [Curve(study, denoiser, job.steps)] if job.test else []
    trainer: DiffusionTrainer
    if job.arm == "sft":
        data = Dataset.from_list([{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows])
        config = SFTConfig(**settings_of(study.task, folder, **fields))
        trainer = SFTTrainer(denoiser, args=config, train_dataset=data, callbacks=callbacks)
    else:
        config = VRPOConfig(**settings_of(study.task, folder, beta=job.beta, warn_displacement=False, **fields))
        trainer = VRPOTrainer(denoiser, args=config, train_dataset=Dataset.from_list(rows), callbacks=callbacks)
    start = time.time()
    trainer.train()
    result = {"job": asdict(job), "steps": job.steps, "passes": job.passes, "seconds": time.time() - start}
    result |= {"log": [entry for entry in trainer.state.log_history if "loss" in entry]}
    if not job.test:
        return {**result, "validate": study.marks(denoiser, study.validate)}
    curve = [point for callback in callbacks for point in callback.points]
    sampled = study.marks(denoiser, study.test, TEMPERATURE)
    return {**result, "curve": curve, "test": study.marks(denoiser, study.test), "test_sampled": sampled}


def points() -> list[tuple[str, int]]:
    """Arms with their repeats, of both protocols, each once, the cheap ones first."""
    return sorted({(arm, repeats[arm]) for repeats in REPEATS.values() for arm in repeats}, key=lambda point: point[1])


def grid_jobs(task: str, arm: str, epochs: int) -> list[Job]:
    betas = (0.0,) if arm == "sft" else BETAS
    return [Job(task, arm, epochs, rate, beta, 0, test=False) for beta in betas for rate in RATES]


def result_of(runs: Path, job: Job) -> dict[str, Any]:
    return json.loads((runs / "results" / f"{job.name}.json").read_text())


def best(study: Study, arm: str, epochs: int) -> Job:
    """The rate and beta that solve most validation problems."""
    jobs = grid_jobs(study.task.name, arm, epochs)
    return max(jobs, key=lambda job: sum(result_of(study.runs, job)["validate"]))


def arm_jobs(study: Study) -> list[Job]:
    """Seed by seed, so that an interrupted stage leaves whole seeds."""
    chosen = {point: best(study, *point) for point in points()}
    return [
        Job(study.task.name, *point, job.learning_rate, job.beta, seed, test=True)
        for seed in SEEDS
        for point, job in chosen.items()
    ]


def do(study: Study, jobs: list[Job]) -> None:
    """The jobs that are not done and not claimed by another process; returns when all are done."""
    paths = {job: study.runs / "results" / f"{job.name}.json" for job in jobs}
    while missing := [job for job in jobs if not paths[job].is_file()]:
        for job in missing:
            with claimed(study.runs / "claims" / job.name) as mine:
                if mine and not paths[job].is_file():
                    result = train(study, job)
                    paths[job].parent.mkdir(parents=True, exist_ok=True)
                    part = paths[job].with_suffix(".part")
                    part.write_text(json.dumps(result))
                    part.replace(paths[job])  # another process never reads half a result
                    right = result["test" if job.test else "validate"]
                    print(job.name, f"{result['seconds']:.0f} s, {sum(right) / len(right):.3f}", flush=True)
        time.sleep(2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/verified_gain"))
    parser.add_argument("--task", choices=[*TASKS, "all"], default="all")
    stages = ("all", "base", "pairs", "grid", "arms", "report")
    parser.add_argument("--stage", default="all", choices=stages)
    arguments = parser.parse_args()
    disable_progress_bars()
    studies = [
        Study(task, arguments.data, arguments.runs / name)
        for name, task in TASKS.items()
        if arguments.task in ("all", name)
    ]

    def due(stage: str) -> bool:
        return arguments.stage in ("all", stage)

    for study in studies:
        study.runs.mkdir(parents=True, exist_ok=True)
        if due("base"):
            make_base(study)
        if due("pairs"):
            make_pairs(study)
        if due("grid"):
            do(study, [job for point in points() for job in grid_jobs(study.task.name, *point)])
        if due("arms"):
            do(study, arm_jobs(study))
    if due("report"):
        from report import report

        report(studies)
