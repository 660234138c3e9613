"""Files and folders that are there as a whole or not at all, whatever is killed while they are written."""

import glob
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have a file written beside its place and put it there; on disk when this returns.

    What a killed process of this machine left of the same file is cleared away, not what a living one is writing.
    """
    part = _begun(path)
    write(part)
    _on_disk(part)
    part.replace(path)


def write_whole_folder(path: Path, write: Callable[[Path], object]) -> None:
    """The same for a folder, in place of one that is there already."""
    part = _begun(path)
    part.mkdir(parents=True)
    try:
        write(part)
        for file in part.rglob("*"):
            if file.is_file():
                _on_disk(file)
    except BaseException:
        shutil.rmtree(part)
        raise
    if not path.exists():
        part.replace(path)
        return
    old = part.with_name(part.name.removesuffix(".part") + ".old.part")
    path.replace(old)
    part.replace(path)
    shutil.rmtree(old)


def _begun(path: Path) -> Path:
    """Where this process writes what will be put at `path`."""
    begun = f".{path.name}.{platform.node()}"
    for left in path.parent.glob(f"{glob.escape(begun)}.*.part"):
        if _is_dead(left.name.removeprefix(f"{begun}.").partition(".")[0]):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f"{begun}.{os.getpid()}.part")


def _on_disk(file: Path) -> None:
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
