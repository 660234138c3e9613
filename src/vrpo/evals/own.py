"""Tasks of our own, run from local files: how rows become prompts, and which judge says whether an answer is right.

Prompts are in our words and without examples: they ask for the form in which the judge looks for an answer. What
deliberately does not live here: judging (rewards/), decoding settings (presets.py), lm-eval's tasks (harness.py).
"""

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vrpo.data.json_rows import read_records

Row = dict[str, Any]


@dataclass(frozen=True)
class OwnTask:
    """`file`: where rows are in a folder of data; `judge`: a name of judges.py; `runs_code`: judging executes what the
    model wrote."""

    name: str
    file: str
    prompt: Callable[[Mapping[str, Any]], str]
    judge: str
    read: Callable[[Path], list[Row]]
    runs_code: bool = False

    def rows(self, path: Path) -> list[Row]:
        """The rows of a file, each with the fields that prompt and judge find there.

        Raises:
            ValueError: there is no such file, or a line of it is no row of this task.
        """
        if not path.is_file():
            raise ValueError(f"{self.name}: no such file: {path}")
        rows = self.read(path)
        if not rows:
            raise ValueError(f"{path} has no rows")
        for number, row in enumerate(rows):
            try:
                self.prompt(row)
            except KeyError as error:
                raise ValueError(f"{path}: row {number} has no field {error}, which {self.name} needs") from error
        return rows


def _json(path: Path) -> list[Row]:
    records = read_records(path, str(path))
    for record in records:
        if record.unusable is not None:
            raise ValueError(f"{record.origin} is {record.unusable}")
    return [record.fields for record in records]


def _countdown(path: Path) -> list[Row]:
    """Without the rows whose numbers and target are in the training set beside them."""
    train = path.with_name("train.jsonl.gz")
    seen = set()
    if train.is_file() and train != path:
        for row in _json(train):
            numbers = row["extra_info"]["numbers"].strip("[]")
            seen.add((_sorted(numbers), str(row["reward_model"]["ground_truth"])))
    return [row for row in _json(path) if "input" not in row or (_sorted(row["input"]), str(row["output"])) not in seen]


def _sorted(numbers: str) -> tuple[int, ...]:
    return tuple(sorted(int(number) for number in numbers.split(",")))


def _table(path: Path) -> list[Row]:
    if path.suffix != ".csv":
        return _json(path)
    with path.open(newline="") as file:
        return [dict(row) for row in csv.DictReader(file)]


def _gsm8k_prompt(row: Mapping[str, Any]) -> str:
    return f"{row['question']}\n\nThink step by step, and give the final number in \\boxed{{}}."


def _math_prompt(row: Mapping[str, Any]) -> str:
    return f"{row['problem']}\n\nThink step by step, and give the final answer in \\boxed{{}}."


def _humaneval_prompt(row: Mapping[str, Any]) -> str:
    return (
        "Complete this Python function. Answer with the whole function, imports included, in one block of code.\n\n"
        f"```python\n{row['prompt'].rstrip()}\n```"
    )


def _mbpp_prompt(row: Mapping[str, Any]) -> str:
    tests = "\n".join(row["test_list"])
    return (
        f"{row['prompt']} Answer with Python in one block of code. It should pass these tests:\n\n"
        f"```python\n{tests}\n```"
    )


def _ifeval_prompt(row: Mapping[str, Any]) -> str:
    return str(row["prompt"])


def _countdown_prompt(row: Mapping[str, Any]) -> str:
    """Rows that bring their prompt (those to train on) keep it."""
    if "prompt" in row:
        return _given(row["prompt"])
    return (
        f"Write an arithmetic expression of the numbers {row['input'].replace(',', ', ')} that equals {row['output']}. "
        "Use each number exactly once, with +, -, * and /. Put the expression alone, without an equals sign, between "
        "<answer> and </answer>."
    )


def _sudoku_prompt(row: Mapping[str, Any]) -> str:
    if "prompt" in row:
        return _given(row["prompt"])
    return (
        "Solve this 4x4 Sudoku, given as 16 digits row by row, where 0 is an empty cell. Each row, each column and "
        f"each 2x2 box has the digits 1 to 4 once.\n\n{row['Puzzle']}\n\n"
        "Put the 16 digits of the solution between <answer> and </answer>."
    )


def _given(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n\n".join(message["content"] for message in prompt)


OWN: Mapping[str, OwnTask] = {
    task.name: task
    for task in (
        OwnTask("gsm8k", "gsm8k/test.jsonl.gz", _gsm8k_prompt, "numeric", _json),
        OwnTask("math500", "math500/test.jsonl.gz", _math_prompt, "math", _json),
        OwnTask("humaneval", "humaneval/HumanEval.jsonl.gz", _humaneval_prompt, "humaneval", _json, runs_code=True),
        OwnTask("mbpp", "mbpp/sanitized.json.gz", _mbpp_prompt, "mbpp", _json, runs_code=True),
        OwnTask("ifeval", "ifeval/input_data.jsonl.gz", _ifeval_prompt, "instructions", _json),
        OwnTask("countdown", "countdown/test.jsonl", _countdown_prompt, "countdown", _countdown),
        OwnTask("sudoku", "sudoku4x4/test.csv", _sudoku_prompt, "sudoku", _table),
    )
}
