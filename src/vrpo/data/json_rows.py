"""JSON and parquet files as plain rows, and plain rows as a table: no row of a file can make this crash.

Files are read twice, block by block, so that a table of any size takes the memory of a block: once for what its columns
are, once to write it. A line that is no usable row is carried through with why, so that it is counted and named later.
What deliberately does not live here: which files to read (sources.py), what a row must contain (formats.py).
"""

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from datasets import Dataset
from datasets.table import MemoryMappedTable

from vrpo.data.cache import digest_of, kept, key_of
from vrpo.data.formats import LISTS, READ
from vrpo.data.messages import as_messages, barred_key, kind_of_turns
from vrpo.data.unread import SAID, Carried, Read, plain, refuse, warn_of
from vrpo.store import write_whole

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
Wanted = Sequence[str] | Callable[[Sequence[str]], Sequence[str]]  # columns, or which of those that are there
_BROKEN = "text that is not Unicode"
_JSON = "an object, a list or a huge integer"
_EMPTY = "an empty list"
_LISTED = {"a string": "a list of strings", "messages": "a list of messages", "a number": "a list of numbers"}
_TYPES = {  # how values of a kind are stored; numbers are integers if all of them are
    "a string": pa.string(),
    "messages": pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
    "a number": pa.float64(),
    "a boolean": pa.bool_(),
    _JSON: pa.string(),
    _EMPTY: pa.list_(pa.null()),
}
_UNKNOWN = "text or messages"  # what a column should hold of which no value can be read
_ODD = ("messages with", "turns of")  # kinds of turns that are no messages, or say more than is read
_UNREAD = b"unread"  # a table's note of what its rows carry beside what is read
_MARK = b"\xef\xbb\xbf"  # of UTF-8, which some programs put first
_BLOCK = 1000  # rows that are in memory together


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
    """All rows of a file: `records` as a list."""
    return list(records(path, label))


def records(path: Path, label: str) -> Iterator[Record]:
    """The rows of a file, each with its origin: "label:17" for line 17, "label:row 17" for element 17 (from 0) of a
    JSON array or of a parquet file.

    Lines end at "\\n" only (strings may contain U+2028); blank lines are no rows. A line with a key twice is no row.

    Raises:
        ValueError: the file as a whole cannot be read.
    """
    try:
        if suffix_of(path) == ".parquet":
            with pyarrow.parquet.ParquetFile(path) as table:
                _object([(name, None) for name in table.schema_arrow.names])
                blocks = table.iter_batches(batch_size=_BLOCK)
                yield from _numbered((row for block in blocks for row in block.to_pylist()), label)
            return
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield from _json_records(file, path, label)
    except (ValueError, RecursionError, EOFError, OSError, zlib.error, pa.ArrowException) as error:
        raise ValueError(
            f"{path}: cannot be read as {suffix_of(path)}: {error} (download or write it again)"
        ) from error


def _json_records(file: Any, path: Path, label: str) -> Iterator[Record]:
    if ".jsonl" not in path.name:
        first = b""
        while not first.strip() and (more := file.read(1 << 16)):
            first = more.removeprefix(_MARK)
        file.seek(0)
        if first.lstrip().startswith(b"["):
            yield from _numbered(json.loads(file.read().removeprefix(_MARK).decode(), object_pairs_hook=_object), label)
            return
    for number, line in enumerate(file, start=1):
        line = line.removeprefix(_MARK) if number == 1 else line
        if not line.strip():
            continue
        try:
            row = json.loads(line.removesuffix(b"\n").decode(), object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
            yield Record(f"{label}:{number}", {}, f"not a JSON object: {error}")
        else:
            yield _record(row, f"{label}:{number}")


def _numbered(rows: Iterable[Any], label: str) -> Iterator[Record]:
    return (_record(row, f"{label}:row {index}") for index, row in enumerate(rows))


def _record(row: Any, origin: str) -> Record:
    if isinstance(row, dict):
        return Record(origin, row)
    return Record(origin, {}, f"not a JSON object: it is of type {type(row).__name__}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """
    Raises:
        ValueError: a key is there twice, of which one would be lost.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"{Counter(key for key, _ in pairs).most_common(1)[0][0]!r} is there twice")
    return found


def table_of(files: Sequence[tuple[Path, str]], columns: Wanted, label: str, read: Read | None = None) -> Dataset:
    """The given columns of the rows of files, those that occur, as a dataset with `origin`, `example_id` and
    `unusable`. Each file with what its rows' origins call it. What the rows carry beside the columns that they are
    `read` from is named in one warning.

    A column holds one kind of value: strings, lists of messages (reduced to role and content), numbers, booleans, in
    the columns `LISTS` lists of those, or, for any other object or list, its JSON text (never in the columns that are
    trained on, `READ`). The commonest kind wins; a row of another kind is unusable.

    The table is kept in datasets' cache, named by what is in the files.

    Raises:
        ValueError: none of the columns occurs in any row, or the rows carry what the model should be given.
    """
    key = key_of([(digest_of(path), path.name, origin) for path, origin in files], columns, read)
    with kept(key) as path:
        if not path.is_file():
            write_whole(path, partial(_write_table, files, columns, label, read))
    table = MemoryMappedTable.from_file(str(path))
    warn_of(table.schema.metadata[_UNREAD].decode(), label)
    return Dataset(table, fingerprint=key)


@dataclass
class _Column:
    """What the values of a column are: how many of each kind, and whether some number is no integer."""

    name: str
    kinds: Counter[str] = field(default_factory=Counter)
    real: bool = False

    def look(self, block: Sequence[Record]) -> None:
        for kind, value in map(self.typed, block):
            self.kinds[kind] += 1
            self.real |= any(isinstance(each, float) for each in (value if isinstance(value, list) else [value]))

    def typed(self, record: Record) -> tuple[str, Any]:
        if self.name not in record.fields:
            return "null", None
        kind, value = (_typed_list if self.name in LISTS else _typed)(record.fields[self.name])
        return (_JSON, value) if kind.startswith(_ODD) and self.name not in READ else (kind, value)

    @property
    def common(self) -> str:
        """The commonest kind of those that the column may hold."""
        barred = ("null", _BROKEN, _JSON) if self.name in READ else ("null", _BROKEN)
        known = {kind: n for kind, n in self.kinds.items() if kind not in barred and not kind.startswith(_ODD)}
        if len(known) > 1:
            known.pop(_EMPTY, None)  # it is of any kind
        return max(known, key=lambda kind: known[kind], default=_UNKNOWN)

    @property
    def type(self) -> pa.DataType:
        types = _TYPES if self.real else {**_TYPES, "a number": pa.int64()}
        listed = {name: pa.list_(types[kind]) for kind, name in _LISTED.items()}
        return {**types, **listed}.get(self.common, pa.null())

    def stored(self, block: Sequence[Record], problems: list[str | None]) -> pa.Array:
        """The values of a block; those of another kind become null and get an entry in `problems`."""
        values, common = [], self.common
        for row, (kind, value) in enumerate(map(self.typed, block)):
            fits = kind in (common, "null") or (kind == _EMPTY and common in _LISTED.values())
            values.append(value if fits else None)
            if not fits and problems[row] is None:
                problems[row] = f"wrong type: field '{self.name}' holds {kind}; expected here: {common}"
        return pa.array(values, self.type)


def _write_table(files: Sequence[tuple[Path, str]], columns: Wanted, label: str, read: Read | None, path: Path) -> None:
    found: dict[str, _Column] = {}
    problem, carried = "", Carried()
    for block in _blocks(files):
        for record in block if read is not None else ():
            carried.look(record.fields)
        for name in dict.fromkeys(name for record in block for name in record.fields):
            found.setdefault(name, _Column(name))
        for column in found.values():
            column.look(block)
        problem = problem or next((f" ({each.origin}: {each.unusable})" for each in block if each.unusable), "")
    if not found and not problem:
        raise ValueError(f"{label}: it has no rows. Check the file")
    own = list(found) if read is None else wanted(read, list(found), label, problem)
    kept_columns = [found[name] for name in wanted(columns, list(found), label, problem)]
    asked = any(plain(name) in SAID and name not in own for name in found)
    ours = {"origin": pa.string(), "example_id": pa.int64(), "unusable": pa.string()}
    schema = pa.schema({**{column.name: column.type for column in kept_columns}, **ours})
    schema, start = schema.with_metadata({_UNREAD: carried.unread(own)}), 0
    with pa.ipc.new_stream(str(path), schema) as writer:
        for block in _blocks(files):
            for record in block if asked else ():
                refuse(record.fields, own, record.origin)
            problems = [record.unusable for record in block]
            arrays = [column.stored(block, problems) for column in kept_columns]
            arrays += [pa.array([record.origin for record in block]), pa.array(range(start, start + len(block)))]
            writer.write_batch(pa.record_batch([*arrays, pa.array(problems, pa.string())], schema=schema))
            start += len(block)


def _blocks(files: Sequence[tuple[Path, str]]) -> Iterator[list[Record]]:
    rows = chain.from_iterable(records(path, label) for path, label in files)
    while block := list(islice(rows, _BLOCK)):
        yield block


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
    if messages and barred_key(value) is None:
        readable = all(_is_unicode(message["role"] + message["content"]) for message in messages)
        return ("messages", messages) if readable else (_BROKEN, None)
    return kind_of_turns(value) or _JSON, json.dumps(value, default=str)


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
    return next((kind for kind in kinds if kind == _BROKEN or kind.startswith(_ODD)), _JSON), None


def _is_unicode(text: str) -> bool:
    """False for lone surrogates (JSON's "\\ud800"), which no tokenizer and no table can hold."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False
