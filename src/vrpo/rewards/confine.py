"""The inside of the sandbox: a process gives up what it could do, and then runs a program's text.

This file's text is handed to a fresh interpreter (`python -c`), so it imports the standard library only and nothing of
vrpo. What does not live here: watching, killing and judging the process (sandbox.py), and which system calls are
allowed (syscalls.py).

The order matters: the user first (root is exempt from the limit on processes), then limits, "no new privileges",
Landlock for files, seccomp for system calls, and a check that they hold. Nothing of this can be undone by the process.
"""

import ctypes
import json
import linecache
import os
import resource
import struct
import sys
import traceback
import types
from base64 import b64decode
from typing import Any

PROGRAM = "program.py"
FIRST_UID = 1_500_000_000  # of users nobody has: one for each process, so that its threads are counted by themselves
KEEP_READING = 2  # CAP_DAC_READ_SEARCH
DEATH_SIGNAL, DUMPABLE, KEEP_CAPS, SECCOMP, NO_NEW_PRIVILEGES = 1, 4, 8, 22, 38  # of prctl
NEW_USER = 0x10000000

# Landlock: rights on files, by the version of its interface that brought them
READ_FILE, READ_DIR, WRITE_FILE, MAKE_FILE = 1 << 2, 1 << 3, 1 << 1, 1 << 8
TRUNCATE, IOCTL = 1 << 14, 1 << 15
ON_FILES = 1 | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL
RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


class Refused(Exception):
    """A defence cannot be had on this machine: its name, and why."""


def call(name: str, what: str, *arguments: Any) -> int:
    """A libc function, whole numbers as wide as a register; a negative result is a refusal of the defence `what`."""
    wide = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in arguments]
    result = int(getattr(libc, name)(*wide))
    if result < 0:
        raise Refused(f"{what}: {name}: {os.strerror(ctypes.get_errno())}")
    return result


def leave_root(folder: str, keep_reading: bool) -> bool:
    """A user nobody else is, without capabilities; or, if not root, a user namespace where the kernel allows one.

    `keep_reading`: the interpreter lies in a folder that is closed to others; keep the capability to read past that,
    Landlock still says what. Returns whether the process's threads are counted apart from those of other processes.
    """
    if os.geteuid() != 0:
        return libc.unshare(NEW_USER) == 0
    user = FIRST_UID + os.getpid()
    try:
        os.chown(folder, user, user)
        call("prctl", "user", KEEP_CAPS, 1, 0, 0, 0)
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    except OSError as error:
        raise Refused(f"user: root cannot become another user: {error.strerror}") from error
    kept = 1 << KEEP_READING if keep_reading else 0
    header, sets = struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", kept, kept, 0, 0, 0, 0)
    call("capset", "user", header, sets)
    return True


def limit(limits: dict[str, int], apart: bool) -> None:
    """Resource limits, soft and hard; threads are a user's, so where others count too, they are added."""
    others = 1 if apart else threads_of(os.getuid())
    values = {
        resource.RLIMIT_AS: limits["memory"],
        resource.RLIMIT_NPROC: limits["threads"] + others,
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_STACK: 8 << 20,
    }
    for which, value in values.items():
        highest = resource.getrlimit(which)[1]
        value = value if highest == resource.RLIM_INFINITY else min(value, highest)
        resource.setrlimit(which, (value, value))
    seconds = limits["cpu_seconds"]
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # a signal, then one that cannot be ignored


def threads_of(user: int) -> int:
    """How many threads a user has on this machine."""
    count = 0
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == user:
                count += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            continue  # it ended meanwhile
    return count


def wall_off(folder: str, readable: list[str]) -> None:
    """Landlock: plain files in `folder` may be made and written, `readable` read; nothing else is opened.

    No file can be removed or replaced, so that none is open or mapped and not counted. No folders, links, sockets or
    devices can be made, so what is left behind is flat. From its 4th and 6th version on Landlock also refuses TCP, and
    signals and abstract sockets to the outside.
    """
    version = call("syscall", "landlock", CREATE_RULESET, None, 0, 1)
    rights = RIGHTS[min(version, max(RIGHTS))]
    attributes = struct.pack("=QQQ", rights, 3, 3)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = call("syscall", "landlock", CREATE_RULESET, attributes, len(attributes), 0)
    grant(ruleset, folder, rights & (READ_FILE | READ_DIR | WRITE_FILE | MAKE_FILE | TRUNCATE))
    for path in readable:
        grant(ruleset, path, READ_FILE | READ_DIR)
    grant(ruleset, "/dev/null", rights & (READ_FILE | WRITE_FILE | TRUNCATE))
    call("syscall", "landlock", RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def grant(ruleset: int, path: str, rights: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not os.path.isdir(path):
        rights &= ON_FILES
    rule = struct.pack("=Qi", rights, opened)
    call("syscall", "landlock", ADD_RULE, ruleset, 1, rule, 0)
    os.close(opened)


def filter_calls(instructions: bytes) -> None:
    """seccomp: installs the filter. Needs "no new privileges"."""
    held = ctypes.create_string_buffer(instructions, len(instructions))
    program = struct.pack("@HP", len(instructions) // 8, ctypes.addressof(held))
    call("prctl", "seccomp", SECCOMP, 2, program, 0, 0)


def check(without: list[str], memory: int) -> None:
    """What was installed holds: otherwise refuse rather than trust."""
    if "user" not in without and os.geteuid() == 0:
        raise Refused("user: the process is still root")
    if "landlock" not in without and readable_root():
        raise Refused("landlock: installed, and / can still be read")
    if "seccomp" not in without and libc.socket(1, 1, 0) != -1:
        raise Refused("seccomp: installed, and sockets can still be made")
    if not 0 < resource.getrlimit(resource.RLIMIT_AS)[1] <= memory:
        raise Refused("limits: memory is not limited")


def readable_root() -> bool:
    try:
        os.listdir("/")
    except PermissionError:
        return False
    return True


def confine(job: dict[str, Any]) -> None:
    """All the defences but those that the job goes without.

    Raises:
        Refused: one is missing on this machine.
    """
    without = job["without"]
    apart = "user" not in without and leave_root(job["folder"], job["keep_reading"])
    try:
        limit(job["limits"], apart)
    except (OSError, ValueError) as error:
        raise Refused(f"limits: {error}") from error
    call("prctl", "limits", DEATH_SIGNAL, 9, 0, 0, 0)  # die with whoever watches
    call(
        "prctl", "limits", DUMPABLE, 0, 0, 0, 0
    )  # a limit of 0 on core files does not hold for those sent to a program
    call("prctl", "seccomp", NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    if "landlock" not in without:
        wall_off(job["folder"], job["readable"])
    if "seccomp" not in without:
        filter_calls(b64decode(job["filter"]))
    check(without, job["limits"]["memory"])


def run(parts: list[str]) -> tuple[str, str | None]:
    """The parts of a program, one after another as `__main__`; how they ended, and their exception in a line. All are
    compiled before the first one is run."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    try:
        for code in [compiled(text, number) for number, text in enumerate(parts)]:
            exec(code, module.__dict__)
    except SystemExit as error:
        return "exited", f"SystemExit: {error.code}"
    except MemoryError:
        module.__dict__.clear()
        return "memory", "MemoryError"
    except BaseException as error:
        return outcome_of(error), described(error)
    return "passed", None


def compiled(text: str, number: int) -> types.CodeType:
    name = PROGRAM if number == 0 else f"program.{number}.py"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    return compile(text, name, "exec")


def outcome_of(error: BaseException) -> str:
    if isinstance(error, PermissionError):
        return "forbidden"
    too_large = isinstance(error, OSError) and error.errno == 27  # EFBIG
    return "files" if too_large else "failed"


def described(error: BaseException) -> str:
    try:
        traceback.print_exception(error, limit=-8)
        return "".join(traceback.format_exception_only(error)).strip()[-500:]
    except BaseException:
        return type(error).__name__


def peak(status: int) -> int:
    """The most memory this process has had, in bytes, from its open /proc/self/status."""
    for line in os.pread(status, 8192, 0).splitlines():
        if line.startswith(b"VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    job = json.load(sys.stdin.buffer)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    status = os.open("/proc/self/status", os.O_RDONLY)
    report: dict[str, Any] = {"nonce": job["nonce"]}
    sys.argv, sys.path = [PROGRAM, *map(str, job["pipes"])], [*sys.path, *job["packages"]]
    try:
        confine(job)
    except Exception as error:
        os.write(job["report"], json.dumps(report | {"refused": str(error)}).encode())
        os._exit(1)
    os.write(job["report"], json.dumps(report | {"started": True}).encode() + b"\n")
    outcome, what = run(job["program"])
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        outcome = "failed" if outcome == "passed" else outcome
    ended = report | {"outcome": outcome, "error": what, "peak": peak(status)}
    os.write(job["report"], json.dumps(ended).encode() + b"\n")
    os._exit(0 if outcome == "passed" else 1)
