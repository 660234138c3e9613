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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vrpo.rewards.syscalls import filter_bytes, machines

DEFENCES = ("user", "landlock", "seccomp")
_INSIDE = (Path(__file__).parent / "confine.py").read_text() + "\nmain()\n"
_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo", "/dev/urandom")
_POLL_SECONDS = 0.02
_TAIL_BYTES = 4000
_MEBI = 1 << 20


class SandboxUnavailable(RuntimeError):
    """A defence cannot be had on this machine; nothing was run. The message says which, and why."""


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

    A program may come in parts, such as the tests behind it: they share their names, but all are compiled before the
    first is run, and what one does to Python's own names (builtins, tracing) does not reach the next.

    The process has no network, no other process and no program but itself, no environment, and no rights: it can read
    what Python needs and `readable` (whose folders can also be imported from), write plain files in a temporary folder
    that is removed, and signal itself only. Its standard input is empty; PYTHONHASHSEED is 0. Everything it starts is
    threads, and they die with it, as it dies with the process that watches it.

    `without` names defences to go without (of `DEFENCES`) where a machine lacks them: an explicit loss of protection.

    Not to be confused with a guarantee of honest tests: a program shares an interpreter with the tests behind it, and
    one written to look for them can find them. And what the kernel tells everybody (whether a path exists, its
    size, the machine's name) is told.

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
        with tempfile.TemporaryDirectory(prefix="vrpo-") as folder:
            return self._run(program, os.path.realpath(folder))

    def _run(self, program: Sequence[str], folder: str) -> Outcome:
        nonce = os.urandom(16).hex()
        reader, writer = os.pipe()
        started = time.monotonic()
        try:
            process = _start(folder, writer)
        finally:
            os.close(writer)
        with os.fdopen(reader, "rb", buffering=0) as report, process:
            watch = _Watch(self, process, report, folder, started)
            try:
                _hand_over(process, self._job(program, nonce, folder, writer, process.pid))
                why = watch.until_the_end()
            finally:
                watch.end()
        return _outcome(watch, why, nonce, self.cpu_seconds)

    def _job(self, program: Sequence[str], nonce: str, folder: str, report: int, pid: int) -> dict[str, Any]:
        read = [*_needed(), *(os.path.realpath(path) for path in self.readable)]
        names = ("cpu_seconds", "memory", "threads", "file_bytes")
        return {
            "program": list(program),
            "nonce": nonce,
            "report": report,
            "folder": folder,
            "readable": read,
            "packages": list(self.readable),
            "keep_reading": any(_closed_to_others(path) for path in (*(f"{path}/any" for path in read), folder)),
            "limits": {name: getattr(self, name) for name in names},
            "without": list(self.without),
            "filter": "" if "seccomp" in self.without else _filter(pid),
        }


@dataclass
class _Watch:
    """One running program: what it has written so far, and what it has used."""

    limits: Sandbox
    process: subprocess.Popen[bytes]
    report: Any
    folder: str
    started: float
    written: dict[str, bytearray] = field(default_factory=lambda: {"stdout": bytearray(), "stderr": bytearray()})
    reported: bytearray = field(default_factory=bytearray)
    output: int = 0
    peak: int = 0
    code: int = 0
    cpu_seconds: float = 0.0
    seconds: float = 0.0

    def until_the_end(self) -> str | None:
        """Returns when the program has ended, or with the name of the limit by which it has to be."""
        with selectors.DefaultSelector() as selector:
            for stream, name in self._streams():
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, selectors.EVENT_READ, name)
            while True:
                for key, _ in selector.select(_POLL_SECONDS):
                    if self._read(key.fd, key.data) == 0:
                        selector.unregister(key.fileobj)
                self.peak = max(self.peak, _peak(self.process.pid))
                if why := self._beyond():
                    return why
                if os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    return None

    def end(self) -> None:
        """Kills the whole group, whose number the unreaped process keeps from being given to others, and reaps it."""
        os.killpg(self.process.pid, signal.SIGKILL)
        _, status, usage = os.wait4(self.process.pid, 0)
        self.seconds = time.monotonic() - self.started
        self.process.returncode = self.code = os.waitstatus_to_exitcode(status)
        self.cpu_seconds = usage.ru_utime + usage.ru_stime
        for stream, name in self._streams():
            os.set_blocking(stream.fileno(), False)
            while self.output <= self.limits.output_bytes and self._read(stream.fileno(), name):
                pass

    def _streams(self) -> Iterable[tuple[Any, str]]:
        return (self.process.stdout, "stdout"), (self.process.stderr, "stderr"), (self.report, "report")

    def _read(self, stream: int, name: str) -> int | None:
        """How much was there to be read; 0 at the end of the stream, None if nothing is there yet."""
        try:
            data = os.read(stream, 1 << 16)
        except BlockingIOError:
            return None
        self.output += len(data)
        if name == "report":
            self.reported += data
        else:
            self.written[name] += data
            del self.written[name][:-_TAIL_BYTES]
        return len(data)

    def _beyond(self) -> str | None:
        if time.monotonic() - self.started > self.limits.wall_seconds:
            return "timeout"
        if self.output > self.limits.output_bytes:
            return "output"
        return "files" if _too_full(self.folder, self.limits) else None


def _start(folder: str, report: int) -> subprocess.Popen[bytes]:
    """A fresh interpreter in a session of its own. `-s -P` and an environment of our own are what `-I` is, except that
    the order of sets can be fixed; `-S`: no site packages."""
    environment = {"HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1"}
    return subprocess.Popen(
        [sys.executable, "-s", "-P", "-S", "-B", "-X", "utf8", "-c", _INSIDE],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=(report,),
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


def _outcome(watch: _Watch, why: str | None, nonce: str, cpu_limit: int) -> Outcome:
    reports = list(_reports(bytes(watch.reported), nonce))
    if refused := next((one["refused"] for one in reports if "refused" in one), None):
        raise SandboxUnavailable(f"{refused} (a Sandbox(without=...) that names it goes without this protection)")
    stdout, stderr = (bytes(text).decode(errors="replace") for text in watch.written.values())
    if why is None and not any("started" in one for one in reports):
        raise SandboxUnavailable(f"the interpreter did not start the program: {stderr.strip()[-500:]}")
    last = next((one for one in reports if "outcome" in one), None)
    status, error = _ending(watch, why, last, cpu_limit)
    peak = max(watch.peak, last["peak"] if last else 0)
    return Outcome(status, error, stdout, stderr, watch.seconds, watch.cpu_seconds, peak)


def _ending(watch: _Watch, why: str | None, last: dict[str, Any] | None, cpu_limit: int) -> tuple[str, str | None]:
    """Status and error: the watcher's word, the program's end, and last the way the process died."""
    if why is None and watch.output > watch.limits.output_bytes:
        why = "output"
    if why is not None:
        return why, None
    if last is not None:
        return last["outcome"], last["error"]
    if watch.code >= 0:
        return "exited", f"the process left with exit status {watch.code}"
    name = signal.Signals(-watch.code).name
    if name == "SIGXCPU" or (name == "SIGKILL" and watch.cpu_seconds >= cpu_limit):
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
                size += entry.stat(follow_symlinks=False).st_blocks * 512
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


def _filter(pid: int) -> str:
    return base64.b64encode(filter_bytes(platform.machine(), pid)).decode()


def _needed() -> list[str]:
    """What the interpreter reads while it runs: its standard library and the system's shared libraries."""
    own = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), os.path.join(sys.base_prefix, "lib")}
    library = {os.path.join(path, f"python{sys.version_info.major}.{sys.version_info.minor}") for path in own}
    return sorted({os.path.realpath(path) for path in own | library | set(_SYSTEM) if os.path.exists(path)})


def _closed_to_others(path: str) -> bool:
    """Whether a folder above it may only be entered by its owner or group."""
    above = [part for part in Path(os.path.realpath(path)).parents if part.is_dir()]
    return not all(part.stat().st_mode & stat.S_IXOTH for part in above)
