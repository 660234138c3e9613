"""The tasks that studies share: pairs of UltraFeedback as token ids, pairs of text, 4x4 Sudoku. Each is read from the
data folder, or made by chance where a tiny run has none.
"""

import csv
import gzip
import json
import random
import re
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import permutations, product
from pathlib import Path
from typing import Any

from tokenizers import ByteLevelBPETokenizer

Row = dict[str, Any]
MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
SUDOKU = 17  # tokens of an answer: the grid and the end
PARTS = {"sft": 5000, "pairs": 8000, "validate": 500}  # of the training puzzles, in file order


def read(path: Path) -> list[Row]:
    """JSON lines, compressed or not."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in content.decode().split("\n") if line]


def write(path: Path, rows: Iterable[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def folder(data: str | None) -> Path:
    if data is None:
        raise ValueError("--data: the folder of the data sets is missing. Give it, or --tiny.")
    return Path(data)


def pair_ids(data: str | None, tiny: bool, limit: int, pad_id: int, longest: int) -> list[Row]:
    """Pairs as token ids (GPT-2's), rows cut to the longest at their end. Made: ids and lengths by chance."""
    if tiny and data is None:
        rng = random.Random(0)
        sizes = [[rng.randint(4, 24) for _ in range(3)] for _ in range(limit)]
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        rows = [{n: [rng.randrange(200) for _ in range(k)] for n, k in zip(names, size, strict=True)} for size in sizes]
        return [{**row, "example_id": number} for number, row in enumerate(rows)]
    tokenizers, found = folder(data) / "tokenizers" / "gpt2", []
    tokenizer = ByteLevelBPETokenizer(*(str(tokenizers / name) for name in ("vocab.json", "merges.txt")))
    for number, row in enumerate(read(folder(data) / "ultrafeedback" / "train.jsonl.gz")):
        prompt = tokenizer.encode(row["prompt"]).ids[-longest // 2 :]
        sides = {side: [*tokenizer.encode(row[side]).ids, pad_id] for side in ("chosen", "rejected")}
        cut = {f"{side}_ids": ids[: longest - len(prompt)] for side, ids in sides.items()}
        if row["chosen"] != row["rejected"]:
            found.append({"prompt_ids": prompt, **cut, "example_id": number})
        if len(found) == limit:
            break
    return found


def write_text(data: str | None, tiny: bool, where: Path) -> None:
    """Files of text: base.jsonl, what the base model imitates (GSM8K solutions, UltraFeedback's answers); pairs.jsonl,
    what policies are aligned on (UltraFeedback's training pairs, GSM8K solutions against copies with wrong numbers);
    held out, gsm8k.jsonl (a right and a wrong solution of a test question, by language models) and ultrafeedback.jsonl.
    """
    if tiny and data is None:
        pairs = made_text(64)
        tables = {"base": [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs], "pairs": pairs}
        tables |= {"gsm8k": pairs[:16], "ultrafeedback": pairs[16:24]}
    else:
        mathematics, chat = folder(data) / "gsm8k", folder(data) / "ultrafeedback"
        solved = [
            {"prompt": row["question"] + "\n", "completion": row["answer"].replace("#### ", "A: ")}
            for row in read(mathematics / "train.jsonl.gz")
        ]
        liked = preferences(read(chat / "train.jsonl.gz"))
        answers = [
            {"prompt": row["prompt"], "completion": row[side]} for row in liked for side in ("chosen", "rejected")
        ]
        wrong = [
            {"prompt": row["prompt"], "chosen": row["completion"], "rejected": misread(row["completion"], seed)}
            for seed, row in enumerate(solved[: len(liked)])
        ]
        tables = {"base": solved + answers, "pairs": [row for both in zip(liked, wrong, strict=True) for row in both]}
        tables["gsm8k"] = list(right_and_wrong(read(mathematics / "model_solutions.jsonl.gz")))
        tables["ultrafeedback"] = preferences(read(chat / "eval.jsonl.gz"))
    for name, rows in tables.items():
        write(where / f"{name}.jsonl", rows)


def made_text(count: int) -> list[Row]:
    rng = random.Random(0)
    found = []
    for _ in range(count):
        a, b = rng.randint(1, 9), rng.randint(1, 9)
        right = f"{a} and {b} make {a + b}\nA: {a + b}"
        found.append({"prompt": f"{a}+{b}?\n", "chosen": right, "rejected": misread(right, a)})
    return found


def misread(text: str, seed: int) -> str:
    """The text with about every third number changed by one to nine: a solution that went wrong, in the same words."""
    rng, first = random.Random(seed), True

    def change(match: re.Match[str]) -> str:
        nonlocal first
        wrong, first = first or rng.random() < 1 / 3, False
        return str(int(match[0]) + rng.randint(1, 9)) if wrong else match[0]

    return re.sub(r"\d+", change, text)


def right_and_wrong(rows: list[Row]) -> Iterator[Row]:
    """The first right and the first wrong model solution of each question that has both."""
    for row in rows:
        by = {right: [row[n]["solution"] for n in MODELS if row[n]["is_correct"] is right] for right in (True, False)}
        if by[True] and by[False]:
            yield {"prompt": row["question"] + "\n", "chosen": by[True][0], "rejected": by[False][0]}


def preferences(rows: list[Row]) -> list[Row]:
    return [
        {"prompt": row["prompt"] + "\n", "chosen": row["chosen"], "rejected": row["rejected"]}
        for row in rows
        if row["chosen"] != row["rejected"] and row["metadata"]["score_chosen"] > row["metadata"]["score_rejected"]
    ]


@cache
def grids() -> tuple[str, ...]:
    """All 288 valid 4x4 grids."""
    rows, found = ["".join(row) for row in permutations("1234")], []
    for grid in map("".join, product(rows, repeat=4)):
        columns = [grid[column::4] for column in range(4)]
        boxes = [grid[8 * i + 2 * j :][:2] + grid[8 * i + 2 * j + 4 :][:2] for i in (0, 1) for j in (0, 1)]
        if all(len(set(unit)) == 4 for unit in (*columns, *boxes)):
            found.append(grid)
    return tuple(found)


@cache
def puzzles(data: str | None, tiny: bool, part: str) -> list[Row]:
    """Prompts of 4x4 Sudoku with what the verifier reads, no puzzle in two parts; `test` is the data's own file."""
    if tiny and data is None:
        rng = random.Random(part)
        chosen = rng.sample(grids(), 40)
        return [puzzle("".join("0" if rng.random() < 0.4 else cell for cell in grid), grid) for grid in chosen]
    with (folder(data) / "sudoku4x4" / "test.csv").open() as file:
        test = [puzzle(row["Puzzle"], row["Solution"]) for row in csv.DictReader(file)]
    if part == "test":
        return test
    rows = [
        puzzle(row["extra_info"]["puzzle"], row["reward_model"]["ground_truth"])
        for row in read(folder(data) / "sudoku4x4" / "train.jsonl.gz")
    ]
    seen = {row["Puzzle"] for row in test}
    each = [row for row in {row["Puzzle"]: row for row in rows}.values() if row["Puzzle"] not in seen]
    first = sum(size for name, size in PARTS.items() if list(PARTS).index(name) < list(PARTS).index(part))
    return each[first : first + PARTS[part]]


def puzzle(given: str, solution: str) -> Row:
    return {"prompt": f"{given}=", "Puzzle": given, "Solution": solution}
