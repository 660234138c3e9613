"""JSON and parquet files as plain rows, and plain rows as a table: no row of a file can make this crash.

A line that is no usable row is carried through with a `unusable`, so that it is counted, and can be named, later.
What deliberately does not live here: which files to read (sources.py), what a row must contain (formats.py).
"""

import gzip
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet
from datasets import Dataset

from vrpo.data.formats import LISTS, READ, as_messages

JSON_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
SUFFIXES = (*JSON_SUFFIXES, ".parquet")
Wanted = Sequence[str] | Callable[[Sequence[str]], Sequence[str]]  # columns, or which of those that are there
_BROKEN = "text that is not Unicode"
_LISTED = {"a string": "a list of strings", "messages": "a list of messages", "a number": "a list of numbers"}
_JSON = "an object, a list or a huge integer"
_EMPTY = "an empty list"


@dataclass(frozen=True)
class Record:
    """One row of a file: where it stands, its fields, and, if it is no usable row, why."""

    origin: str
    fields: dict[str, Any]
    unusable: str | None = None


def suffix_of(path: Path) -> str | None:
    """The suffix by which a data file is recognised, or None."""
    return next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)


def read_records(path: Path, label: str) -> list[Record]:
    """All rows of a file, each with its origin: "label:17" for line 17, "label:row 17" for element 17 (from 0) of a
    JSON array or of a parquet file.

    Lines end at "\\n" only (strings may contain U+2028); blank lines are no rows. Duplicate keys: the last one wins.

    Raises:
        ValueError: the file as a whole cannot be read.
    """
    try:
        if suffix_of(path) == ".parquet":
            return _numbered(pyarrow.parquet.read_table(path).to_pylist(), label)
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        data = data.removeprefix(b"\xef\xbb\xbf")
        if ".jsonl" not in path.name and data.lstrip().startswith(b"["):
            return _numbered(json.loads(data.decode()), label)
    except (ValueError, EOFError, OSError, pyarrow.ArrowException) as error:
        raise ValueError(
            f"{path}: cannot be read as {suffix_of(path)}: {error} (download or write it again)"
        ) from error
    lines = enumerate(data.split(b"\n"), start=1)
    return [_parsed(line, f"{label}:{number}") for number, line in lines if line.strip()]


def _numbered(rows: list[Any], label: str) -> list[Record]:
    return [_record(row, f"{label}:row {index}") for index, row in enumerate(rows)]


def _parsed(line: bytes, origin: str) -> Record:
    try:
        return _record(json.loads(line.decode()), origin)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        return Record(origin, {}, f"not a JSON object: {error}")


def _record(row: Any, origin: str) -> Record:
    if isinstance(row, dict):
        return Record(origin, row)
    return Record(origin, {}, f"not a JSON object: it is of type {type(row).__name__}")


def table_of(records: Sequence[Record], columns: Wanted, label: str) -> Dataset:
    """The given columns of the records, those that occur, as a dataset with `origin`, `example_id` and `unusable`.

    A column holds one kind of value: strings, lists of messages (reduced to role and content), numbers, booleans, in
    the columns `LISTS` lists of those, or, for any other object or list, its JSON text (never in the columns that are
    trained on, `READ`). The commonest kind wins; a row of another kind gets a `unusable`.

    Raises:
        ValueError: none of the columns occurs in any record.
    """
    problem = next((f" ({record.origin}: {record.unusable})" for record in records if record.unusable), "")
    found = wanted(columns, list(dict.fromkeys(name for record in records for name in record.fields)), label, problem)
    problems = [record.unusable for record in records]
    table: dict[str, list[Any]] = {name: _uniform_column(records, name, problems) for name in found}
    table["origin"] = [record.origin for record in records]
    table["example_id"] = list(range(len(records)))
    table["unusable"] = problems
    return Dataset.from_dict(table)


def wanted(columns: Wanted, present: Sequence[str], label: str, problem: str = "") -> list[str]:
    """The columns, of those that are there, that are to be kept.

    Raises:
        ValueError: there is none; `problem` may say why.
    """
    if callable(columns):
        try:
            return list(columns(present))
        except ValueError as error:
            raise ValueError(f"{label}: {error}{problem}") from error
    found = [name for name in columns if name in present]
    if not found:
        raise ValueError(f"{label}: none of the columns {list(columns)} in its rows; found {sorted(present)}{problem}")
    return found


def _uniform_column(records: Sequence[Record], name: str, problems: list[str | None]) -> list[Any]:
    """One column, of its commonest kind; rows of another kind become None and get an entry in `problems`."""
    of = _typed_list if name in LISTS else _typed
    typed = [of(record.fields[name]) if name in record.fields else ("null", None) for record in records]
    barred = {"null", _BROKEN, _JSON} if name in READ else {"null", _BROKEN}
    kinds = Counter(kind for kind, _ in typed if kind not in barred)
    if len(kinds) > 1:
        del kinds[_EMPTY]  # it is of any kind
    common = kinds.most_common(1)[0][0] if kinds else "no text"
    values = []
    for row, (kind, value) in enumerate(typed):
        fits = kind in (common, "null") or (kind == _EMPTY and common in _LISTED.values())
        values.append(value if fits else None)
        if not fits and problems[row] is None:
            problems[row] = f"wrong type: field '{name}' holds {kind}; expected here: {common}"
    return values


def _typed(value: Any) -> tuple[str, Any]:
    """The kind of a JSON value and the value as it is stored, which is the same Arrow type for all of a kind."""
    if value is None:
        return "null", None
    if isinstance(value, bool):
        return "a boolean", value
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 53):
        return "a number", value
    if isinstance(value, str):
        return ("a string", value) if _is_unicode(value) else (_BROKEN, None)
    messages = as_messages(value)
    if messages:
        readable = all(_is_unicode(message["role"] + message["content"]) for message in messages)
        return ("messages", messages) if readable else (_BROKEN, None)
    return _JSON, json.dumps(value, default=str)


def _typed_list(value: Any) -> tuple[str, Any]:
    """The same for a column of lists: of strings, of lists of messages, or of numbers, where some may be null."""
    if not isinstance(value, list):
        return _typed(value)
    if not value:
        return _EMPTY, []
    kinds, values = zip(*map(_typed, value), strict=True)
    own = set(kinds) - {"null"}
    for kind, name in _LISTED.items():
        if own == {kind} and (kind == "a number" or "null" not in kinds):
            return name, list(values)
    return (_BROKEN if _BROKEN in kinds else _JSON), None


def _is_unicode(text: str) -> bool:
    """False for lone surrogates (JSON's "\\ud800"), which no tokenizer and no table can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
