"""Tiny training runs to compare: a model, pairs of token ids, a recorder of what training did to the parameters."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers import TrainerCallback

from vrpo.draws import fold
from vrpo.models.hf import HFDenoiser
from vrpo.models.tiny import from_config, train_tokenizer
from vrpo.training.config import SFTConfig
from vrpo.training.preference import VRPOTrainer
from vrpo.training.preference_config import VRPOConfig
from vrpo.training.sft import SFTTrainer

Trajectory = list[dict[str, Tensor]]  # trainable parameters after each optimizer step
FLOATS = ("num_train_epochs", "logging_steps", "save_steps", "eval_steps", "warmup_steps")  # 2 is no float to beartype
TIMINGS = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos")


def numbers(seed: int, count: int, below: int) -> list[int]:
    """`count` pseudo-random integers in [0, below), the same on every machine."""
    return (fold(torch.full((count,), seed), torch.arange(count)) % below).tolist()


def pairs(count: int = 8, lengths: Sequence[int] = (2, 7, 4, 9, 3, 6)) -> Dataset:
    """Tokenised preference pairs: prompts and answers of different lengths, ids above the special tokens."""
    rows: dict[str, list[Any]] = {"prompt_ids": [], "chosen_ids": [], "rejected_ids": [], "example_id": []}
    for index in range(count):
        size = [lengths[(index + shift) % len(lengths)] for shift in range(3)]
        for name, seed, length in zip(("prompt_ids", "chosen_ids", "rejected_ids"), (1, 2, 3), size, strict=True):
            rows[name].append([10 + token for token in numbers(100 * index + seed, length, 200)])
        rows["example_id"].append(index)
    return Dataset.from_dict(rows)


def labelled(count: int = 8, desirable: Sequence[bool] = (True, False, True)) -> Dataset:
    """Tokenised single answers with labels: those of `pairs`, one of each pair."""
    rows = [
        {
            "prompt_ids": row["prompt_ids"],
            "completion_ids": row["chosen_ids" if desirable[at % len(desirable)] else "rejected_ids"],
            "label": desirable[at % len(desirable)],
            "example_id": row["example_id"],
        }
        for at, row in enumerate(pairs(count))
    ]
    return Dataset.from_list(rows)


def ranked(count: int = 8, lists: Sequence[int] = (2, 4, 3), *, rewards: bool = False) -> Dataset:
    """Tokenised lists of answers, best first; the first two of a list are the answers of the pair in `pairs`."""
    rows: list[dict[str, Any]] = []
    for at, row in enumerate(pairs(count)):
        size = lists[at % len(lists)]
        more = [[10 + token for token in numbers(100 * at + 10 + j, 2 + j, 200)] for j in range(2, size)]
        both = [row["chosen_ids"], row["rejected_ids"]]
        given = {"prompt_ids": row["prompt_ids"], "completions_ids": both + more, "places": list(range(size))}
        given |= {"rewards": [float(2 * size - j * (at + 1)) for j in range(size)]} if rewards else {}
        rows.append({**given, "example_id": row["example_id"]})
    return Dataset.from_list(rows)


def with_numbers(rows: Dataset, **columns: Any) -> Dataset:
    """Rows with further columns, each a function of the row's index."""
    for name, of in columns.items():
        rows = rows.add_column(name, [float(of(row)) for row in range(len(rows))])
    return rows


def answers(count: int = 8) -> Dataset:
    """Tokenised supervised rows: the chosen answers of `pairs`."""
    rows = pairs(count)
    return Dataset.from_dict(
        {
            "prompt_ids": rows["prompt_ids"][:],
            "response_ids": rows["chosen_ids"][:],
            "example_id": rows["example_id"][:],
            "chunk": [0] * count,
        }
    )


def tiny(
    dtype: torch.dtype = torch.float64, *, layers: int = 2, seed: int = 0, architecture: str = "LLaDAModelLM"
) -> HFDenoiser:
    """A two-layer model whose weights are large enough for logits to differ."""
    denoiser = from_config(
        train_tokenizer(["what colour is the sky? blue"], 300),
        hidden_size=16,
        num_layers=layers,
        num_heads=2,
        intermediate_size=32,
        architecture=architecture,
        seed=seed,
    )
    with torch.no_grad():
        for parameter in denoiser.module.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)
    denoiser.module.to(dtype)
    denoiser.module.config.dtype = dtype
    return denoiser


def lora() -> LoraConfig:
    return LoraConfig(r=2, lora_alpha=4, lora_dropout=0.0)


def settings(folder: Path | str, **fields: Any) -> dict[str, Any]:
    """Fields of a quiet, short CPU run; plain SGD without clipping, so that a wrongly scaled gradient shows."""
    given = {name: float(value) if name in FLOATS else value for name, value in fields.items()}
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1.0,
        "optim": "sgd",
        "learning_rate": 0.1,
        "max_grad_norm": 0.0,
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2.0,
        "seed": 7,
        **given,
    }


def vrpo_config(folder: Path | str, **fields: Any) -> VRPOConfig:
    fast = {"plan": "fixed_count", "num_times": 2, "beta": 1.0, "eval_num_times": 2, "warn_displacement": False}
    fast["max_tokens_per_forward"] = None  # packs of one draw, so that several are needed
    return VRPOConfig(**settings(folder, **{**fast, **fields}))


def sft_config(folder: Path | str, **fields: Any) -> SFTConfig:
    return SFTConfig(**settings(folder, **{"num_times": 2, "eval_num_times": 2, **fields}))


class Recorder(TrainerCallback):
    """Keeps the trainable parameters after each optimizer step."""

    def __init__(self) -> None:
        self.trajectory: Trajectory = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        self.trajectory.append({name: p.detach().clone() for name, p in named if p.requires_grad})


def train(
    trainer: type[VRPOTrainer] | type[SFTTrainer],
    config: Any,
    rows: Dataset,
    *,
    denoiser: HFDenoiser | None = None,
    resume: str | None = None,
    **kwargs: Any,
) -> tuple[Any, Trajectory]:
    """Train a tiny model; the trainer and the trajectory."""
    recorder = Recorder()
    made: Any = trainer(tiny() if denoiser is None else denoiser, args=config, train_dataset=rows, **kwargs)
    made.add_callback(recorder)
    made.train(resume_from_checkpoint=resume)
    return made, recorder.trajectory


def distance(one: Trajectory, other: Trajectory) -> float:
    """The largest difference of any parameter at any step."""
    assert len(one) == len(other) > 0
    assert all(a.keys() == b.keys() for a, b in zip(one, other, strict=True))
    return max(float((a[n] - b[n]).abs().max()) for a, b in zip(one, other, strict=True) for n in a)


def moved(trajectory: Trajectory) -> float:
    """How far training went after its first step: a run that stands still equals every run."""
    return max(float((trajectory[-1][name] - trajectory[0][name]).abs().max()) for name in trajectory[0])


def log_lines(folder: Path | str) -> list[dict[str, Any]]:
    """log.jsonl without what a clock wrote; NaN as a string, which equals itself."""
    lines = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    return [_without_timings(line) for line in lines]


def _without_timings(line: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in line.items() if name not in TIMINGS and not name.endswith("_runtime")}
    return {name: "nan" if isinstance(value, float) and math.isnan(value) else value for name, value in kept.items()}
