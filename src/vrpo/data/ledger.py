"""A file of replies that were paid for: each is on disk before it is used, so that no stop loses one."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock


@dataclass(frozen=True)
class Ledger:
    """Texts by name, in a JSON-lines file that only grows; may be written by several threads and processes.

    A line that was cut off by a stop is no entry, and what comes after it begins a line of its own.
    """

    path: Path
    _known: dict[str, str] = field(default_factory=dict, repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    def __post_init__(self) -> None:
        for line in self.path.read_bytes().split(b"\n") if self.path.is_file() else ():
            try:
                entry = json.loads(line)
                self._known[entry["request"]] = entry["reply"]
            except (ValueError, KeyError, TypeError):  # cut off, or the blank before an entry
                continue

    def recall(self, request: str) -> str | None:
        return self._known.get(request)

    def keep(self, request: str, reply: str) -> None:
        line = "\n" + json.dumps({"request": request, "reply": reply}) + "\n"
        with self._lock:
            with self.path.open("ab", buffering=0) as file:
                file.write(line.encode())
            self._known[request] = reply
