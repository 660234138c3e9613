"""A JSON-lines file that is computed in parts: what was computed stays on disk, and a run that was stopped goes on.

Each part is a file of its own beside the output until all are there; then they become the output, in order. A part is
written whole or not at all, so the output is the same however often its making was interrupted, and by however many
processes.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

        Raises:
            ValueError: there is an output, or a part of one, that was made under other settings or that is not ours.
        """
        if self.output.exists():
            if not self.done.is_file():
                raise ValueError(f"{self.output} exists and is no result of this command: give another --output")
            self._check(self.done)
            return []
        if (self.folder / "settings.json").is_file():
            self._check(self.folder / "settings.json")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._replace(self.folder / "settings.json", self._text())
        return [part for part in range(self.count) if not self.path(part).is_file()]

    def path(self, part: int) -> Path:
        return self.folder / f"{part:06d}.jsonl"

    def write(self, part: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._replace(self.path(part), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def join(self) -> bool:
        """Make the output from its parts, if all are there and it is not; says whether it is there. Parts whose output
        is there are cleared away: a run may have been stopped in between."""
        if self.output.exists():
            if self.folder.is_dir():
                shutil.rmtree(self.folder)
            return True
        paths = [self.path(part) for part in range(self.count)]
        if not all(path.is_file() for path in paths):
            return False
        self._replace(self.done, self._text())
        self._replace(self.output, "".join(path.read_text() for path in paths))
        shutil.rmtree(self.folder)
        return True

    def _text(self) -> str:
        return json.dumps({**self.settings, "parts": self.count}, indent=1, ensure_ascii=False) + "\n"

    def _check(self, path: Path) -> None:
        found, now = json.loads(path.read_text()), json.loads(self._text())
        changed = [
            f"{name} was {found.get(name)!r} and is {now.get(name)!r}"
            for name in now | found
            if found.get(name) != now.get(name)
        ]
        if changed:
            raise ValueError(
                f"{self.output} was begun with other settings: {'; '.join(changed)}. Give another --output, or delete "
                f"{self.output}, {self.done.name} and {self.folder.name}"
            )

    @staticmethod
    def _replace(path: Path, text: str) -> None:
        write_whole(path, lambda part: part.write_text(text))
