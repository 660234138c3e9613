"""A JSON-lines file that is computed in parts: what was computed stays on disk, and a run that was stopped goes on.

Each part is a file of its own beside the output until all are there; then they become the output, in order. A part is
written whole or not at all, so the output is the same however often its making was interrupted, and by however many
processes; and nothing else is left behind.
"""

import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vrpo.data.whole import write_whole


@dataclass(frozen=True)
class Parts:
    """`count` parts of the file `output`, made under these settings (plain JSON values)."""

    output: Path
    settings: Mapping[str, Any]
    count: int

    @property
    def folder(self) -> Path:
        return self.output.with_name(self.output.name + ".parts")

    @property
    def done(self) -> Path:
        """The settings of a finished output."""
        return self.output.with_name(self.output.name + ".settings.json")

    def missing(self) -> list[int]:
        """The parts that are still to be made; none if the output is there.

        Settings bind once there is a part: a run that failed before it came to one can be corrected.

        Raises:
            ValueError: there is an output, or a part of one, that was made under other settings or that is not ours.
        """
        if self.output.exists():
            if not self.done.is_file():
                raise ValueError(f"{self.output} exists and is no result of this command: give another --output")
            self._check(self.done)
            self._clear()
            return []
        begun = self.folder / "settings.json"
        if any(self.folder.glob("*.jsonl")):
            self._check(begun)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._replace(begun, [self._text()])
        return [part for part in range(self.count) if not self.path(part).is_file()]

    def path(self, part: int) -> Path:
        return self.folder / f"{part:06d}.jsonl"

    def write(self, part: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._replace(self.path(part), map(_line, rows))

    def join(self) -> bool:
        """Make the output from its parts, if all are there and it is not; says whether it is there."""
        if not self.output.exists():
            paths = [self.path(part) for part in range(self.count)]
            if not all(path.is_file() for path in paths):
                return False
            self._replace(self.done, [self._text()])
            self._replace(self.output, (path.read_bytes() for path in paths))
        self._clear()
        return True

    def _clear(self) -> None:
        """What is beside an output that is there: also after a stop between the output and this."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _text(self) -> bytes:
        content = known({**self.settings, "parts": self.count})
        return (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()

    def _check(self, path: Path) -> None:
        beside = f"delete {self.output}, {self.done.name} and {self.folder.name}"
        try:
            found = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read: {error}. Give another --output, or {beside}") from error
        now = json.loads(self._text())
        changed = differences(found, now)
        if changed:
            raise ValueError(
                f"{self.output} was begun with other settings: {'; '.join(changed)}. Give another --output, or {beside}"
            )

    def _replace(self, path: Path, pieces: Iterable[bytes]) -> None:
        """By a file that is written in the folder, so that a stop leaves nothing elsewhere."""
        inside = self.folder / path.name
        write_whole(inside, partial(_write, pieces))
        if inside != path:
            inside.replace(path)


def _write(pieces: Iterable[bytes], path: Path) -> None:
    with path.open("wb") as file:
        file.writelines(pieces)


def _line(row: Mapping[str, Any]) -> bytes:
    row = known(row)
    try:
        return (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can hold and a file only in escapes
        return (json.dumps(row, allow_nan=False) + "\n").encode()


def known(value: Any) -> Any:
    """The same with null for every number that is none: JSON has no nan and no infinity."""
    if isinstance(value, Mapping):
        return {name: known(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [known(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def differences(found: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What has changed between two sets of settings, in words."""
    return [
        f"{name} was {found.get(name)!r} and is {now.get(name)!r}"
        for name in {**now, **found}
        if found.get(name) != now.get(name)
    ]
