"""Where rows come from: the hub, a folder, a file; and the split into train and evaluation rows.

Every row carries `origin`, such as "train.jsonl.gz:17", for messages about it, and `example_id`, its index in the
source, which names it in the keys of its draws whatever is selected, shuffled or dropped later.
What deliberately does not live here: what a row must contain (formats.py, tokenize.py).
"""

import json
import re
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from vrpo.data.formats import FIELDS, READ, prompt_identity, readable_columns
from vrpo.data.json_rows import Wanted, suffix_of, table_of, wanted
from vrpo.data.unread import Read, check_table

_SHARD = re.compile(r"-\d+-of-\d+$")


def load_rows(
    name_or_path: str,
    *,
    name: str | None = None,
    split: str | None = None,
    columns: Wanted = READ,
    read: Read | None = None,
) -> Dataset:
    """Rows of a dataset as a table of `columns` (those that exist; all that rows of any kind are read from), `origin`
    and `example_id`; from files of rows also `unusable`, which says why a line is no usable row (null for a good one).

    A source is a file (.jsonl, .json, either with .gz, .parquet), a folder of such files, a folder written by
    `datasets.save_to_disk`, or a dataset of the hub. In a folder the split of a file is its name less the shard
    (train.jsonl.gz, train-00000-of-00002.parquet, data/train.jsonl), or the subfolder it lies in (train/0.parquet).
    Other columns are dropped, so they may differ from row to row.

    Args:
        name: configuration of a hub dataset.
        split: may be None where there is only one; a lone file is the split "train" and the split of its own name.
        columns: columns to keep, or a function that says which of those that are there
            (`formats.preference_columns`); by default all that rows of any kind are read from. Objects other than
            messages are kept as JSON text.
        read: which columns the rows will be read from; None: `columns`, unless they were listed. What else the rows
            carry is named in one warning.

    Raises:
        ValueError: no such source, split or columns, or a row carries what the model should be given and would not be.
    """
    path = Path(name_or_path).expanduser()
    if read is None:
        read = readable_columns if columns is READ else columns if callable(columns) else None
    if not path.exists():
        return _labelled(_hub_rows(name_or_path, name, split), name_or_path, split, columns, read)
    if name is not None:
        raise ValueError(f"{path} is a local path, which has no configurations: leave out name={name!r}")
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        _check_named_files(path)
        loaded = load_from_disk(str(path))
        if isinstance(loaded, Dataset) and split not in (None, "train", str(loaded.split)):
            raise ValueError(f"{path}: a saved dataset without splits has no split {split!r} (leave split out)")
        return _labelled(loaded, path.name, split, columns, read)
    files, label = ([path], str(path)) if path.is_file() else _files_of_split(path, split)
    if path.is_file():
        stem = path.name.removesuffix(suffix_of(path) or "")
        if suffix_of(path) is None:
            raise ValueError(f"{path}: not a .jsonl, .jsonl.gz, .json, .json.gz or .parquet file")
        if split not in (None, "train", stem, _SHARD.sub("", stem)):
            raise ValueError(f"{path}: a single file has no split {split!r} (leave split out, or give a folder)")
    within = path.parent if path.is_file() else path
    return table_of([(file, str(file.relative_to(within))) for file in files], columns, label, read)


def is_one_table(name_or_path: str) -> bool:
    """Whether a source has no splits: a file, or a folder to which `datasets.save_to_disk` wrote one dataset."""
    path = Path(name_or_path).expanduser()
    return path.is_file() or (path / "state.json").is_file()


def _hub_rows(name_or_path: str, name: str | None, split: str | None) -> Dataset | DatasetDict:
    if suffix_of(Path(name_or_path)) is not None or name_or_path.startswith(("/", ".", "~")):
        raise ValueError(f"{name_or_path}: no such file or folder")
    try:
        return load_dataset(name_or_path, name, split=split)
    except (OSError, ValueError) as error:  # not found, offline, unknown configuration, unknown split
        where = f"configuration {name!r}, split {split!r}"
        raise ValueError(
            f"{name_or_path} ({where}) is neither a local path nor a readable hub dataset: {error}"
        ) from error


def _files_of_split(folder: Path, split: str | None) -> tuple[list[Path], str]:
    """The files of a folder that belong to a split, and what both are called."""
    files: dict[str, list[Path]] = {}
    stems: dict[Path, str] = {}
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        suffix = suffix_of(path)
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and suffix is not None and not hidden:
            stems[path] = str(path).removesuffix(suffix)
            own = path.parent == folder or path.parent.name == "data"
            files.setdefault(_SHARD.sub("", Path(stems[path]).name) if own else path.parent.name, []).append(path)
    if not files:
        raise ValueError(f"{folder}: no .jsonl, .jsonl.gz, .json, .json.gz or .parquet file in this folder")
    chosen = _only_split(list(files), split, str(folder))
    if len({stems[path] for path in files[chosen]}) < len(files[chosen]):
        names = [path.name for path in files[chosen]]
        raise ValueError(f"{folder}: split {chosen!r} is there twice, as {names}: keep one")
    return files[chosen], f"{folder} (split {chosen!r})"


def _check_named_files(path: Path) -> None:
    """A saved dataset names its files and the folders of its splits, which are inside of it.

    Raises:
        ValueError: one is elsewhere.
    """
    for file in (*path.glob("dataset_dict.json"), *path.glob("state.json"), *path.glob("*/state.json")):
        try:
            fields = json.loads(file.read_text())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} is no JSON: {error}. Save the dataset again") from error
        for name in [*fields.get("splits", ()), *(each["filename"] for each in fields.get("_data_files", ()))]:
            if not re.fullmatch(r"\w[\w.\-]*", name):
                raise ValueError(f"{file} names {name!r}, which is no file beside it: do not use this dataset")


def _only_split(splits: Sequence[str], split: str | None, label: str) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split is None or split not in splits:
        raise ValueError(f"{label}: no split {split!r}; choose one of {sorted(splits)}")
    return split


def _labelled(
    loaded: Dataset | DatasetDict, label: str, split: str | None, columns: Wanted, read: Read | None
) -> Dataset:
    """The wanted columns of an already typed dataset, with each row's origin "label[split]:row 17", counted from 0."""
    if isinstance(loaded, DatasetDict):
        split = _only_split(list(loaded), split, label)
        loaded = loaded[split]
    found = wanted(columns, loaded.column_names, label)
    where = label if split is None else f"{label}[{split}]"
    if read is not None:
        check_table(loaded, wanted(read, loaded.column_names, label), where)
    table = loaded.select_columns(found).add_column("origin", [f"{where}:row {row}" for row in range(len(loaded))])
    return table.add_column("example_id", list(range(len(loaded))))


def split_rows(rows: Dataset, eval_fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Train rows and evaluation rows: whole groups of rows with an identical prompt, in the order of a keyed hash of
    the prompt, each going to evaluation if it still fits into `eval_fraction` of the rows.

    A prompt is on one side only. The same rows and seed give the same split, in any order of the rows.

    Args:
        eval_fraction: in (0, 1), of rows.

    Raises:
        ValueError: a side would be empty.
    """
    if not 0 < eval_fraction < 1:
        raise ValueError(f"eval_fraction must lie in (0, 1), not {eval_fraction}")
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows.select_columns([name for name in rows.column_names if name in FIELDS])):
        groups.setdefault(prompt_identity(row), []).append(index)
    room, chosen = max(round(eval_fraction * len(rows)), 1), set[int]()
    for prompt in sorted(groups, key=lambda prompt: _hash(seed, prompt)):
        if len(chosen) + len(groups[prompt]) <= room:
            chosen.update(groups[prompt])
    if not chosen or len(chosen) == len(rows):
        raise ValueError(
            f"{len(rows)} rows with {len(groups)} different prompts cannot give a fraction {eval_fraction} to "
            "evaluation without a prompt on both sides (change eval_fraction, or give other evaluation rows)"
        )
    return rows.select([index for index in range(len(rows)) if index not in chosen]), rows.select(sorted(chosen))


def _hash(seed: int, text: str) -> bytes:
    return blake2b(f"{seed} {text}".encode(errors="surrogatepass"), digest_size=16).digest()
