"""Which system calls a confined Python program may make: a seccomp filter that allows a list and refuses the rest.

What lives here: the numbers of two machines and the filter as bytes. What does not: installing it (confine.py).

An allowed list, not a forbidden one, so that calls invented after this was written are refused. Refused are, among
others: sockets, new processes, running another program, tracing, signals to others, mounts, namespaces, keys, shared
memory, files without a name in a folder (removed or replaced while they are open or mapped, or never given one: nobody
could count them), changes of a file's owner, mode, times and attributes (which Landlock does not cover), and resource
limits of other processes. Calls with a condition look at one argument; a structure in memory cannot be looked at, so
`clone3` is answered with "no such call", and libc falls back to `clone`.
"""

import errno
import struct

_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000  # on x86_64, numbers from here on are another table with the same calls
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06

# name -> number on x86_64 and on aarch64 (None: the machine has no such call)
_CALLS: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "poll": (7, None),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "readv": (19, 65),
    "writev": (20, 66),
    "access": (21, None),
    "pipe": (22, None),
    "select": (23, None),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "mincore": (27, 232),
    "madvise": (28, 233),
    "dup": (32, 23),
    "dup2": (33, None),
    "pause": (34, None),
    "nanosleep": (35, 101),
    "getitimer": (36, 102),
    "alarm": (37, None),
    "setitimer": (38, 103),
    "getpid": (39, 172),
    "sendfile": (40, 71),
    "recvfrom": (45, 207),
    "shutdown": (48, 210),
    "socketpair": (53, 199),  # both ends are the program's own; asyncio wakes itself up by one
    "exit": (60, 93),
    "wait4": (61, 260),
    "uname": (63, 160),
    "flock": (73, 32),
    "fsync": (74, 82),
    "fdatasync": (75, 83),
    "ftruncate": (77, 46),
    "getdents": (78, None),
    "getcwd": (79, 17),
    "chdir": (80, 49),
    "fchdir": (81, 50),
    "readlink": (89, None),
    "umask": (95, 166),
    "gettimeofday": (96, 169),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "times": (100, 153),
    "getuid": (102, 174),
    "getgid": (104, 176),
    "geteuid": (107, 175),
    "getegid": (108, 177),
    "getppid": (110, 173),
    "getpgrp": (111, None),
    "getgroups": (115, 158),
    "getresuid": (118, 148),
    "getresgid": (120, 150),
    "getpgid": (121, 155),
    "getsid": (124, 156),
    "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137),
    "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132),
    "statfs": (137, 43),
    "fstatfs": (138, 44),
    "getpriority": (140, 141),
    "sched_getparam": (143, 121),
    "sched_getscheduler": (145, 120),
    "sched_get_priority_max": (146, 125),
    "sched_get_priority_min": (147, 126),
    "gettid": (186, 178),
    "time": (201, None),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "epoll_create": (213, None),
    "getdents64": (217, 61),
    "restart_syscall": (219, 128),
    "fadvise64": (221, 223),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "epoll_wait": (232, None),
    "epoll_ctl": (233, 21),
    "waitid": (247, 95),
    "newfstatat": (262, 79),
    "readlinkat": (267, 78),
    "faccessat": (269, 48),
    "pselect6": (270, 72),
    "ppoll": (271, 73),
    "set_robust_list": (273, 99),
    "get_robust_list": (274, 100),
    "epoll_pwait": (281, 22),
    "eventfd2": (290, 19),
    "epoll_create1": (291, 20),
    "dup3": (292, 24),
    "pipe2": (293, 59),
    "preadv": (295, 69),
    "pwritev": (296, 70),
    "getrandom": (318, 278),
    "membarrier": (324, 283),
    "copy_file_range": (326, 285),
    "statx": (332, 291),
    "rseq": (334, 293),
    "close_range": (436, 436),
    "faccessat2": (439, 439),
    "epoll_pwait2": (441, 441),
}
_OPEN, _OPENAT, _CLONE, _CLONE3 = (2, None), (257, 56), (56, 220), (435, 435)
_KILL_CALL, _TGKILL, _IOCTL, _FCNTL = (62, 129), (234, 131), (16, 29), (72, 25)
_PRCTL, _PRLIMIT, _SENDTO = (157, 167), (302, 261), (44, 206)

_IOCTLS = (
    0x5401,
    0x5413,
    0x541B,
    0x5421,
    0x5450,
    0x5451,
)  # is it a terminal, its size, bytes to read, blocking, cloexec
_OWNERS = (8, 10, 15)  # fcntl F_SETOWN, F_SETSIG, F_SETOWN_EX: signals to others by way of a pipe
_LARGER_PIPE = 1031  # fcntl F_SETPIPE_SZ: memory that no limit counts
_SET_NAME = 15  # prctl: a thread's name
_THREAD, _NAMESPACES = 0x10000, 0x7E020080  # flags of clone

Block = list[tuple[int, int, int, int]]


def machines() -> tuple[str, ...]:
    """The machines, as `platform.machine()` names them, whose numbers are known here."""
    return tuple(_ARCHITECTURE)


def filter_bytes(machine: str, pid: int) -> bytes:
    """The filter (an array of struct sock_filter) for a single process, number `pid`, which may signal itself only."""
    column = tuple(_ARCHITECTURE).index(machine)
    block: Block = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _ARCHITECTURE[machine]), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    if machine == "x86_64":
        block += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
    for numbers in _CALLS.values():
        block += _when(numbers[column], [(_RETURN, 0, 0, _ALLOW)])
    for numbers, conditions in _conditional(pid):
        block += _when(numbers[column], conditions)
    block += [_refuse(errno.EPERM)]
    return b"".join(struct.pack("=HBBI", *one) for one in block)


def _conditional(pid: int) -> list[tuple[tuple[int | None, int | None], Block]]:
    return [
        (_OPEN, _opening(1)),
        (_OPENAT, _opening(2)),
        (_CLONE, [_argument(0), (_AND, 0, 0, _THREAD | _NAMESPACES), *_allowed_if((_THREAD,))]),
        (_CLONE3, [_refuse(errno.ENOSYS)]),
        (_KILL_CALL, [_argument(0), *_allowed_if((pid,))]),
        (_TGKILL, [_argument(0), *_allowed_if((pid,))]),
        (_IOCTL, [_argument(1), *_allowed_if(_IOCTLS)]),
        (_FCNTL, [_argument(1), *_refused_if((*_OWNERS, _LARGER_PIPE))]),
        (_PRCTL, [_argument(0), *_allowed_if((_SET_NAME,))]),
        (_PRLIMIT, [_argument(0), *_allowed_if((0, pid))]),
        (_SENDTO, [_argument(4), (_EQUAL, 1, 0, 0), _refuse(errno.EPERM), _argument(4, high=True), *_allowed_if((0,))]),
    ]


def _opening(argument: int) -> Block:
    """Refuses to open a file without a name, for truncation without writing, and with access mode 3: the last two can
    empty a file that Landlock, before its third version, lets be read."""
    access, truncate, nameless = 3, 0o1000, 0o20000000
    return [
        _argument(argument),
        (_AND, 0, 0, nameless),
        (_EQUAL, 1, 0, 0),
        _refuse(errno.EPERM),
        _argument(argument),
        (_AND, 0, 0, access | truncate),
        *_refused_if((truncate, access, access | truncate)),
    ]


def _when(number: int | None, then: Block) -> Block:
    """`then`, which ends in a return on every path, for that call; nothing where the machine has no such call."""
    return [] if number is None else [(_EQUAL, 0, len(then), number), *then]


def _argument(index: int, high: bool = False) -> tuple[int, int, int, int]:
    return (_LOAD, 0, 0, 16 + 8 * index + 4 * high)


def _refuse(number: int) -> tuple[int, int, int, int]:
    return (_RETURN, 0, 0, 0x00050000 | number)


def _allowed_if(values: tuple[int, ...]) -> Block:
    tests = [part for value in values for part in ((_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW))]
    return [*tests, _refuse(errno.EPERM)]


def _refused_if(values: tuple[int, ...]) -> Block:
    tests = [part for value in values for part in ((_EQUAL, 0, 1, value), _refuse(errno.EPERM))]
    return [*tests, (_RETURN, 0, 0, _ALLOW)]
