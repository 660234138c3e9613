"""Rows of text from the data folder: what the small model learns, and the pairs that it is measured on.

`write(data, folder)` leaves four files in `folder`:

- base.jsonl: prompt + completion, what the base model imitates. GSM8K training solutions; UltraFeedback training
  prompts with both of their answers.
- pairs.jsonl: prompt + chosen + rejected, what policies are aligned on. Half are UltraFeedback training pairs, half
  GSM8K training solutions against a copy with wrong numbers.
- ultrafeedback.jsonl, gsm8k.jsonl: held-out pairs, to measure on. UltraFeedback's evaluation split; a right and a wrong
  solution of a GSM8K test question, both written by language models.
"""

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vrpo.draws import fold

MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


def read(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file.read().split("\n") if line]


def solved(rows: list[dict[str, Any]]) -> Iterator[dict[str, str]]:
    """GSM8K training rows in the words of the model solutions: `A: 72` for `#### 72`."""
    for row in rows:
        yield {"prompt": row["question"] + "\n", "completion": row["answer"].replace("#### ", "A: ")}


def misread(text: str, seed: int) -> str:
    """The text with about every third number changed by one to nine: a solution that went wrong, in the same words."""
    index = 0

    def change(match: re.Match[str]) -> str:
        nonlocal index
        index += 1
        bits = int(fold(torch.tensor(seed), index)) % 1000
        return str(int(match[0]) + 1 + bits % 9) if bits < 333 or index == 1 else match[0]

    return re.sub(r"\d+", change, text)


def right_and_wrong(rows: list[dict[str, Any]]) -> Iterator[dict[str, str]]:
    """The first right and the first wrong model solution of each question that has both."""
    for row in rows:
        by = {
            right: [row[name]["solution"] for name in MODELS if row[name]["is_correct"] is right]
            for right in (True, False)
        }
        if by[True] and by[False]:
            yield {"prompt": row["question"] + "\n", "chosen": by[True][0], "rejected": by[False][0]}


def preferences(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    fields = ("prompt", "chosen", "rejected")
    return [
        {name: row[name] + ("\n" if name == "prompt" else "") for name in fields}
        for row in rows
        if row["chosen"] != row["rejected"] and row["metadata"]["score_chosen"] > row["metadata"]["score_rejected"]
    ]


def write(data: Path, folder: Path) -> None:
    mathematics = list(solved(read(data / "gsm8k" / "train.jsonl.gz")))
    chat = preferences(read(data / "ultrafeedback" / "train.jsonl.gz"))
    answers = [{"prompt": row["prompt"], "completion": row[side]} for row in chat for side in ("chosen", "rejected")]
    wrong = [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": misread(row["completion"], seed)}
        for seed, row in enumerate(mathematics[: len(chat)])
    ]
    tables = {
        "base": mathematics + answers,
        "pairs": [row for both in zip(chat, wrong, strict=True) for row in both],
        "ultrafeedback": preferences(read(data / "ultrafeedback" / "eval.jsonl.gz")),
        "gsm8k": list(right_and_wrong(read(data / "gsm8k" / "model_solutions.jsonl.gz"))),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
