"""Unfinished work on disk: what is written is there whole or not at all, and a run that was stopped goes on.

`Store` is a folder of parts that were made under one set of settings; `Parts` a JSON-lines file that is made part by
part; `Ledger` a file of replies that only grows; `locked` keeps other runs away. All are readable files.

>>> from tempfile import TemporaryDirectory
>>> with TemporaryDirectory() as folder:
...     store = Store(Path(folder), {"seed": 0}, "Give another --output_dir", "*.txt").open()
...     store.write("0.txt", lambda path: path.write_text("made once"))
...     found = store.has("0.txt"), store.path("0.txt").read_text()
...     Store(Path(folder), {"seed": 1}, "Give another --output_dir", "*.txt").open()
Traceback (most recent call last):
ValueError: ... was made with other settings: seed was 0 and is 1. Give another --output_dir
>>> found
(True, 'made once')
"""

import errno
import fcntl
import glob
import json
import math
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryFile
from threading import Lock
from typing import Any


@dataclass(frozen=True)
class Store:
    """A folder of parts, made under these settings (plain JSON values), which stand in its `settings.json`.

    Args:
        remedy: what a user does about a folder with other settings.
        pattern: the names of the parts.
    """

    folder: Path
    settings: Mapping[str, Any]
    remedy: str
    pattern: str

    def open(self) -> "Store":
        """Make the folder, or find it made with these settings. They bind once there is a part: a run that failed early
        can be corrected.

        Raises:
            ValueError: its parts were made with other settings, or with unknown ones.
        """
        begun = self.folder / "settings.json"
        if any(self.folder.glob(self.pattern)):
            check_settings(begun, self.settings, self.folder, self.remedy)
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_settings(begun, self.settings)
        return self

    def path(self, name: str) -> Path:
        return self.folder / name

    def has(self, name: str) -> bool:
        return self.path(name).is_file()

    def write(self, name: str, write: Callable[[Path], object]) -> None:
        write_whole(self.path(name), write)


@dataclass(frozen=True)
class Parts:
    """`count` parts of the JSON-lines file `output`, made under these settings (plain JSON values).

    Each part is a file in a folder beside the output until all are there; then they become the output, in order. So it
    is the same however often its making was interrupted, and by however many processes; and nothing else is left.

    Args:
        option: what a user changes to have another output.
    """

    output: Path
    settings: Mapping[str, Any]
    count: int
    option: str = "--output"

    @property
    def folder(self) -> Path:
        return self.output.with_name(self.output.name + ".parts")

    @property
    def done(self) -> Path:
        """The settings of a finished output."""
        return self.output.with_name(self.output.name + ".settings.json")

    @property
    def _store(self) -> Store:
        remedy = f"Give another {self.option}, or delete {self.output}, {self.done.name} and {self.folder.name}"
        return Store(self.folder, {**self.settings, "parts": self.count}, remedy, "*.jsonl")

    def missing(self) -> list[int]:
        """The parts that are still to be made; none if the output is there.

        Raises:
            ValueError: there is an output, or a part of one, that was made under other settings or that is not ours.
        """
        store = self._store
        if not self.output.exists():
            store.open()
            return [part for part in range(self.count) if not self.path(part).is_file()]
        if not self.done.is_file():
            raise ValueError(f"{self.output} exists and is no result of this command: give another {self.option}")
        check_settings(self.done, store.settings, self.output, store.remedy)
        shutil.rmtree(self.folder, ignore_errors=True)  # a stop may have left it
        return []

    def path(self, part: int) -> Path:
        return self.folder / f"{part:06d}.jsonl"

    def write(self, part: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._replace(self.path(part), map(_json, rows))

    def join(self) -> bool:
        """Make the output from its parts, if all are there and it is not; says whether it is there."""
        if not self.output.exists():
            paths = [self.path(part) for part in range(self.count)]
            if not all(path.is_file() for path in paths):
                return False
            self._replace(self.done, [_json(self._store.settings, 1)])
            self._replace(self.output, (path.read_bytes() for path in paths))
        shutil.rmtree(self.folder, ignore_errors=True)
        return True

    def _replace(self, path: Path, pieces: Iterable[bytes]) -> None:
        """By a file that is written in the folder, so that a stop leaves nothing elsewhere."""
        inside = self.folder / path.name
        write_whole(inside, partial(_write, pieces))
        if inside != path:
            inside.replace(path)


@dataclass(frozen=True)
class Ledger:
    """Texts by name, in a JSON-lines file that only grows: replies that were paid for, each on disk before it is used.

    Several threads and processes may write it. A line that was cut off by a stop is no entry, and what comes after it
    begins a line of its own.
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
                os.fsync(file)
            self._known[request] = reply


def write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write settings, or another JSON object, to a file, to be compared by `check_settings`."""
    write_whole(path, lambda part: part.write_bytes(_json(settings, 1)))


def check_settings(path: Path, settings: Mapping[str, Any], made: Path, remedy: str) -> None:
    """
    Args:
        made: what was made with the settings that stand in the file `path`.

    Raises:
        ValueError: they are others; names what changed and the remedy.
    """
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}. {remedy}") from error
    changed = differences(found, json.loads(_json(settings)))
    if changed:
        raise ValueError(f"{made} was made with other settings: {'; '.join(changed)}. {remedy}")


def digest(items: Sequence[Any]) -> str:
    """A hash of items that are plain JSON values, or have a representation that says all."""
    found = blake2b(digest_size=8)
    for item in items:
        found.update(json.dumps(item, sort_keys=True, default=repr).encode() + b"\n")
    return found.hexdigest()


def differences(found: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What has changed between two sets of settings, in words."""
    return [
        f"{name} was {found.get(name)!r} and is {now.get(name)!r}"
        for name in {**now, **found}
        if found.get(name) != now.get(name)
    ]


def known(value: Any) -> Any:
    """The same with null for every number that is none: JSON has no nan and no infinity."""
    if isinstance(value, Mapping):
        return {name: known(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [known(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json(value: Any, indent: int | None = None) -> bytes:
    """Half of a surrogate pair, which JSON can hold, is escaped, since a file cannot hold it."""
    text = json.dumps(known(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode(errors="backslashreplace")


def _write(pieces: Iterable[bytes], path: Path) -> None:
    with path.open("wb") as file:
        file.writelines(pieces)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have a file written beside its place and put it there, once its content is on disk.

    What a killed process of this machine left of the same file is cleared away, not what a living one is writing.
    """
    part = _begun(path)
    write(part)
    _settle(part)
    part.replace(path)


def write_whole_folder(path: Path, write: Callable[[Path], object]) -> None:
    """The same for a folder, in place of one that is there already."""
    part = _begun(path)
    part.mkdir(parents=True)
    try:
        write(part)
        for file in filter(Path.is_file, part.rglob("*")):
            _settle(file)
    except BaseException:
        shutil.rmtree(part)
        raise
    old = part.with_name(part.name.removesuffix(".part") + ".old.part")
    if path.exists():
        path.replace(old)
    part.replace(path)
    shutil.rmtree(old, ignore_errors=True)


def check_writable(path: Path, field: str, *, folder: bool = False) -> None:
    """Make the folders that a file, or a folder, is to be in, and find out whether it can be written there.

    Raises:
        ValueError: it cannot; names the field.
    """
    if path.is_dir() and not folder:
        raise ValueError(f"{field} {path}: is a folder. Give the name of a file.")
    within = path if folder else path.parent
    try:
        within.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=within) as trial:  # has no name, so a kill leaves nothing
            trial.write(b"")
    except OSError as error:
        raise ValueError(f"{field} {path}: cannot be written: {error.strerror}. Give another path.") from error


@contextmanager
def locked(place: Path) -> Iterator[None]:
    """While this holds, no other process holds the same file or folder.

    The kernel gives the lock up when its process ends, however it ends. What this process holds already is held, so a
    command may run inside another one. Of several processes of one run only the main one should ask.

    Args:
        place: a folder that exists, or a file that may be written later. The lock in a folder is `_lock`: what begins
            so is not uploaded with the folder.

    Raises:
        ValueError: another process holds it.
    """
    file = place / "_lock" if place.is_dir() else place.with_name(f".{place.name}.lock")
    descriptor = _lock(file, place)
    if descriptor is None:
        yield
        return
    try:
        os.write(descriptor, f"{os.getpid()} {platform.node()}".encode())
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(file: Path, place: Path) -> int | None:
    """The open lock file; None if this process holds it already, or nobody can."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if file.exists() and os.path.samestat(os.fstat(descriptor), file.stat()):
                os.ftruncate(descriptor, 0)
                return descriptor
            os.close(descriptor)  # the process before unlinked it meanwhile
        except OSError as error:
            process, _, node = os.read(descriptor, 1000).decode(errors="replace").partition(" ")
            os.close(descriptor)
            if isinstance(error, BlockingIOError) and (process, node) == (str(os.getpid()), platform.node()):
                return None
            if isinstance(error, BlockingIOError):
                whose = f"process {process}" + (f" of {node}" if node != platform.node() else "")
                raise ValueError(
                    f"{place}: another run ({whose}) is writing here. Wait for it or choose another output."
                ) from None
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
                raise
            warnings.warn(f"{place}: this file system has no locks. Start one run at a time here.", stacklevel=3)
            return None


def _begun(path: Path) -> Path:
    """Where this process writes what will be put at `path`."""
    begun = f".{path.name}.{platform.node()}"
    for left in path.parent.glob(f"{glob.escape(begun)}.*.part"):
        if _is_dead(left.name.removeprefix(f"{begun}.").partition(".")[0]):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f"{begun}.{os.getpid()}.part")


def _settle(file: Path) -> None:
    as_umask(file)
    with file.open("rb") as content:
        os.fsync(content.fileno())


def _is_dead(process: str) -> bool:
    """Whether no process has this number; one that may not be asked lives."""
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, ValueError):
        pass
    return False


def as_umask(file: Path) -> None:
    """Give a file the mode that other files have here; safetensors lets nobody else read its own."""
    mask = os.umask(0)
    os.umask(mask)
    file.chmod(0o666 & ~mask)


@contextmanager
def keeping(place: Path) -> Iterator[None]:
    """After Ctrl-C or SIGTERM, the command ends with what is in `place`."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"interrupted: what is done is kept in {place}; the same command goes on", file=sys.stderr, flush=True)
        raise SystemExit(130) from None
