"""Programs that nobody trusts, run so that they can harm nothing: the watching side.

What lives here: what a program may use, starting it, watching it, ending it, and saying what happened. What does not:
how a process gives up its rights (confine.py), and which system calls it keeps (syscalls.py). Linux only; works for an
ordinary user, in a container, and for root.
"""

import base64
import json
import math
import os
import platform
import selectors
import signal
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vrpo.rewards.syscalls import filter_bytes, machines

DEFENCES = ("user", "landlock", "seccomp")
_INSIDE = (Path(__file__).parent / "confine.py").read_text() + "\nmain()\n"
_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo", "/dev/urandom")
_POLL_SECONDS = 0.02
_LAST_SECONDS = 0.5
_TAIL_BYTES = 4000
_MEBI = 1 << 20
_LIMITS = ("timeout", "output", "files")  # by which the watching side ends a program
_STATUSES = ("passed", "failed", "exited", "memory", "files", "forbidden")  # what a process says of itself


class SandboxUnavailable(ValueError):
    """A defence cannot be had on this machine; nothing was run. The message says in a line which, and why."""


@dataclass(frozen=True)
class Outcome:
    """What a program did.

    `status`: "passed" it ran to its end; "failed" an exception, `error` says which; "exited" it left before its end,
    by sys.exit or os._exit, which is not the same as passing; "timeout"; "memory" an uncaught MemoryError; "output" it
    printed too much; "files" it wrote too much; "forbidden" an uncaught PermissionError, or killed for a call;
    "crashed" killed by a signal, `error` says which. A program that is refused something and carries on has any other.
    `seconds` counts from the start of the interpreter; `peak_bytes` is the most memory it held, sampled every 20 ms
    where it was killed. `stdout`, `stderr`: the last 4,000 bytes.
    """

    status: str
    error: str | None
    stdout: str
    stderr: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int

    @property
    def passed(self) -> bool:
        return self.status == "passed"


@dataclass(frozen=True)
class Sandbox:
    """Runs a Python program's text in a process of its own, and returns its `Outcome`.

    A program may come in parts: they share their names, and all are compiled before the first is run.

    The process has no network, no other process and no program but itself, no environment, and no rights: it can read
    what Python needs and `readable` (whose folders can also be imported from), write plain files in a temporary folder
    that is removed, and signal itself only. It cannot remove or rename a file: one that is open and has no name would
    not be counted (so `tempfile` needs `dir="."` and `delete=False`). Its standard input is empty; PYTHONHASHSEED is 0.
    Everything it starts is threads, and they die with it, as it dies with the process that watches it.

    `without` names defences to go without (of `DEFENCES`) where a machine lacks them: an explicit loss of protection.

    `together` runs two programs that talk to each other, such as one that nobody trusts and its tests.

    What the kernel tells everybody (whether a path exists, its size, the machine's name) is told.

    Args:
        memory: bytes of address space, which is more than what is held: an interpreter alone has some 30 MiB.
        threads: besides the main one.
        file_bytes, folder_bytes, folder_files: of one file and of the temporary folder.
    Raises:
        ValueError: a limit that is not positive, or an unknown defence.
    """

    cpu_seconds: int = 10
    wall_seconds: int | float = 20
    memory: int = 512 * _MEBI
    threads: int = 16
    file_bytes: int = 8 * _MEBI
    folder_bytes: int = 32 * _MEBI
    folder_files: int = 64
    output_bytes: int = _MEBI
    readable: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("cpu_seconds", "wall_seconds", "memory", "file_bytes", "folder_bytes", "output_bytes"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: must be positive and finite")
        if unknown := set(self.without) - set(DEFENCES):
            raise ValueError(f"without={self.without}: {sorted(unknown)} not among {DEFENCES}")

    def __call__(self, *program: str) -> Outcome:
        """Raises:
        SandboxUnavailable: this machine lacks a defence that `without` does not name.
        """
        _check_machine(self.without)
        with tempfile.TemporaryDirectory(prefix="vrpo-") as folder, ExitStack() as ends:
            return _watched([_Watch(self, program, os.path.realpath(folder), ())], ends)[0]

    def together(self, program: Sequence[str], tests: Sequence[str]) -> Outcome:
        """Runs two programs, each in a process and a folder of its own, with a pipe each way between them: in each,
        `sys.argv[1:]` are the descriptors to read and to write. Only the second one's word counts for passing.

        Returns:
            How the second one ended, or the first one if it was the first to go; what the first one printed, errors and
            CPU seconds of both, and the most memory that one of them held.

        Raises:
            SandboxUnavailable: this machine lacks a defence that `without` does not name.
        """
        _check_machine(self.without)
        with ExitStack() as ends:
            folders = [ends.enter_context(tempfile.TemporaryDirectory(prefix="vrpo-")) for _ in (program, tests)]
            with ExitStack() as pipes:
                (read, answer), (hear, ask) = _pipe(pipes), _pipe(pipes)
                one = _Watch(self, program, os.path.realpath(folders[0]), (hear, answer))
                other = _Watch(self, tests, os.path.realpath(folders[1]), (read, ask))
                outcomes = _watched([one, other], pipes)
        return _of_both(outcomes[0], outcomes[1], one.left)

    def job(self, program: Sequence[str], nonce: str, folder: str, report: int, pid: int) -> dict[str, Any]:
        read = [*_needed(), *(os.path.realpath(path) for path in self.readable)]
        return {
            "program": list(program),
            "nonce": nonce,
            "report": report,
            "folder": folder,
            "readable": read,
            "packages": list(self.readable),
            "keep_reading": any(_closed_to_others(path) for path in (*(f"{path}/any" for path in read), folder)),
            "limits": {name: getattr(self, name) for name in ("cpu_seconds", "memory", "threads", "file_bytes")},
            "without": list(self.without),
            "filter": ""
            if "seccomp" in self.without
            else base64.b64encode(filter_bytes(platform.machine(), pid)).decode(),
        }


class _Watch:
    """One running program: what it has written so far, and what it has used. `pipes`: descriptors that it inherits."""

    def __init__(self, limits: Sandbox, program: Sequence[str], folder: str, pipes: Sequence[int]) -> None:
        self.limits, self.program, self.folder, self.pipes = limits, program, folder, pipes
        self.written = {"stdout": bytearray(), "stderr": bytearray(), "report": bytearray()}
        self.output = self.peak = self.code = 0
        self.cpu_seconds, self.seconds, self.left = 0.0, 0.0, False
        self.nonce = os.urandom(16).hex()

    def start(self, ends: ExitStack) -> None:
        """Starts its interpreter, which waits for the program; killed and reaped where `ends` ends, if not before."""
        reader, writer = os.pipe()
        self.report = ends.enter_context(os.fdopen(reader, "rb", buffering=0))
        self.started = time.monotonic()
        try:
            self.process = ends.enter_context(_start(self.folder, (writer, *self.pipes)))
        finally:
            os.close(writer)
        ends.callback(self.end)
        job = self.limits.job(self.program, self.nonce, self.folder, writer, self.process.pid)
        self.given = job | {"pipes": list(self.pipes)}

    def end(self) -> None:
        """Kills the whole group, whose number the unreaped process keeps from being given to others, and reaps it."""
        if self.process.returncode is not None:
            return
        self.left = self.ended()
        os.killpg(self.process.pid, signal.SIGKILL)
        _, status, usage = os.wait4(self.process.pid, 0)
        self.seconds = time.monotonic() - self.started
        self.process.returncode = self.code = os.waitstatus_to_exitcode(status)
        self.cpu_seconds = usage.ru_utime + usage.ru_stime
        for stream, name in self.streams():
            os.set_blocking(stream.fileno(), False)
            while self.output <= self.limits.output_bytes and self.read(stream.fileno(), name):
                pass

    def ended(self) -> bool:
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait(self) -> None:
        """Waits a moment for it to end by itself: the other program has ended, and whoever listens to it hears that."""
        until = time.monotonic() + _LAST_SECONDS
        while not self.ended() and time.monotonic() < until:
            time.sleep(0.001)

    def streams(self) -> Iterable[tuple[Any, str]]:
        return (self.process.stdout, "stdout"), (self.process.stderr, "stderr"), (self.report, "report")

    def read(self, stream: int, name: str) -> int | None:
        """How much was there to be read; 0 at the end of the stream, None if nothing is there yet."""
        try:
            data = os.read(stream, 1 << 16)
        except BlockingIOError:
            return None
        self.output += len(data)
        self.written[name] += data
        if name != "report":
            del self.written[name][:-_TAIL_BYTES]
        return len(data)

    def beyond(self) -> str | None:
        self.peak = max(self.peak, _peak(self.process.pid))
        if time.monotonic() - self.started > self.limits.wall_seconds:
            return "timeout"
        if self.output > self.limits.output_bytes:
            return "output"
        return "files" if _too_full(self.folder, self.limits) else None


def _pipe(ends: ExitStack) -> tuple[int, int]:
    """A pipe, whose ends here are closed by `ends` if not before."""
    reader, writer = os.pipe()
    for one in (reader, writer):
        ends.callback(os.close, one)
    return reader, writer


def _watched(watches: Sequence[_Watch], ends: ExitStack) -> list[Outcome]:
    """Starts programs that run together until the last one ends, and says what happened to each."""
    with ExitStack() as running:
        for watch in watches:
            watch.start(running)
        ends.close()
        for watch in watches:
            _hand_over(watch.process, watch.given)
        whys = _until_the_end(watches)
        if not any(whys):
            watches[0].wait()
        for watch in watches:
            watch.end()
    return [_outcome(watch, why) for watch, why in zip(watches, whys, strict=True)]


def _until_the_end(watches: Sequence[_Watch]) -> list[str | None]:
    """Returns when the last program has ended, or one is beyond a limit: for each, the limit by which it has to end."""
    with selectors.DefaultSelector() as selector:
        for watch in watches:
            for stream, name in watch.streams():
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, selectors.EVENT_READ, (watch, name))
        while True:
            for key, _ in selector.select(_POLL_SECONDS):
                watch, name = key.data
                if watch.read(key.fd, name) == 0:
                    selector.unregister(key.fileobj)
            whys = [watch.beyond() for watch in watches]
            if any(whys) or watches[-1].ended():
                return whys


def _of_both(program: Outcome, tests: Outcome, left: bool) -> Outcome:
    """One outcome of tests and a program. It is the program's where that was beyond a limit, or `left` before tests
    that then failed. A program's own word that it passed never counts."""
    own = program.status in _LIMITS or (left and not tests.passed and not program.passed)
    return replace(
        program if own else tests,
        stdout=program.stdout,
        stderr=(program.stderr + tests.stderr)[-_TAIL_BYTES:],
        seconds=max(program.seconds, tests.seconds),
        cpu_seconds=program.cpu_seconds + tests.cpu_seconds,
        peak_bytes=max(program.peak_bytes, tests.peak_bytes),
    )


def _start(folder: str, inherited: Sequence[int]) -> subprocess.Popen[bytes]:
    """A fresh interpreter in a session of its own. `-s -P` and an environment of our own are what `-I` is, except that
    the order of sets can be fixed; `-S`: no site packages."""
    environment = {"HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1"}
    return subprocess.Popen(
        [sys.executable, "-s", "-P", "-S", "-B", "-X", "utf8", "-c", _INSIDE],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=inherited,
        cwd=folder,
        env=environment,
        start_new_session=True,
    )


def _hand_over(process: subprocess.Popen[bytes], job: dict[str, Any]) -> None:
    assert process.stdin is not None
    left = memoryview(json.dumps(job).encode())
    try:
        while left:
            left = left[process.stdin.write(left) :]
    except BrokenPipeError:
        pass  # it ended already, and its report says why
    process.stdin.close()


def _outcome(watch: _Watch, why: str | None) -> Outcome:
    stdout, stderr, reported = (bytes(watch.written[name]) for name in ("stdout", "stderr", "report"))
    reports = [*_reports(reported, watch.nonce), {}]
    first = reports[0]  # of those after it, a program that found the secret may be the author
    if "refused" in first:
        raise SandboxUnavailable(f"{first['refused']}. A Sandbox(without=...) that names it goes without it.")
    if why is None and "started" not in first:
        said = stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise SandboxUnavailable(f"the interpreter did not start the program: {' '.join(said)}")
    last = next((one for one in reports if one.get("outcome") in _STATUSES), None)
    status, error = _ending(watch, why, last)
    peak = last.get("peak") if last else 0
    texts = (stdout.decode(errors="replace"), stderr.decode(errors="replace"))
    peak = max(watch.peak, peak if isinstance(peak, int) else 0)
    return Outcome(status, error, *texts, watch.seconds, watch.cpu_seconds, peak)


def _ending(watch: _Watch, why: str | None, last: dict[str, Any] | None) -> tuple[str, str | None]:
    """Status and error: the watcher's word, the program's end, and last the way the process died."""
    if why is None and watch.output > watch.limits.output_bytes:
        why = "output"
    if why is not None:
        return why, None
    if last is not None:
        return last["outcome"], None if last.get("error") is None else str(last["error"])
    if watch.code >= 0:
        return "exited", f"the process left with exit status {watch.code}"
    name = signal.Signals(-watch.code).name
    if name == "SIGXCPU" or (name == "SIGKILL" and watch.cpu_seconds >= watch.limits.cpu_seconds):
        return "timeout", None
    return ("forbidden" if name == "SIGSYS" else "crashed"), name


def _reports(data: bytes, nonce: str) -> Iterable[dict[str, Any]]:
    """What the inside has reported; lines without its secret are the program's own."""
    for line in data.split(b"\n"):
        try:
            report = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(report, dict) and report.pop("nonce", None) == nonce:
            yield report


def _too_full(folder: str, limits: Sandbox) -> bool:
    count = size = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            count += 1
            try:
                facts = entry.stat(follow_symlinks=False)
                size += max(facts.st_size, facts.st_blocks * 512)  # some systems allot blocks late, or store fewer
            except FileNotFoundError:
                continue
            if count > limits.folder_files or size > limits.folder_bytes:
                return True
    return False


def _peak(pid: int) -> int:
    """The most memory a process has held, in bytes; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def _check_machine(without: tuple[str, ...]) -> None:
    if sys.platform != "linux":
        raise SandboxUnavailable(f"programs can be confined on Linux only, not on {sys.platform}")
    if "seccomp" not in without and platform.machine() not in machines():
        raise SandboxUnavailable(f"seccomp: no list of system calls for {platform.machine()}, only for {machines()}")


def _needed() -> list[str]:
    """What the interpreter reads while it runs: its standard library and the system's shared libraries."""
    own = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), os.path.join(sys.base_prefix, "lib")}
    library = {os.path.join(path, f"python{sys.version_info.major}.{sys.version_info.minor}") for path in own}
    return sorted({os.path.realpath(path) for path in own | library | set(_SYSTEM) if os.path.exists(path)})


def _closed_to_others(path: str) -> bool:
    """Whether a folder above it may only be entered by its owner or group."""
    above = [part for part in Path(os.path.realpath(path)).parents if part.is_dir()]
    return not all(part.stat().st_mode & stat.S_IXOTH for part in above)
