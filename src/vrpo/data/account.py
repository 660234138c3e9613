"""The account of a table of examples: which rows became examples, which were dropped and why, and what was cut.

What deliberately does not live here: what makes a row unusable (formats.py, encode.py, tokenize.py).
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
}
UNCUT = {"prompt_cut": False, "responses_cut": 0, "prompt_shortened": False, "prompt_empty": False}
_REMEDIES = {
    "prompt too long": "set truncation_mode to keep_end, which cuts the beginning of prompts, or max_prompt_length, or "
    "a larger max_length",
}
_SHOWN = 3  # origins kept per reason


@dataclass(frozen=True)
class Dropped:
    """Rows dropped for one reason: how many, and where the first few stand."""

    count: int
    origins: tuple[str, ...]


@dataclass(frozen=True)
class DataReport:
    """What became of the rows: `kept` and `dropped` by reason add up to all rows; of the kept ones, how many prompts
    and how many responses were cut to fit, how many implicit prompts end before words that both answers begin with, and
    how many prompts are empty."""

    kept: int
    dropped: Mapping[str, Dropped]
    truncated_prompts: int
    truncated_responses: int
    shortened_prompts: int = 0
    empty_prompts: int = 0

    def __str__(self) -> str:
        parts = [f"kept {self.kept} of {self.total} rows"]
        for reason, drop in self.dropped.items():
            remedy = f": {_REMEDIES[reason]}" if reason in _REMEDIES else ""
            parts.append(f"dropped {drop.count}: {reason} (first: {drop.origins[0]}){remedy}")
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
        }
        return counts | {f"dropped: {reason}": drop.count for reason, drop in self.dropped.items()}


def summary(names: Sequence[str], reports: Sequence[DataReport]) -> str:
    """One table of what became of the rows of each data set, by name: kept, cut and dropped, and the remedies."""
    counts = [report.lines() for report in reports]
    lines = dict.fromkeys(line for each in counts for line in each)
    width = max(map(len, lines))
    head = " " * width + "".join(f"{name:>10}" for name in names)
    rows = [f"{line:{width}}" + "".join(f"{each.get(line, 0):>10}" for each in counts) for line in lines]
    reasons = dict.fromkeys(reason for report in reports for reason in report.dropped)
    notes = [f"{reason}: {_REMEDIES[reason]}" for reason in reasons if reason in _REMEDIES]
    return "\n".join([head, *rows, *notes])


def settled(examples: Dataset, on_bad_rows: str) -> tuple[Dataset, DataReport]:
    """The usable ones of a table of examples, without the columns of its account, and the account.

    Raises:
        ValueError: there is none, or, on request, an unusable one.
    """
    account = examples.select_columns(["example_id", *ACCOUNT]).with_format("arrow")[:]
    report = _report(account, on_bad_rows)
    if report.dropped or report.truncated_prompts or report.truncated_responses:
        warnings.warn(str(report), UserWarning, stacklevel=4)
    usable = pc.is_null(account["reason"]).to_numpy().nonzero()[0]
    return examples.select(usable).remove_columns(list(ACCOUNT)), report


def without(examples: Dataset, faults: Mapping[int, UnusableRow], on_bad_rows: str) -> Dataset:
    """Examples that were given as such, without those at fault, which are counted like unusable rows.

    Raises:
        ValueError: as `settled`.
    """
    if not faults:
        return examples
    known = [faults.get(row) for row in range(len(examples))]
    account = {
        "origin": [f"row {row}" for row in range(len(examples))],
        "reason": [None if fault is None else fault.reason for fault in known],
        "detail": [None if fault is None else fault.detail for fault in known],
    }
    for name, kind in ACCOUNT.items():
        values = account[name] if name in account else [False if kind.dtype == "bool" else 0] * len(examples)
        examples = examples.add_column(name, values, feature=kind)
    return settled(examples, on_bad_rows)[0]


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
    if bad and on_bad_rows == "error":
        raise ValueError(f"{first} ({bad} unusable rows; fix or remove them, or pass on_bad_rows='drop' to count them)")
    return report
