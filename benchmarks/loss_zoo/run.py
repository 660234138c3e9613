"""Every preference objective with one draw and with eight, at the same forward passes: which of them gains from less
noise? 4x4 Sudoku with a verifier (45,000 parameters) and UltraFeedback, also with flipped labels (0.2M parameters).

    python benchmarks/loss_zoo/run.py --data FOLDER [--workers sudoku=1 ultrafeedback=1] [--tiny]

FOLDER holds ultrafeedback/{train,train_flipped20,eval}.jsonl.gz. A run is one objective, arm, learning rate and seed;
each leaves a line in the results at once, and a line that is there is not made again. Seeds are the outermost loop and
objectives the next, so that a study that is cut off (--deadline_seconds) has whole comparisons. Both tasks are for CPU
cores, a worker for each: minutes on 16 of them, hours on two.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from measure import Held, figures, noise
from objectives import ARMS, OBJECTIVES, SEEDS
from tasks import Sudoku, Task, UltraFeedback
from transformers import PrinterCallback
from transformers.utils.logging import disable_progress_bar

from vrpo import SFTConfig, SFTTrainer, VRPOConfig, VRPOTrainer, load
from vrpo.data.collate import pairs_of
from vrpo.models.hf import HFDenoiser

sys.path.append(str(Path(__file__).parent.parent / "variance_training"))
from common import trainer_settings

HERE = Path(__file__).parent
MARKS = "base_marks.txt"  # in a task's folder, once that is prepared: test problems that the base model solves


@dataclass(frozen=True)
class Job:
    """One training run: everything it depends on besides the task's folder."""

    task: str
    objective: str
    arm: str
    rate: float
    seed: int
    flipped: bool

    @property
    def name(self) -> str:
        labels = "flipped" if self.flipped else "clean"
        return f"{self.task}/{labels}/{self.objective}/{self.arm}/{self.rate:g}/{self.seed}"


def jobs_of(task: Task, objectives: list[str], arms: list[str], seeds: list[int]) -> list[Job]:
    """Seeds outermost, then objectives, so that a study that is cut off has whole comparisons; what needs groups of
    draws is left out where there is one draw."""
    return [
        Job(task.name, objective, arm, rate, seed, flipped)
        for seed in seeds
        for flipped in task.conditions
        for objective in objectives
        for rate in task.rates
        for arm in arms
        if ARMS[arm].num_times > 1 or not OBJECTIVES[objective].grouped
    ]


def config_of(task: Task, job: Job, folder: str) -> VRPOConfig | SFTConfig:
    arm, objective = ARMS[job.arm], OBJECTIVES[job.objective]
    fields = {**task.fields, **arm.fields, **objective.settings(task.name)}
    steps = task.num_pairs * arm.epochs // task.fields["per_device_train_batch_size"]
    own = {"num_train_epochs": float(arm.epochs), "learning_rate": job.rate, "seed": job.seed}
    logs = {"logging_steps": max(1.0, steps // 8), "log_gradient_snr": False, "warmup_steps": steps // 10}
    given = trainer_settings(Path(folder), **fields, **own, **logs)
    if job.objective == "sft":
        return SFTConfig(**given)
    return VRPOConfig(**given, warn_displacement=False)


def examples(job: Job, rows: list[dict[str, Any]]) -> Dataset:
    """Pairs; for SFT the chosen answers."""
    if job.objective == "sft":
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    return Dataset.from_list(rows)


@dataclass(frozen=True, eq=False)
class Base:
    """What does not change from run to run of a worker: the base model's terms on the held-out pairs."""

    task: Task

    def fresh(self) -> HFDenoiser:
        return load(self.task.folder / "base", dtype=torch.float32, device="cpu")

    @cache  # noqa: B019 - as long as the worker
    def held(self, part: str, seed: int) -> Held:
        return Held.of(self.fresh(), Dataset.from_list(self.task.measured_on(part, seed)), self.task.fields)

    @cache  # noqa: B019
    def terms(self, part: str, seed: int, plan: str) -> torch.Tensor:
        return self.terms_of(self.fresh(), part, seed, plan)

    def terms_of(self, denoiser: HFDenoiser, part: str, seed: int, plan: str) -> torch.Tensor:
        return self.held(part, seed).terms(denoiser, plan_of(self.task, plan), self.task.replicates[part])

    def measured(self, denoiser: HFDenoiser, job: Job, objective: Any) -> dict[str, Any]:
        """Of a policy; on the test part also under the plan that it was trained with."""
        found: dict[str, Any] = {}
        for part in self.task.replicates:
            found[part] = {"solved": self.task.solved(denoiser, part)}
            if part == "test" or not found[part]["solved"]:
                terms = self.terms_of(denoiser, part, job.seed, "fixed_count")
                pairs = pairs_of(self.held(part, job.seed).batch)
                found[part] |= figures(terms, self.terms(part, job.seed, "fixed_count"), pairs, objective)
        if job.arm == "default":
            own, base = self.terms_of(denoiser, "test", job.seed, "balanced"), self.terms("test", job.seed, "balanced")
            found["test"] |= {
                f"{name}_default": value
                for name, value in noise(own, base, pairs_of(self.held("test", job.seed).batch)).items()
            }
        return found


def plan_of(task: Task, name: str) -> Any:
    """The plan of that name with eight draws."""
    return VRPOConfig(output_dir=tempfile.gettempdir(), plan=name, num_times=8, **task.fields).training_plan()


def train(base: Base, job: Job) -> dict[str, Any]:
    """The run of a job, and what came out."""
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(base.task, job, folder)
        denoiser = base.fresh()
        rows = examples(job, base.task.pairs(job.seed, job.flipped))
        kind = VRPOTrainer if isinstance(config, VRPOConfig) else SFTTrainer
        trainer: Any = kind(denoiser, args=config, train_dataset=rows)
        trainer.remove_callback(PrinterCallback)
        start = time.time()
        trainer.train()
        trained = time.time()
    log = [[entry["loss"], entry["grad_norm"]] for entry in trainer.state.log_history if "loss" in entry]
    result = {"job": asdict(job), "steps": trainer.state.global_step, "seconds": trained - start, "log": log}
    pairwise = isinstance(config, VRPOConfig) and config.structure == "pairs"
    result |= base.measured(denoiser, job, config.objective() if pairwise else None)
    return {**result, "measuring_seconds": time.time() - trained}


def work(task: Task, jobs: list[Job], results: Path, counter: Any, deadline: float, stop: Any) -> None:
    """A worker process: takes job after job until none is left, time is up, or `stop` is set."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    disable_progress_bars()
    disable_progress_bar()  # of loading weights
    base = Base(task)
    while time.time() < deadline and not (stop is not None and stop.is_set()):
        with counter.get_lock():
            index, counter.value = counter.value, counter.value + 1
        if index >= len(jobs):
            return
        try:
            append(results, train(base, jobs[index]))
        except Exception:
            print(f"{jobs[index].name} failed:\n{traceback.format_exc(limit=-3)}", flush=True)
            append(results, {"job": asdict(jobs[index]), "failed": traceback.format_exc(limit=-1)})


def append(results: Path, result: dict[str, Any]) -> None:
    """One write, so that lines of several processes do not mix."""
    line = (json.dumps(result) + "\n").encode()
    with results.open("ab", buffering=0) as file:
        file.write(line)


def read(paths: list[Path]) -> dict[str, dict[str, Any]]:
    """Results by the names of their jobs; failed ones are left out, to be tried again."""
    lines = [line for path in paths if path.is_file() for line in path.read_text().split("\n") if line]
    found = [json.loads(line) for line in lines]
    return {Job(**result["job"]).name: result for result in found if "failed" not in result}


def prepare(task: Task) -> None:
    torch.set_num_threads(1)
    disable_progress_bars()
    task.folder.mkdir(parents=True, exist_ok=True)
    if not task.prepared:
        task.prepare()
    (task.folder / MARKS).write_text(task.solved(Base(task).fresh(), "test"))


class Pool:
    """Worker processes, so many that prefer each task; who finds none of its own left, or its base model not ready,
    helps with the other task meanwhile."""

    def __init__(self, tasks: list[Task], jobs: dict[str, list[Job]], results: Path, deadline: float):
        self.context = multiprocessing.get_context("spawn")
        self.tasks, self.jobs, self.results, self.deadline = {t.name: t for t in tasks}, jobs, results, deadline
        self.counters = {name: self.context.Value("i", 0) for name in self.tasks}
        self.ready = {name: self.context.Event() for name in self.tasks}
        self.broken: list[str] = []

    def process(self, function: Any, *arguments: Any) -> int:
        process = self.context.Process(target=function, args=arguments)
        process.start()
        process.join()
        assert process.exitcode is not None
        return process.exitcode

    def make_ready(self, name: str) -> None:
        try:
            done = (self.tasks[name].folder / MARKS).is_file() or not self.process(prepare, self.tasks[name])
        except Exception:
            done = False
            traceback.print_exc()
        if not done:
            self.broken.append(f"{name} was not prepared")
            self.jobs[name] = []
        self.ready[name].set()

    def slot(self, name: str) -> None:
        """One worker's life."""
        order = [name, *(other for other in self.tasks if other != name)]
        for other in order[1:]:
            if self.ready[other].is_set() and not self.ready[name].is_set():
                self.start(other, self.ready[name])
        self.ready[name].wait()
        for each in order:
            self.ready[each].wait()
            self.start(each, None)

    def start(self, name: str, stop: Any) -> None:
        left = self.counters[name].value < len(self.jobs[name])
        if left and time.time() < self.deadline:
            given = (self.tasks[name], self.jobs[name], self.results, self.counters[name], self.deadline, stop)
            if self.process(work, *given):
                self.broken.append(f"a worker of {name} broke")

    def run(self, workers: dict[str, int]) -> None:
        first = [threading.Thread(target=self.make_ready, args=(name,)) for name in self.tasks]
        for thread in first:
            thread.start()
        time.sleep(1)
        threads = [
            threading.Thread(target=self.slot, args=(name,)) for name, count in workers.items() for _ in range(count)
        ]
        for thread in threads:
            thread.start()
        for thread in [*first, *threads]:
            thread.join()


def summary(results: dict[str, dict[str, Any]], jobs: dict[str, list[Job]]) -> str:
    """How far it came, and what a run of each arm cost."""
    lines = []
    for task, wanted in jobs.items():
        done = [job for job in wanted if job.name in results]
        lines.append(f"{task}: {len(done)} of {len(wanted)} runs")
        for arm in ARMS:
            own = [results[job.name] for job in done if job.arm == arm]
            if own:
                times = [sum(run[name] for run in own) / len(own) for name in ("seconds", "measuring_seconds")]
                lines.append(f"  {arm}: {len(own)} runs, training {times[0]:.1f} s, measuring {times[1]:.1f} s")
    return "\n".join(lines)


def counts(values: list[str]) -> dict[str, int]:
    return {name: int(count) for name, _, count in (value.partition("=") for value in values)}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, help="Needed for UltraFeedback.")
    add("--runs", type=Path, default=Path("runs/loss_zoo"), help="Base models and Sudoku pairs.")
    add("--results", type=Path, help="A line for each run is added to this file (default: results.jsonl in --runs).")
    add("--earlier", type=Path, nargs="*", default=[], help="Results of earlier calls: what is in them is not made.")
    add("--workers", nargs="+", default=["sudoku=1", "ultrafeedback=1"], help="Processes that prefer each task.")
    add("--objectives", nargs="+", default=list(OBJECTIVES), choices=list(OBJECTIVES))
    add("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    add("--seeds", nargs="+", type=int, default=list(SEEDS))
    add("--deadline_seconds", type=float, default=float("inf"), help="No run begins later than that.")
    add("--stage", default="all", choices=("all", "prepare", "train", "report"))
    add("--page", type=Path, default=HERE, help="Folder of the report.")
    add("--tiny", action="store_true", help="A minute's worth, to see that it works; seed 1 and one rate only.")
    return parser.parse_args()


def tasks_of(given: argparse.Namespace, names: list[str]) -> list[Task]:
    tasks: list[Task] = []
    for name in names:
        if name == "sudoku":
            tasks.append((Sudoku.tiny if given.tiny else Sudoku)(given.runs / name))
        elif name == "ultrafeedback" and given.data is not None:
            kind = UltraFeedback.tiny if given.tiny else UltraFeedback
            tasks.append(kind(given.runs / name, given.data / name))
        else:
            raise SystemExit(f"--workers {name}=...: sudoku=, or ultrafeedback= with --data FOLDER")
    return tasks


def main() -> int:
    start, given = time.time(), parsed()
    os.environ["OMP_NUM_THREADS"] = "1"
    workers = counts(given.workers)
    tasks = tasks_of(given, list(workers))
    results = given.results or given.runs / "results.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    files = [*given.earlier, results]
    seeds = [1] if given.tiny else given.seeds
    wanted = {task.name: jobs_of(task, given.objectives, given.arms, seeds) for task in tasks}
    if given.stage != "report":
        done = read(files)
        left = {name: [job for job in jobs if job.name not in done] for name, jobs in wanted.items()}
        pool = Pool(tasks, left, results, 0 if given.stage == "prepare" else start + given.deadline_seconds)
        pool.run(workers)
        print(summary(read(files), wanted), *pool.broken, f"{time.time() - start:.0f} s", sep="\n")
        if pool.broken:
            return 1
    if given.stage in ("all", "report"):
        from report import report

        base = {task.name: (task.folder / MARKS).read_text() for task in tasks}
        report(list(read(files).values()), base, given.page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
