"""Can programs be confined on this machine at all? Asked of the kernel, not of the code under test."""

import ctypes
import platform
import sys


def _without() -> str | None:
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        return f"programs cannot be confined on {sys.platform}, {platform.machine()}"
    version = ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), ctypes.c_uint(1))
    return None if version > 0 else "this kernel has no Landlock"


WITHOUT = _without()
