"""What is wrong with examples of token ids, whoever made them: found in whole columns, not row by row.

The rows of a text that spells the mask token and of ids that hold it are found here alike. What deliberately does not
live here: what a row of text must contain (formats.py), which ids a model knows (training/readable.py).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from vrpo.data.formats import SURE, UnusableRow

ANSWERS = ("chosen_ids", "rejected_ids", "completion_ids", "completions_ids", "response_ids")
_REALS = ("weight", "chosen_reward", "rejected_reward")
_BATCH = 1000  # rows that are looked at together
_TYPES = {  # of columns: what they hold, in words, and the test of it
    **dict.fromkeys(_REALS, ("a number", lambda kind: pa.types.is_floating(kind) or pa.types.is_integer(kind))),
    "rewards": ("a list of numbers", lambda kind: _lists(kind, pa.types.is_floating, pa.types.is_integer)),
    "places": ("a list of integers", lambda kind: _lists(kind, pa.types.is_integer)),
    "label": ("true or false", pa.types.is_boolean),
    "chunk": ("an integer", pa.types.is_integer),
    "example_id": ("an integer", pa.types.is_integer),
    "completions_ids": ("lists of token ids", lambda kind: _lists(kind, lambda one: _lists(one, pa.types.is_integer))),
}
KNOWN = {*_TYPES, *ANSWERS, "prompt_ids", *(f"other_{name}" for name in ANSWERS)}  # columns of examples
_IDS = ("a list of token ids, which are integers", lambda kind: _lists(kind, pa.types.is_integer))


def _lists(kind: pa.DataType, *tests: Any) -> bool:
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return listed and any(test(kind.value_type) for test in tests)


def check_types(examples: Dataset) -> None:
    """
    Raises:
        ValueError: a column of examples holds something else than its name says, or an `example_id` twice.
    """
    for column in examples.data.schema:
        said, is_of = _TYPES.get(column.name, _IDS if column.name.endswith("_ids") else ("anything", lambda kind: True))
        if not is_of(column.type):
            raise ValueError(f"column '{column.name}' holds {column.type}, and a row of it is {said}: cast it")
    check_example_ids(examples)


def check_example_ids(rows: Dataset) -> None:
    """Two rows with one id would share their draws and their cached reference values; only chunks of a text may.

    Raises:
        ValueError: they do, or a row has none.
    """
    if "example_id" not in rows.column_names:
        return
    names = [name for name in ("example_id", "chunk") if name in rows.column_names]
    table = rows.select_columns(names).with_format("arrow")[:]
    if not pa.types.is_integer(table["example_id"].type) or table["example_id"].null_count:
        raise ValueError("the column 'example_id' must hold integers, which name a row's draws: rename or remove it")
    if table.group_by(names).aggregate([]).num_rows < len(rows):
        raise ValueError("the column 'example_id' repeats a number (datasets put together?): remove it to number anew")


def faults_of(examples: Dataset, mask_id: int | None) -> dict[int, UnusableRow]:
    """Which rows are unusable, and why."""
    found: dict[int, UnusableRow] = {}
    start = 0
    for table in examples.with_format("arrow").iter(batch_size=_BATCH):
        found |= {start + row: fault for row, fault in faults(table, mask_id).items()}
        start += len(table)
    return found


def faults(table: pa.Table, mask_id: int | None) -> dict[int, UnusableRow]:
    """The same of one table."""
    found: dict[int, UnusableRow] = {}
    for search in (_missing(table), _empty(table), _masked(table, mask_id), _equal(table), _numbers(table)):
        for row, reason, detail in search:
            found.setdefault(row, UnusableRow(reason, detail))
    return found


def notes_of(examples: Dataset) -> tuple[dict[int, UnusableRow], dict[str, set[int]]]:
    """What is asked of the prompts of rows of text: the rows whose answers begin with a whole prompt, and what the
    account of the table notes of the others. A response without a prompt is a text to learn (`response_ids`)."""
    faults: dict[int, UnusableRow] = {}
    notes: dict[str, set[int]] = {"prompt_empty": set(), "prompt_repeated": set()}
    names = [name for name in ANSWERS if name in examples.column_names]
    start = 0
    for table in examples.select_columns(["prompt_ids", *names]).with_format("arrow").iter(batch_size=_BATCH):
        firsts = pc.list_slice(table["prompt_ids"], 0, 1).to_pylist()
        if names != ["response_ids"]:
            notes["prompt_empty"] |= {row for row, first in enumerate(firsts, start) if first == []}
        for row in _alike(table, firsts, names):
            prompt, *found = (table[name][row].as_py() for name in ("prompt_ids", *names))
            answers = (found[0] or [[]]) if names == ["completions_ids"] else found
            if not all(len(each or ()) > len(prompt) and each[: len(prompt)] == prompt for each in answers):
                continue
            notes["prompt_repeated"].add(start + row)
            if len(prompt) >= SURE:
                said = "every answer begins with the prompt, which is no part of an answer"
                faults[start + row] = UnusableRow("repeated prompt", said)
        start += len(table)
    return faults, notes


def _alike(table: pa.Table, firsts: Sequence[Any], names: Sequence[str]) -> list[int]:
    """The rows that have a prompt, with the first token of which their answers begin, too; of lists all."""
    one = [name for name in names if name != "completions_ids"]
    others = [pc.list_slice(table[name], 0, 1).to_pylist() for name in one]
    return [row for row, first in enumerate(firsts) if first and all(other[row] == first for other in others)]


Fault = tuple[int, str, str]  # row, reason, detail


def _missing(table: pa.Table) -> Iterator[Fault]:
    for name in table.column_names:
        if name.endswith("_ids") or name in ("label", "rewards", "places"):
            for row in pc.indices_nonzero(pc.is_null(table[name])).to_pylist():
                yield row, "missing field", f"field '{name}' is null"
        if name.endswith("_ids"):
            for row in rows_where(table[name], pc.is_null):
                yield row, "missing number", f"field '{name}' has a null in it"


def _empty(table: pa.Table) -> Iterator[Fault]:
    """What is masked then hides nothing: a row without an answer has no bound."""
    for name in ANSWERS:
        if name not in table.column_names:
            continue
        column, rows = table[name].combine_chunks(), np.arange(len(table))
        if name == "completions_ids":
            for row in np.flatnonzero(_lengths(column) < 2).tolist():
                yield row, "fewer than two answers", f"field '{name}' has {len(column[row] or [])}"
            rows, column = pc.list_parent_indices(column).to_numpy(), pc.list_flatten(column)
        for row in rows[_lengths(column) == 0].tolist():
            yield row, "empty answer", f"field '{name}' has no token in its answer"


def _lengths(lists: pa.Array) -> Any:
    """Of each list; a null, which `_missing` names, has 2, for it is neither empty nor too short."""
    return pc.fill_null(pc.list_value_length(lists), 2).to_numpy(zero_copy_only=False)


def _masked(table: pa.Table, mask_id: int | None) -> Iterator[Fault]:
    """A mask token in a text looks as if it were hidden, and would be learnt as text."""
    for name in [name for name in table.column_names if name.endswith("_ids") and mask_id is not None]:
        for row in rows_where(table[name], partial(pc.equal, mask_id)):
            yield row, "mask token", f"its {name.removesuffix('_ids')} spells the model's mask token"


def rows_where(column: pa.ChunkedArray, test: Callable[[pa.Array], pa.Array]) -> list[int]:
    """The rows of a column, of lists or of lists of lists, in which the test holds of a number, or of a null."""
    lists = column.combine_chunks()
    there = test(pc.list_flatten(lists, recursive=True))
    if not pc.any(there).as_py():
        return []
    of = pc.list_parent_indices(lists).to_numpy()
    if pa.types.is_nested(lists.type.value_type):
        of = of[pc.list_parent_indices(pc.list_flatten(lists)).to_numpy()]
    return list(np.unique(of[pc.fill_null(there, False).to_numpy(zero_copy_only=False)]).tolist())


def _equal(table: pa.Table) -> Iterator[Fault]:
    names = table.column_names
    if "chosen_ids" in names and "rejected_ids" in names:
        lengths = [pc.list_value_length(table[name]) for name in ("chosen_ids", "rejected_ids")]
        alike = table.select(["chosen_ids", "rejected_ids"]).add_column(0, "row", pa.array(range(len(table))))
        for row in alike.filter(pc.equal(*lengths)).to_pylist():
            if row["chosen_ids"] == row["rejected_ids"]:
                yield row["row"], "equal answers", "'chosen' and 'rejected' are the same tokens"
    for row, answers in enumerate(table["completions_ids"].to_pylist() if "completions_ids" in names else ()):
        rewards = table["rewards"][row].as_py() if "rewards" in names else None
        if rewards is not None and len(rewards) > 1 and len(set(rewards)) == 1:
            yield row, "all answers tied", "the numbers in field 'rewards' are all the same"
        if answers is None or (rewards is not None and (len(rewards) != len(answers) or None in rewards)):
            continue
        ranks = range(len(answers)) if rewards is None else rewards  # tied answers are never compared
        ranked = combinations(zip(answers, ranks, strict=True), 2)
        if any(one == other and rank != lower for (one, rank), (other, lower) in ranked):
            yield row, "equal answers", "field 'completions' has the same answer twice, at different ranks"


def _numbers(table: pa.Table) -> Iterator[Fault]:
    for name in _REALS:
        if name not in table.column_names:
            continue
        values = table[name].cast(pa.float64()).combine_chunks()
        for row in pc.indices_nonzero(pc.is_null(values)).to_pylist():
            yield row, "missing number", f"field '{name}' is absent or null"
        for row in pc.indices_nonzero(pc.invert(pc.is_finite(values))).to_pylist():
            yield row, "number not finite", f"field '{name}' is {values[row]}"
        if name == "weight":
            for row in pc.indices_nonzero(pc.less(values, 0)).to_pylist():
                yield row, "negative weight", f"field 'weight' is {values[row]}"
    for name in ("rewards", "places"):
        if name not in table.column_names or "completions_ids" not in table.column_names:
            continue
        counts = [pc.list_value_length(table[each]) for each in (name, "completions_ids")]
        for row in pc.indices_nonzero(pc.not_equal(*counts)).to_pylist():
            yield row, f"other number of {name}", f"field '{name}' has {counts[0][row]}, not {counts[1][row]}"
        for row in rows_where(table[name], _not_finite):
            yield row, "number not finite", f"field '{name}' is {table[name][row]}"


def _not_finite(values: pa.Array) -> pa.Array:
    return pc.invert(pc.fill_null(pc.is_finite(values.cast(pa.float64())), False))
