"""What both studies of training share: jobs, held-out pairs, and a queue that several processes may work on."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid
from transformers import TrainerCallback

from vrpo import elbo
from vrpo.data.collate import PreferenceCollator, pairs_of, tokens_of
from vrpo.estimator import Engine
from vrpo.models.hf import HFDenoiser
from vrpo.types import Plan

POINTS = 4  # of a learning curve
SCORES = ("margin", "loss", "accuracy", "chosen_change", "rejected_change")


@dataclass(frozen=True)
class Job:
    """One training run: everything it depends on besides the base model and the pool of pairs."""

    arm: str
    num_pairs: int
    epochs: int
    learning_rate: float
    seed: int
    beta: float = 1.0
    test: bool = True  # on test puzzles and held-out pairs; False: on validation puzzles and pairs
    batch: int = 16  # pairs per optimizer step

    @property
    def name(self) -> str:
        split = "test" if self.test else "validate"
        return f"{split}/{self.arm}_{self.num_pairs}x{self.epochs}_lr{self.learning_rate:g}_b{self.beta:g}_s{self.seed}"

    @property
    def steps(self) -> int:
        return self.num_pairs * self.epochs // self.batch

    @property
    def key(self) -> str:
        """What the grid chooses a learning rate for."""
        return f"{self.arm}_{self.num_pairs}"


@dataclass(frozen=True)
class HeldOut:
    """Held-out pairs with fixed draws, the same for every run, and the base model's terms on them."""

    tokens: Any
    pairs: Any
    draws: Any
    reference: torch.Tensor
    beta: float

    @classmethod
    def of(cls, base: HFDenoiser, examples: Dataset, plan: Plan, beta: float) -> "HeldOut":
        batch = PreferenceCollator(base.pad_id)(list(examples))
        tokens = tokens_of(batch, seed=0, epoch=-1)
        pairs = pairs_of(batch)
        draws = plan(tokens, pairs)
        return cls(tokens, pairs, draws, bounds(base, tokens, draws), beta)

    def measure(self, denoiser: HFDenoiser) -> dict[str, float]:
        """Means over pairs: margin h in nats, loss -log sigmoid(beta h), pairs in order, change of either bound."""
        change = bounds(denoiser, self.tokens, self.draws) - self.reference
        chosen, rejected = change[self.pairs.chosen], change[self.pairs.rejected]
        ordered = (chosen > rejected).double()
        loss = -logsigmoid(self.beta * (chosen - rejected))
        columns = (chosen - rejected, loss, ordered, chosen, rejected)
        return {name: float(column.mean()) for name, column in zip(SCORES, columns, strict=True)}


@torch.no_grad()
def bounds(denoiser: HFDenoiser, tokens: Any, draws: Any) -> torch.Tensor:
    denoiser.module.eval()
    return elbo(denoiser, tokens, draws, Engine(8192)).value


def trainer_settings(folder: Path, **fields: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.01,
        "adam_beta2": 0.95,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **fields,
    }


class Curve(TrainerCallback):
    """Held-out measures while a run goes on."""

    def __init__(self, denoiser: HFDenoiser, held_out: HeldOut, steps: int):
        self.denoiser, self.held_out, self.every = denoiser, held_out, steps // POINTS
        self.points: list[dict[str, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            self.points.append({"step": state.global_step, **self.held_out.measure(self.denoiser)})


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether this process is the first to claim the path; the claim ends with the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        yield False
        return
    try:
        yield True
    finally:
        path.unlink()


def do(runs: Path, jobs: list[Job], train: Callable[[Job], dict[str, Any]]) -> None:
    """The jobs that are not done and not claimed by another process; returns when all are done."""
    paths = {job: runs / "results" / f"{job.name}.json" for job in jobs}
    while missing := [job for job in jobs if not paths[job].is_file()]:
        for job in missing:
            with claimed(runs / "claims" / job.name) as mine:
                if mine and not paths[job].is_file():
                    result = train(job)
                    paths[job].parent.mkdir(parents=True, exist_ok=True)
                    part = paths[job].with_suffix(".part")
                    part.write_text(json.dumps(result))
                    part.replace(paths[job])  # another process never reads half a result
                    print(job.name, f"{result['seconds']:.0f} s", result.get("puzzles"), result["pairs"], flush=True)
        time.sleep(2)
