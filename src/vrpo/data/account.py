"""The account of a table of examples: which rows became examples, which were dropped and why, and what was cut.

What deliberately does not live here: what makes a row unusable (formats.py, encode.py, tokenize.py).
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Value

from vrpo.data.formats import UnusableRow

ACCOUNT = {  # columns that a table of examples has until it is settled
    "origin": Value("string"),
    "reason": Value("string"),
    "detail": Value("string"),
    "prompt_cut": Value("bool"),
    "responses_cut": Value("int64"),
    "prompt_shortened": Value("bool"),
    "prompt_empty": Value("bool"),
    "prompt_repeated": Value("bool"),
}
UNCUT = {"prompt_cut": False, "responses_cut": 0} | dict.fromkeys(
    ("prompt_shortened", "prompt_empty", "prompt_repeated"), False
)
_FORMAT = 10  # rows from which on answers that begin with their prompts, mostly, are no chance
_REMEDIES = {
    "prompt too long": "set truncation_mode to keep_end, which cuts the beginning of prompts, or max_prompt_length, or "
    "a larger max_length",
}
_BATCH = 1000  # examples that are written together
_SHOWN = 3  # origins kept per reason


class RowsWarning(UserWarning):
    """What was dropped or cut of a table of text."""


@dataclass(frozen=True)
class Dropped:
    """Rows dropped for one reason: how many, and where the first few stand."""

    count: int
    origins: tuple[str, ...]


@dataclass(frozen=True)
class DataReport:
    """What became of the rows: `kept` and `dropped` by reason add up to all rows; of the kept ones, how many prompts
    and how many responses were cut to fit, how many implicit prompts end before words that both answers begin with, how
    many prompts are empty, and how many, being short, are what the answers begin with."""

    kept: int
    dropped: Mapping[str, Dropped]
    truncated_prompts: int
    truncated_responses: int
    shortened_prompts: int = 0
    empty_prompts: int = 0
    repeated_prompts: int = 0

    def __str__(self) -> str:
        parts = [f"kept {self.kept} of {self.total} rows"]
        for reason, drop in self.dropped.items():
            remedy = f": {_REMEDIES[reason]}" if reason in _REMEDIES else ""
            parts.append(f"dropped {drop.count}: {reason} (first: {drop.origins[0]}){remedy}")
        if self.repeated_prompts:
            parts.append(f"in {self.repeated_prompts} rows the answers begin with the short prompt")
        if self.truncated_prompts:
            parts.append(f"cut {self.truncated_prompts} prompts to max_prompt_length or max_length")
        if self.truncated_responses:
            parts.append(f"cut {self.truncated_responses} responses to max_length (they have no end token)")
        return "; ".join(parts)

    @property
    def total(self) -> int:
        return self.kept + sum(drop.count for drop in self.dropped.values())

    def lines(self) -> dict[str, int]:
        """What is counted, by name; dropped rows by reason."""
        counts = {
            "rows": self.total,
            "kept": self.kept,
            "  prompts cut": self.truncated_prompts,
            "  answers cut (no end token)": self.truncated_responses,
            "  prompts ended before shared words": self.shortened_prompts,
            "  empty prompts": self.empty_prompts,
            "  answers begin with a short prompt": self.repeated_prompts,
        }
        return counts | {f"dropped: {reason}": drop.count for reason, drop in self.dropped.items()}


def summary(names: Sequence[str], reports: Sequence[DataReport]) -> str:
    """One table of what became of the rows of each data set, by name: kept, cut and dropped; and where, and the
    remedies. Nothing, if there is no data set."""
    if not names:
        return ""
    counts = [report.lines() for report in reports]
    lines = dict.fromkeys(line for each in counts for line in each)
    width = max(map(len, lines))
    head = " " * width + "".join(f"{name:>10}" for name in names)
    rows = [f"{line:{width}}" + "".join(f"{each.get(line, 0):>10}" for each in counts) for line in lines]
    first: dict[str, str] = {}
    for report in reports:
        for reason, drop in report.dropped.items():
            first.setdefault(reason, drop.origins[0])
    notes = [
        f"{reason} (first: {origin})" + (f": {_REMEDIES[reason]}" if reason in _REMEDIES else "")
        for reason, origin in first.items()
    ]
    return "\n".join([head, *rows, *notes])


def write_account(made: Dataset, path: Path) -> None:
    """Write what became of every row to a file."""
    account = made.select_columns(["example_id", *ACCOUNT])
    _write(path, [account.with_format("arrow")[:]], account.features.arrow_schema)


def write_usable(made: Dataset, path: Path) -> None:
    """Write the usable examples to a file, without their account, so that nothing is looked up row by row later."""
    tables = made.with_format("arrow").iter(batch_size=_BATCH)
    usable = (table.filter(pc.is_null(table["reason"])) for table in tables)
    examples = made.features.copy()
    for name in ACCOUNT:
        del examples[name]
    _write(path, (table.select(list(examples)) for table in usable), examples.arrow_schema)


def _write(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    with pa.ipc.new_stream(str(path), schema) as writer:
        for table in tables:
            writer.write_table(table)


def settled(account: pa.Table, on_bad_rows: str, warning: type[UserWarning]) -> DataReport:
    """What the account of a table of examples comes to, with a warning, of this kind, of what was dropped or cut.

    Raises:
        ValueError: there is no usable one, or, on request, an unusable one.
    """
    report = _report(account, on_bad_rows)
    if str(report) != f"kept {report.kept} of {report.kept} rows":
        warnings.warn(str(report), warning, stacklevel=5)
    return report


def without(
    examples: Dataset, faults: Mapping[int, UnusableRow], notes: Mapping[str, Set[int]], on_bad_rows: str
) -> Dataset:
    """Examples that were given as such, without those at fault, which are counted like unusable rows.

    Args:
        notes: the rows of which an account says these things.

    Raises:
        ValueError: as `settled`.
    """
    if not faults and not any(notes.values()):
        return examples
    rows = range(len(examples))
    known = [faults.get(row) for row in rows]
    account = {
        "example_id": examples["example_id"][:],
        "origin": [f"row {row}" for row in rows],
        "reason": [None if fault is None else fault.reason for fault in known],
        "detail": [None if fault is None else fault.detail for fault in known],
        **{name: [value] * len(examples) for name, value in UNCUT.items()},
        **{name: [row in noted and row not in faults for row in rows] for name, noted in notes.items()},
    }
    settled(pa.table(account), on_bad_rows, UserWarning)
    return examples.select([row for row in rows if row not in faults])


def _report(account: pa.Table, on_bad_rows: str) -> DataReport:
    """Count what happened; raise for the first unusable row if asked to, or if there is no usable one."""
    found, first = dict[str, list[str]](), ""
    for row in account.filter(pc.is_valid(account["reason"])).to_pylist():
        found.setdefault(row["reason"], []).append(row["origin"])
        first = first or f"{row['origin']}: {row['reason']}: {row['detail']}"
    dropped = {reason: Dropped(len(origins), tuple(origins[:_SHOWN])) for reason, origins in found.items()}
    bad = sum(drop.count for drop in dropped.values())
    usable = account.filter(pc.is_null(account["reason"]))["example_id"]
    kept = pc.count_distinct(usable).as_py()  # rows, of which a chunked one gives several examples
    report = DataReport(kept, dropped, *(pc.sum(account[name]).as_py() for name in UNCUT))
    if kept == 0:
        raise ValueError(f"no usable row. {report}. The first: {first}. Fix the data, or the columns and limits given")
    if report.empty_prompts == kept:
        raise ValueError(
            f"prompt: it is empty in all {kept} usable rows. Give the column of what is asked the name 'prompt', or "
            "train on rows of 'text'"
        )
    if kept >= _FORMAT and report.repeated_prompts > kept / 2:
        raise ValueError(
            f"prompt: the answers of {report.repeated_prompts} of {kept} usable rows begin with it, and it is no part "
            "of an answer. Take it out of the answers"
        )
    if bad and on_bad_rows == "error":
        raise ValueError(f"{first} ({bad} unusable rows; fix or remove them, or pass on_bad_rows='drop' to count them)")
    return report
