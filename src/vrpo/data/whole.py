"""Files that are there as a whole or not at all, whatever is killed while they are written."""

import glob
import os
import platform
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have a file written beside its place and put it there; on disk when this returns.

    What a killed process of this machine left of the same file is cleared away, not what a living one is writing.
    """
    begun = f".{path.name}.{platform.node()}"
    for left in path.parent.glob(f"{glob.escape(begun)}.*.part"):
        if _is_dead(left.suffixes[-2].removeprefix(".")):
            left.unlink(missing_ok=True)
    part = path.with_name(f"{begun}.{os.getpid()}.part")
    write(part)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)


def _is_dead(process: str) -> bool:
    """Whether no process has this number; one that may not be asked lives."""
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, ValueError):
        pass
    return False
