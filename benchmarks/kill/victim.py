"""A run of a command that can be killed with SIGKILL, at a moment of time or at one of its file operations.

A run is a fork of a process that has imported everything, in a session of its own: it calls `vrpo.cli.main` in its
folder, with its random generators newly seeded by the system. What deliberately does not live here: which commands
(commands.py), what is compared (files.py).
"""

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

_CHANGES = {  # audit event -> how many of its arguments are paths; "open" is looked at more closely
    "os.mkdir": 1,
    "os.remove": 1,
    "os.rename": 2,
    "os.rmdir": 1,
    "os.truncate": 1,
}
_POLL = 0.001  # seconds


@dataclass(frozen=True)
class AtTime:
    """So many seconds of its processor time after the first file or folder is there: other work on the machine does not
    move it."""

    seconds: float


@dataclass(frozen=True)
class AtOperation:
    """At the so-manieth operation that changes files, counted from 1: before it, but when a file is opened for writing
    then after it, when the file is there and empty."""

    number: int


@dataclass(frozen=True)
class Ended:
    """How a run ended: its exit code, None if it was killed; seconds of processor time since the first file or folder
    was there; file operations, of a run that was not killed."""

    code: int | None
    seconds: float
    operations: int | None


def run(argv: Sequence[str], folder: Path, log: Path, moment: AtTime | AtOperation | None = None) -> Ended:
    """Run a command to its end or to the moment at which it, and all processes of its session, are killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _live(argv, folder, log, moment, writing)
    os.close(writing)
    os.read(reading, 1)  # it has a session of its own
    before = set(folder.iterdir())
    begun, seconds, status = None, 0.0, None
    while status is None:
        now = _processor_time(child)
        if begun is None and set(folder.iterdir()) != before:
            begun = now
        seconds = seconds if begun is None else now - begun
        if isinstance(moment, AtTime) and seconds >= moment.seconds > 0:
            _kill(child)
        pid, found = os.waitpid(child, os.WNOHANG)
        status = found if pid else None
        time.sleep(_POLL)
    _kill(child)
    counted = os.read(reading, 20)
    os.close(reading)
    code = None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    return Ended(code, seconds, int(counted) if counted else None)


def _processor_time(process: int) -> float:
    """Of another process, in seconds; also when it has ended and was not waited for."""
    return time.clock_gettime((~process << 3) | 2)  # Linux: the clock of all its threads


def _kill(session: int) -> None:
    with suppress(ProcessLookupError):  # nobody is left
        os.killpg(session, signal.SIGKILL)


def _live(argv: Sequence[str], folder: Path, log: Path, moment: Any, report: int) -> None:
    """The child: never returns."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        random.seed()
        numpy.random.seed()  # noqa: NPY002
        torch.seed()
        count = watch(folder, moment.number if isinstance(moment, AtOperation) else None)
        os.write(report, b".")
        from vrpo.cli import main

        code = main([word.encode().decode() for word in argv])  # objects of their own, as a shell gives them
        sys.stdout.flush()
        os.write(report, str(count()).encode())
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def watch(folder: Path, last: int | None) -> Callable[[], int]:
    """Count this process's operations that change files of the folder, and kill its session at number `last`.

    Seen is what Python does; not what libraries write by themselves (safetensors, torch's zip files), between whose
    writes there are always operations of Python's.
    """
    done = 0
    root = f"{folder.resolve()}/"

    def inside(path: Any) -> bool:
        return isinstance(path, str | bytes | os.PathLike) and os.path.abspath(os.fsdecode(path)).startswith(root)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        opened = event == "open" and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if not any(inside(path) for path in arguments[: 1 if opened else _CHANGES.get(event, 0)]):
            return
        done += 1
        if done == last:
            try:
                if opened:
                    os.open(arguments[0], arguments[2], 0o666)
            finally:
                os.killpg(0, signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: done
