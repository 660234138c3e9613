"""What a command left, in a form that can be compared: every file, byte for byte but for what `LEFT_OUT` lists."""

import fnmatch
import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

_CLOCK = ("train_runtime", "train_samples_per_second", "train_steps_per_second")


@dataclass(frozen=True)
class LeftOut:
    """What is not compared. `rest`: the part of a file that is compared; None: not even whether the file is there."""

    files: str
    what: str
    why: str
    rest: Callable[[bytes], bytes] | None


def _json(change: Callable[[Any], Any]) -> Callable[[bytes], bytes]:
    """Of a JSON file, or of each of its lines."""

    def rest(content: bytes) -> bytes:
        try:
            values = [json.loads(content)]
        except ValueError:
            values = [json.loads(line) for line in content.split(b"\n") if line]
        return json.dumps([change(value) for value in values]).encode()

    return rest


def _without(*names: str) -> Callable[[Any], Any]:
    def change(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: change(part) for name, part in value.items() if name not in names}
        return [change(part) for part in value] if isinstance(value, list) else value

    return change


def _entries(content: bytes) -> bytes:
    """The entries of a ledger in an order of their own, without lines that were cut off."""
    return b"\n".join(sorted(line for line in content.split(b"\n") if line.endswith(b"}")))


def _without_seconds(content: bytes) -> bytes:
    return b"\n".join(line for line in content.split(b"\n") if not line.endswith(b" s in all."))


_OF_A_RUN = _json(_without(*_CLOCK, "train_loss"))
LEFT_OUT = (
    LeftOut(
        "*log.jsonl",
        f"{', '.join(_CLOCK)}; train_loss; all in the last line",
        "the clock; and transformers' mean over the steps since the process began, which other lines have step by step",
        _OF_A_RUN,
    ),
    LeftOut("*trainer_state.json", "the same fields, of its copy of that line", "the same", _OF_A_RUN),
    LeftOut(
        "*replies.jsonl",
        "the order of entries, and lines cut off by a kill",
        "requests are made at the same time, and the file only grows",
        _entries,
    ),
    LeftOut("*results.json", "seconds (vrpo demo)", "the clock", _json(_without("seconds"))),
    LeftOut("*results.md", "the seconds in its last sentence (vrpo demo)", "the clock", _without_seconds),
    LeftOut(
        "cache/*",
        "all of it (vrpo eval)",
        "rows of lm-eval's task as the datasets library keeps them, no output; here in the folder so that kills hit it",
        None,
    ),
)


def snapshot(folder: Path) -> dict[str, str]:
    """Every file below a folder with the digest of what is compared; folders, also empty ones, end with a slash."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        rules = [rule for rule in LEFT_OUT if fnmatch.fnmatchcase(name, rule.files)]
        if any(rule.rest is None for rule in rules) or name == "cache":
            continue
        found[name if path.is_file() else f"{name}/"] = _digest(path, rules) if path.is_file() else ""
    return found


def _digest(path: Path, rules: list[LeftOut]) -> str:
    content = path.read_bytes()
    for rule in rules:
        assert rule.rest is not None
        try:
            content = rule.rest(content)
        except ValueError:  # not even JSON: compared as it is
            continue
    return sha256(content).hexdigest()


def differing(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """Each difference in words."""
    words = [f"missing: {name}" for name in expected if name not in found]
    words += [f"left over: {name}" for name in found if name not in expected]
    return words + [f"differs: {name}" for name in expected if name in found and expected[name] != found[name]]
