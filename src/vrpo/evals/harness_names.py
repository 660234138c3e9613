"""The names of lm-eval's tasks, without importing it: its own index takes most of a minute to read."""

import difflib
import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from vrpo.evals.own import OWN

_KEY = rb"[\"']?(?:task|group|tag)[\"']?[ \t]*:"
_VALUE = rb"[\"']?([^\s\"'#,\[\]]+)"
_ONE = re.compile(rb"^[ \t-]*" + _KEY + rb"[ \t]*" + _VALUE, re.MULTILINE)
_LIST = re.compile(rb"^[ \t-]*" + _KEY + rb"[ \t]*\[([^\]]*)\]", re.MULTILINE)
_ITEM = re.compile(rb"^[ \t]*-[ \t]+" + _VALUE, re.MULTILINE)

_SUFFIXES = ("", ".yaml", ".yml")  # files that others include have none


def require_names(names: Sequence[str], include_path: str | None) -> None:
    """
    Raises:
        ValueError: no file of lm-eval, or of the folder, names such a task, group or tag.
    """
    spec = find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    folders = [Path(spec.origin).parent / "tasks", *([] if include_path is None else [Path(include_path)])]
    written = {name for folder in folders for name in _names_in(folder)} if names else set()
    for name in names:
        if name not in written:
            raise ValueError(f"lm-eval has no task {name!r}{hint(name, written)}")


def hint(name: str, known: set[str]) -> str:
    """What may have been meant."""
    if name in OWN:
        return f"; {name} is run from its file: --data folder, or --task {name}=path"
    close = difflib.get_close_matches(name, sorted({*known, *OWN}), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _names_in(folder: Path) -> Iterator[str]:
    """All that its files name, and more: whatever stands in a list."""
    for file in folder.rglob("*"):
        if file.suffix not in _SUFFIXES or not file.is_file():
            continue
        text = file.read_bytes()
        found = [*_ONE.findall(text), *_ITEM.findall(text)]
        found += [part.strip(b" \"'") for parts in _LIST.findall(text) for part in parts.split(b",")]
        yield from (name.decode(errors="replace") for name in found)
