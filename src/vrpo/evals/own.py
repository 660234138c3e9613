"""Tasks of our own, run from local files: how rows become prompts, and which judge says whether an answer is right.

Prompts are in our words and without examples: they ask for the form in which the judge looks for an answer. What
deliberately does not live here: judging (rewards/), decoding settings (presets.py), lm-eval's tasks (harness.py).
"""

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from vrpo.data.json_rows import Record, read_records
from vrpo.rewards.countdown import problem_of
from vrpo.rewards.verdict import Answer, Judge

Row = dict[str, Any]


@dataclass(frozen=True)
class OwnTask:
    """`file`: where rows are in a folder of data; `judge`: a name of judges.py; `needs`: fields that no row may lack;
    `runs_code`: judging executes what the model wrote; `whole`: what the share of full rewards is called, where rewards
    are shares themselves; `judged_by`: all that verdicts depend on, where that is more than the judge's name."""

    name: str
    file: str
    prompt: Callable[[Mapping[str, Any]], Any]
    judge: str
    read: Callable[[Path], list[Record]]
    needs: tuple[str, ...] = ()
    runs_code: bool = False
    whole: str | None = None
    judged_by: Mapping[str, Any] | None = None

    def rows(self, path: Path, judge: Judge | None = None) -> list[Row]:
        """The rows of a file, each with the fields that prompt and judge find there.

        Args:
            judge: tried on every row (where it runs code, on the first), so that a row without its truth, or a machine
                without a sandbox, is said before the first answer and not after the last.

        Raises:
            ValueError: there is no such file, or a line of it is no row of this task, or cannot be judged.
        """
        if not path.is_file():
            raise ValueError(f"{self.name}: no such file: {path}")
        records = self.read(path)
        if not records:
            raise ValueError(f"{path} has no rows")
        for record in records:
            self._check(record)
        if judge is not None:
            for record in records[:1] if self.runs_code else records:
                self._try(judge, record)
        return [record.fields for record in records]

    def _check(self, record: Record) -> None:
        if record.unusable is not None:
            raise ValueError(f"{record.origin} is {record.unusable}")
        for name in self.needs:
            if name not in record.fields or record.fields[name] is None:
                raise ValueError(f"{record.origin} has no field {name!r}, which {self.name} needs")
        try:
            self.prompt(record.fields)
        except KeyError as error:
            raise ValueError(f"{record.origin} has no field {error}, which {self.name} needs") from error
        except (AttributeError, TypeError) as error:
            raise ValueError(f"{record.origin} is no row of {self.name}: {error}") from error

    def _try(self, judge: Judge, record: Record) -> None:
        try:
            judge([Answer(self.prompt(record.fields), "1", record.fields)])
        except ValueError as error:
            why = str(error).removeprefix("answer 0: ")
            raise ValueError(f"{record.origin} cannot be judged: {why}") from error


def _json(path: Path) -> list[Record]:
    return read_records(path, str(path))


def _countdown(path: Path) -> list[Record]:
    """Without the rows whose numbers and target are in the training set beside them."""
    train = path.with_name("train.jsonl.gz")
    seen = {_problem(record) for record in _json(train)} if train.is_file() and train != path else set()
    seen -= {None}
    return [record for record in _json(path) if "input" not in record.fields or _problem(record) not in seen]


def _problem(record: Record) -> tuple[tuple[int, ...], Fraction] | None:
    """Numbers, in any order, and target; None of a row that is no problem, which is for others to say."""
    try:
        numbers, target = problem_of(record.fields, 0)
    except ValueError:
        return None
    return tuple(sorted(numbers)), target


def _table(path: Path) -> list[Record]:
    if path.suffix != ".csv":
        return _json(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="more")
            return [Record(f"{path}:{reader.line_num}", dict(row)) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as a table: {error}. Write it again, as CSV in UTF-8") from error


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
        OwnTask("gsm8k", "gsm8k/test.jsonl.gz", _gsm8k_prompt, "numeric", _json, ("question", "answer")),
        OwnTask("math500", "math500/test.jsonl.gz", _math_prompt, "math", _json, ("problem", "answer")),
        OwnTask(
            "humaneval",
            "humaneval/HumanEval.jsonl.gz",
            _humaneval_prompt,
            "humaneval",
            _json,
            ("prompt", "entry_point", "test"),
            runs_code=True,
        ),
        OwnTask("mbpp", "mbpp/sanitized.json.gz", _mbpp_prompt, "mbpp", _json, ("prompt", "test_list"), runs_code=True),
        OwnTask(
            "ifeval",
            "ifeval/input_data.jsonl.gz",
            _ifeval_prompt,
            "instructions",
            _json,
            ("prompt",),
            whole="all followed",
        ),
        OwnTask("countdown", "countdown/test.jsonl", _countdown_prompt, "countdown", _countdown),
        OwnTask("sudoku", "sudoku4x4/test.csv", _sudoku_prompt, "sudoku", _table),
    )
}
