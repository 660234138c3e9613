"""Hostile programs in the sandbox: what happened to each, and whether it did its harm.

    python benchmarks/sandbox/run.py

Runs every attack below in `vrpo.rewards.sandbox.Sandbox` with small limits, looks afterwards whether the harm was done
(a file changed, a signal heard, a connection made, a process left), and times an empty program. Each
target of a signal is tried with signal 0 first, and with a real one only if that was refused. Writes result.json and
README.md, whose tables are generated from it. Linux only; takes less than a minute.
"""

import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vrpo.rewards.sandbox import Outcome, Sandbox

HERE = Path(__file__).parent
BOX = Sandbox(cpu_seconds=1, wall_seconds=3, memory=256 << 20, threads=4, output_bytes=100_000, folder_files=32)
DOUBLE_FORK = (
    "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
    "        time.sleep(1); open({file!r}, 'a').write('x'); time.sleep(30)"
)


@dataclass
class Scene:
    """What the attacks aim at, and how to see whether they hit."""

    secret: Path
    listener: socket.socket
    bystander: subprocess.Popen[bytes]
    heard: list[int]

    def nameless(self, error: str | None) -> str | None:
        """An error without what is this machine's alone: the home folder's path, the parent's number."""
        named = ((str(self.secret), "~/secret"), (f"'{Path.home()}'", "'~'"), (f"/proc/{os.getpid()}", "/proc/PARENT"))
        for text, name in named:
            error = error and error.replace(text, name)
        return error

    def harm(self, outcome: Outcome) -> str:
        self.listener.setblocking(False)
        try:
            self.listener.accept()
            return "connected"
        except BlockingIOError:
            pass
        if self.secret.read_text() != "secret" or self.secret.stat().st_mode & 0o777 != 0o644:
            return "file changed"
        if "secret" in outcome.stdout or "root:" in outcome.stdout:
            return "file read"
        if self.heard or self.bystander.poll() is not None:
            return "signal"
        return "process left" if left_behind() else "none"


def left_behind() -> bool:
    """Whether a process of a sandbox is alive: its command line has the text of confine.py."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes())
        except OSError:
            continue
    return any(b"The inside of the sandbox" in line for line in lines)


@contextmanager
def scene() -> Iterator[Scene]:
    heard: list[int] = []
    for number in (signal.SIGUSR1, signal.SIGIO):
        signal.signal(number, lambda number, _: heard.append(number))
    bystander = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(120)"])
    with tempfile.TemporaryDirectory(dir=Path.home()) as folder, socket.socket() as listener:
        os.chmod(folder, 0o777)
        secret = Path(folder) / "secret"
        secret.write_text("secret")
        secret.chmod(0o644)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        try:
            yield Scene(secret, listener, bystander, heard)
        finally:
            bystander.kill()
            bystander.wait()


def attacks(at: Scene) -> Iterator[tuple[str, str]]:
    """Name and program of each."""
    file, port = str(at.secret), at.listener.getsockname()[1]
    yield "infinite loop", "while True: pass"
    yield "sleep", "import time; time.sleep(60)"
    yield "memory: one block of 10 GiB", "x = bytearray(10 << 30)"
    yield "memory: without end", "x = []\nwhile True: x.append(bytearray(1 << 20))"
    yield "output without end", "while True: print('x' * 1000)"
    yield "one huge file", "f = open('f', 'wb')\nwhile True: f.write(bytes(1 << 20))"
    yield "many files", "import itertools\nfor n in itertools.count(): open(f'f{n}', 'w')"
    mapped = "os.ftruncate(f, 1 << 23); m.append(mmap.mmap(f, 1 << 23)); m[-1][:] = bytes(1 << 23); os.close(f)"
    yield (
        "files that are mapped and removed",
        f"import mmap, os\nm = []\nwhile True: f = os.open('f', 66); {mapped}; os.unlink('f')",
    )
    yield "files without a name", f"import mmap, os\nm = []\nwhile True: f = os.open('.', os.O_TMPFILE | 2); {mapped}"
    yield "deep folders", "import os\nwhile True: os.mkdir('d'); os.chdir('d')"
    yield "fork bomb", "import os\nwhile True: os.fork()"
    yield (
        "threads without end",
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,)).start()",
    )
    yield "daemon by double fork", "import os, time\n" + DOUBLE_FORK.format(file=file)
    yield "read /etc/shadow", "print(open('/etc/shadow').read())"
    yield "read a file at home", f"print(open({file!r}).read())"
    yield "read it through /proc/self/root", f"print(open('/proc/self/root' + {file!r}).read())"
    yield "list the home folder", f"import os; print(os.listdir({str(Path.home())!r}))"
    yield "read the parent's environment", "import os; print(open(f'/proc/{os.getppid()}/environ').read())"
    yield "write a file at home", f"open({file!r}, 'w')"
    yield "empty it by opening for reading", f"import os; os.open({file!r}, os.O_RDONLY | os.O_TRUNC)"
    yield "remove it", f"import os; os.remove({file!r})"
    yield "change its mode", f"import os; os.chmod({file!r}, 0)"
    yield "write to it through a link", f"import os; os.symlink({file!r}, 'x'); open('x', 'w')"
    yield "write to /tmp", "open('/tmp/vrpo-harm', 'w')"
    yield "TCP", f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)"
    yield "UDP", "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))"
    yield "unix socket", "import socket; socket.socket(socket.AF_UNIX)"
    yield "shell", f"import subprocess; subprocess.run(['/bin/sh', '-c', 'echo x > {file}'], check=True)"
    yield "exec", f"import os; os.execv('/bin/sh', ['sh', '-c', 'echo x > {file}'])"
    for target, who in (
        ("os.getppid()", "parent"),
        ("1", "process 1"),
        ("-1", "everybody"),
        (str(at.bystander.pid), "another"),
    ):
        yield f"kill: {who}, signal 0", f"import os; os.kill({target}, 0)"
        yield f"kill: {who}", f"import os; os.kill({target}, {int(signal.SIGUSR1)})"
    yield "signal by way of a pipe's owner", "import fcntl, os; fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid())"
    yield (
        "trace the parent",
        "import ctypes, os\nif ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0): raise PermissionError",
    )
    yield "raise a limit", "import resource as r; r.setrlimit(r.RLIMIT_AS, (1 << 40, 1 << 40)); x = bytearray(1 << 30)"
    yield "become root", "import os; os.setuid(0)"
    yield "namespaces", "import ctypes\nif ctypes.CDLL(None).unshare(0x10000000): raise PermissionError"
    yield "deep recursion", "def f(): f()\nf()"
    yield "segmentation fault", "import ctypes; ctypes.string_at(0)"
    yield "leave before the tests", "import os; os._exit(0)"


def attack(at: Scene, name: str, program: str) -> dict[str, Any]:
    outcome = BOX(program)
    print(f"{name}: {outcome.status} {outcome.error}", flush=True)
    return {
        "attack": name,
        "status": outcome.status,
        "error": at.nameless(outcome.error),
        "harm": at.harm(outcome),
        "seconds": round(outcome.seconds, 3),
        "cpu_seconds": round(outcome.cpu_seconds, 3),
        "peak_bytes": outcome.peak_bytes,
    }


def all_attacks() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    with scene() as at:
        for name, program in attacks(at):
            if name.startswith("kill") and "signal 0" not in name and found[-1]["status"] != "forbidden":
                raise SystemExit(f"{found[-1]['attack']} was not refused: {name} is not tried")
            found.append(attack(at, name, program))
    return found


def timed(action: Callable[[], object], repeats: int) -> dict[str, float]:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return {"median": statistics.median(seconds), "worst": max(seconds), "repeats": repeats}


def cost() -> dict[str, Any]:
    bare = [sys.executable, "-S", "-I", "-c", "pass"]
    return {
        "confined": timed(lambda: BOX("pass"), 30),
        "bare_interpreter": timed(lambda: subprocess.run(bare, check=True), 30),
    }


def report(result: dict[str, Any]) -> str:
    rows = [
        f"| {one['attack']} | {one['status']} | {(one['error'] or '').splitlines()[-1][:90] if one['error'] else ''} "
        f"| {one['harm']} | {one['seconds']:.2f} | {one['peak_bytes'] / 2**20:.0f} |"
        for one in result["attacks"]
    ]
    confined, bare = (result["cost"][name]["median"] * 1000 for name in ("confined", "bare_interpreter"))
    return "\n".join(
        [
            "# Hostile programs in the sandbox",
            "",
            (__doc__ or "").split("\n\n")[2].replace("\n", " ").strip(),
            "",
            f"Linux {result['machine']['kernel']}, {result['machine']['processor']}, "
            f"Python {result['machine']['python']}, "
            f"run {'as root' if result['machine']['root'] else 'as an ordinary user'}. Limits: 1 s of CPU, 3 s in all, "
            "256 MiB, 4 threads. An empty program takes "
            f"{confined:.0f} ms (median of 30), a bare interpreter {bare:.0f} ms.",
            "",
            "| attack | status | error | harm done | seconds | peak MiB |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            "What is not prevented: the kernel tells everybody whether a path exists, its size and owner, and the "
            "machine's name; and nobody is kept from using the processor until the limit.",
            "",
        ]
    )


if __name__ == "__main__":
    machine = {
        "kernel": platform.release().split("-")[0],
        "processor": platform.machine(),
        "python": platform.python_version(),
        "root": os.geteuid() == 0,
    }
    result = {"machine": machine, "attacks": all_attacks(), "cost": cost()}
    (HERE / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    (HERE / "README.md").write_text(report(result))
