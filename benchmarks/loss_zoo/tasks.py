"""The two tasks: where their base models, training pairs and held-out rows come from, and how answers are marked.

`sudoku` is the set-up of recipes/sudoku_rounds_cpu (benchmarks/rounds), where preference training is known to gain: a
model that imitates careless solvers, and its own answers, judged. `ultrafeedback` is that of ultrafeedback_small with
a smaller model and shorter rows. All that the runs need is in one folder, so that it can be carried to another machine.
"""

import json
import random
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from objectives import FLIPPED

from vrpo import generate
from vrpo.cli import main
from vrpo.data.sources import load_rows
from vrpo.models.hf import HFDenoiser
from vrpo.rewards.judges import verifier
from vrpo.rewards.verdict import Answer

HERE = Path(__file__).parent
RECIPE = HERE.parents[1] / "recipes" / "sudoku_rounds_cpu"
Row = dict[str, Any]


class Task(Protocol):
    """What a run needs to know of its task. `folder`: with the base model in `base`, once prepared."""

    name: str
    folder: Path
    fields: dict[str, Any]  # of the trainers
    num_pairs: int  # of a run
    conditions: tuple[bool, ...]  # are labels flipped?
    rates: tuple[float, ...]
    replicates: dict[str, int]  # parts to measure on, and how many sets of eight draws

    @property
    def prepared(self) -> bool: ...

    def prepare(self) -> None: ...

    def pairs(self, seed: int, flipped: bool) -> list[Row]:
        """What a run trains on: another subset for each seed, the same for all objectives and arms."""
        ...

    def measured_on(self, part: str, seed: int) -> list[Row]:
        """Pairs to measure margins on, by their true labels: held out ones, `validate` and `test`, or of those that a
        run of this seed trains on, the ones whose labels flipping leaves `right` and the ones that it makes `wrong`."""
        ...

    def solved(self, denoiser: HFDenoiser, part: str) -> str:
        """A 1 for each prompt of the part that is answered rightly, else a 0; empty where no verifier can tell."""
        ...


def rows_of(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def subset(rows: list[Row], size: int, seed: int) -> list[Row]:
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    assert len(rows) >= size, f"there are {len(rows)} pairs, and {size} are asked for"
    return [rows[index] for index in order[:size].tolist()]


def flip(rows: list[Row], seed: int) -> list[Row]:
    """The rows with FLIPPED of the labels the wrong way round."""
    chance = random.Random(seed)
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    return [other if chance.random() < FLIPPED else row for row, other in zip(rows, swapped, strict=True)]


def command(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@dataclass(frozen=True, eq=False)
class Sudoku:
    folder: Path
    base_steps: int = 3000
    num_pairs: int = 768
    problems: dict[str, int] = field(default_factory=lambda: {"validate": 250, "test": 500})
    held: int = 48
    name: str = "sudoku"
    conditions: tuple[bool, ...] = (False,)
    rates: tuple[float, ...] = (3e-4, 1e-4, 1e-3)
    replicates: dict[str, int] = field(default_factory=lambda: {"validate": 2, "test": 8})
    fields: dict[str, Any] = field(
        default_factory=lambda: {
            "per_device_train_batch_size": 16,
            "max_length": 64,
            "max_tokens_per_forward": 8192,
            "use_cpu": True,  # 45,000 parameters: a GPU would only wait
            "bf16": False,
            "dataloader_pin_memory": False,
        }
    )

    @classmethod
    def tiny(cls, folder: Path) -> "Sudoku":
        small = cls(
            folder,
            base_steps=4,
            num_pairs=32,
            problems={"validate": 4, "test": 8},
            held=4,
            conditions=(False,),
            rates=(3e-4,),
        )
        return replace(small, fields={**small.fields, "per_device_train_batch_size": 8})

    @property
    def prepared(self) -> bool:
        return (self.folder / "pairs.jsonl").is_file()

    def prepare(self) -> None:
        """The commands of the recipe, up to the pairs of a first round, of more answers than there."""
        data, base = self.folder / "data", self.folder / "base"
        run_script(RECIPE / "data.py", "--folder", data)
        fields = ("--dataset_name", data / "sft.jsonl", "--output_dir", base, "--max_steps", self.base_steps)
        command("sft", "--config", RECIPE / "base.yaml", *fields, "--use_cpu", "true", "--disable_tqdm", "true")
        if self.base_steps < 100:  # too few for a right answer
            write_rows(self.folder / "pairs.jsonl", map(by_hand, rows_of(data / "prompts.jsonl")[:80]))
            return
        samples, pairs = self.folder / "samples.jsonl", self.folder / "pairs.jsonl"
        how = ("--num_samples", 8, "--temperature", 1.0, "--max_new_tokens", 17, "--batch_size", 512, "--seed", 1)
        where = ("--model_name_or_path", base, "--prompts", data / "prompts.jsonl", "--output", samples)
        command("generate", *where, *how, "--device", "cpu")
        rule = ("--judge", "sudoku", "--rule", "all", "--max_pairs", 4, "--report", self.folder / "pairs")
        command("pairs", "--samples", samples, "--output", pairs, *rule)

    @cached_property
    def parts(self) -> dict[str, list[Row]]:
        """Pairs by use: `held` of one prompt each for either measure, and no prompt in two uses."""
        rows = [
            {name: row[name] for name in ("prompt", "chosen", "rejected")}
            for row in rows_of(self.folder / "pairs.jsonl")
        ]
        one = {row["prompt"]: row for row in rows}  # the last pair of each prompt
        prompts = list(one)
        validate, test = prompts[: self.held], prompts[self.held : 2 * self.held]
        kept = {*validate, *test}
        return {
            "validate": [one[prompt] for prompt in validate],
            "test": [one[prompt] for prompt in test],
            "train": [row for row in rows if row["prompt"] not in kept],
        }

    def pairs(self, seed: int, flipped: bool) -> list[Row]:
        rows = subset(self.parts["train"], self.num_pairs, seed)
        return flip(rows, seed) if flipped else rows

    def measured_on(self, part: str, seed: int) -> list[Row]:
        return self.parts[part]

    def solved(self, denoiser: HFDenoiser, part: str) -> str:
        file = {"validate": "validation.jsonl", "test": "test.jsonl"}[part]
        rows = rows_of(self.folder / "data" / file)[: self.problems[part]]
        prompts = [row["prompt"] for row in rows]
        denoiser.module.eval()
        answers = generate(denoiser, prompts, max_new_tokens=17, temperature=0.0, batch_size=512, progress=False)
        given = [Answer(row["prompt"], answer.text or "", row) for row, answer in zip(rows, answers, strict=True)]
        return "".join(str(int(verdict.reward)) for verdict in verifier("sudoku")(given))


def by_hand(row: Row) -> Row:
    """A pair of a right answer and one with a wrong last digit."""
    wrong = row["Solution"][:-1] + "1234"[int(row["Solution"][-1]) % 4]
    return {"prompt": row["prompt"], "chosen": row["Solution"], "rejected": wrong}


def run_script(path: Path, *arguments: object) -> None:
    subprocess.run([sys.executable, str(path), *map(str, arguments)], check=True)


@dataclass(frozen=True, eq=False)
class UltraFeedback:
    """Real preferences. `data`: the folder with train, train_flipped20 and eval .jsonl.gz."""

    folder: Path
    data: Path
    epochs: int = 16
    shape: dict[str, int] = field(
        default_factory=lambda: {
            "hidden_size": 64,
            "intermediate_size": 192,
            "num_layers": 1,
            "num_heads": 2,
            "vocab_size": 1024,
        }
    )
    num_pairs: int = 256
    validation: int = 200
    held: int = 200
    name: str = "ultrafeedback"
    conditions: tuple[bool, ...] = (False, True)
    rates: tuple[float, ...] = (1e-4, 1e-3)
    replicates: dict[str, int] = field(default_factory=lambda: {"validate": 1, "test": 3, "right": 1, "wrong": 1})
    fields: dict[str, Any] = field(
        default_factory=lambda: {
            "per_device_train_batch_size": 16,
            "max_length": 64,
            "max_prompt_length": 24,
            "truncation_mode": "keep_end",
            "max_tokens_per_forward": 2048,  # fits the caches of a core
            "use_cpu": True,
            "bf16": False,
            "dataloader_pin_memory": False,
        }
    )

    @classmethod
    def tiny(cls, folder: Path, data: Path) -> "UltraFeedback":
        small = cls(folder, data, 1, num_pairs=32, validation=4, held=4, conditions=(True,), rates=(3e-4,))
        shape = {**small.shape, "hidden_size": 16, "intermediate_size": 32, "vocab_size": 300}
        short = {"per_device_train_batch_size": 8, "max_length": 24, "max_prompt_length": 8}
        return replace(small, shape=shape, fields={**small.fields, **short})

    @property
    def prepared(self) -> bool:
        return (self.folder / "base" / "trainer_state.json").is_file()

    def prepare(self) -> None:
        """SFT from scratch, as in ultrafeedback_small, but on none of the held-out rows, and on both answers of the
        others: so that which one the model has seen says nothing about which one is preferred."""
        config, rows = HERE.parent / "ultrafeedback_small" / "sft.yaml", self.folder / "sft.jsonl"
        kept = self.rows("train.jsonl.gz")[self.validation :]
        write_rows(rows, [{**row, "chosen": row[name]} for row in kept for name in ("chosen", "rejected")])
        fields = {**self.shape, "dataset_name": rows, "output_dir": self.folder / "base"}
        fields |= {"num_train_epochs": self.epochs, "bf16": "false", "use_cpu": "true", "disable_tqdm": "true"}
        fields |= {name: self.fields[name] for name in ("max_length", "max_prompt_length")}
        command("sft", "--config", config, *(part for name, value in fields.items() for part in (f"--{name}", value)))

    @cache  # noqa: B019 - as long as the worker
    def rows(self, file: str) -> list[Row]:
        """Usable rows: the two answers differ."""
        found = [
            {name: row[name] for name in ("prompt", "chosen", "rejected")} for row in load_rows(str(self.data / file))
        ]
        return [row for row in found if row["chosen"] != row["rejected"]]

    def pairs(self, seed: int, flipped: bool) -> list[Row]:
        file = "train_flipped20.jsonl.gz" if flipped else "train.jsonl.gz"
        return subset(self.rows(file)[self.validation :], self.num_pairs, seed)

    def measured_on(self, part: str, seed: int) -> list[Row]:
        if part == "test":
            return self.rows("eval.jsonl.gz")[: self.held]
        if part == "validate":
            return self.rows("train.jsonl.gz")[: self.validation]
        both = zip(self.pairs(seed, False), self.pairs(seed, True), strict=True)
        return [row for row, given in both if (row == given) == (part == "right")]

    def solved(self, denoiser: HFDenoiser, part: str) -> str:
        return ""
