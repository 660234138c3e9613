"""`vrpo COMMAND ...`: what a command does is in the room it belongs to; here is only the way there.

The exit code is 0, 2 for what a user did wrong, 130 after Ctrl-C and 143 after SIGTERM. What we did wrong is a
traceback.
"""

import difflib
import errno
import importlib
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from vrpo.cli.door import COMMANDS, asks_for_help, check, help_of
from vrpo.decoding.visible import visible

RENAMED = {"plan": "estimate"}  # commands of earlier versions


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.about}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: vrpo COMMAND [--config file.yaml] [--field value ...]",
            "",
            "Preference alignment of diffusion language models.",
            "",
            "commands:",
            *lines,
            "",
            "vrpo COMMAND --help shows its fields. Several processes: accelerate launch -m vrpo train ...",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code. What a user did wrong is one line on stderr and exit code 2;
    with VRPO_TRACEBACK=1 in the environment, its traceback comes first."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(importlib.import_module("vrpo").__version__)
        return 0
    if argv[0] not in COMMANDS:
        close = [RENAMED[argv[0]]] if argv[0] in RENAMED else difflib.get_close_matches(argv[0], COMMANDS, n=1)
        meant = f"; did you mean {close[0]}?" if close else ""
        print(f"error: no command {argv[0]!r}{meant} (vrpo --help lists them)", file=sys.stderr)
        return 2
    if asks_for_help(argv[1:]):
        print(help_of(argv[0], argv[1:]), end="")
        return 0
    with _on_a_terminal() as stopped_by:
        try:
            _run(argv[0], argv[1:])
        except (ValueError, OSError) as error:
            return _refused(error, argv)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 128 + (stopped_by or [signal.SIGINT])[0]
        except SystemExit as done:  # a command that said itself what it keeps
            if done.code != 128 + signal.SIGINT:
                raise
            return 128 + (stopped_by or [signal.SIGINT])[0]
    return 0


def _run(name: str, argv: Sequence[str]) -> None:
    command = COMMANDS[name]
    check(name, argv)
    given = importlib.import_module("vrpo.fields.parser").parse(command.classes(), argv, prog=f"vrpo {name}")
    getattr(importlib.import_module(command.module), command.function)(*given)


def _refused(error: ValueError | OSError, argv: Sequence[str]) -> int:
    if isinstance(error, BrokenPipeError):  # whoever read what we print has gone: `vrpo ... | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  else the interpreter fails on it once more at its end
        return 128 + signal.SIGPIPE
    message = _of_the_system(error, argv) if isinstance(error, OSError) else str(error)
    traced = os.environ.get("VRPO_TRACEBACK") == "1"
    if traced:
        traceback.print_exception(error)
    print(
        f"error: {visible(' '.join(message.split()))}" + ("" if traced else " (VRPO_TRACEBACK=1 shows where)"),
        file=sys.stderr,
    )
    return 2


def _of_the_system(error: OSError, argv: Sequence[str]) -> str:
    """What the system says, of which file, and what to do. A full disk names no file: where we write is known."""
    if error.strerror is None:
        return str(error)
    given = dict(pairwise(argv))
    into = next((f"{flag} {given[flag]}" for flag in ("--output_dir", "--output") if flag in given), "the output")
    remedy = {
        errno.ENOSPC: "Make room, or write elsewhere",
        errno.EDQUOT: "Make room, or write elsewhere",
        errno.EROFS: "Write elsewhere",
        errno.EACCES: "Change its permissions, or give another path",
        errno.EPERM: "Change its permissions, or give another path",
    }
    place = str(error.filename if error.filename2 is None else error.filename2) if error.filename else into
    return f"{place}: {error.strerror}. {remedy.get(error.errno or 0, 'Give another path')}"


@contextmanager
def _on_a_terminal() -> Iterator[list[int]]:
    """Warnings are a line each, SIGTERM stops a command as Ctrl-C does, and the list holds it; afterwards as before."""
    stopped_by: list[int] = []

    def stop(number: int, _: Any) -> None:
        stopped_by.append(number)
        raise KeyboardInterrupt

    shown, main_thread = warnings.formatwarning, threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if main_thread else None
    warnings.formatwarning = lambda message, *_, **__: f"warning: {visible(' '.join(str(message).split()))}\n"
    try:
        yield stopped_by
    finally:
        warnings.formatwarning = shown
        if main_thread:
            signal.signal(signal.SIGTERM, before)
