"""Files and folders that are there as a whole or not at all, whatever is killed while they are written."""

import errno
import fcntl
import glob
import os
import platform
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have a file written beside its place and put it there; on disk when this returns.

    What a killed process of this machine left of the same file is cleared away, not what a living one is writing.
    """
    part = _begun(path)
    write(part)
    as_umask(part)
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
                as_umask(file)
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


def check_writable(path: Path, field: str, *, folder: bool = False) -> None:
    """Make the folders that a file, or a folder, is to be in, and find out whether it can be written there.

    Raises:
        ValueError: it cannot; names the field.
    """
    if path.is_dir() and not folder:
        raise ValueError(f"{field} {path}: is a folder. Give the name of a file.")
    within = path if folder else path.parent
    try:
        within.mkdir(parents=True, exist_ok=True)
        trial = within / f".{os.getpid()}.part"
        trial.write_bytes(b"")
        trial.unlink()
    except OSError as error:
        raise ValueError(f"{field} {path}: cannot be written: {error.strerror}. Give another path.") from error


@contextmanager
def locked(place: Path) -> Iterator[None]:
    """While this holds, no other process holds the same file or folder.

    The kernel gives the lock up when its process ends, however it ends. What this process holds already is held, so a
    command may run inside another one. Of several processes of one run only the main one should ask.

    Args:
        place: a folder that exists, or a file that may be written later. The lock in a folder is `_lock`: what begins
            so is not uploaded with the folder.

    Raises:
        ValueError: another process holds it.
    """
    file = place / "_lock" if place.is_dir() else place.with_name(f".{place.name}.lock")
    descriptor = _lock(file, place)
    if descriptor is None:
        yield
        return
    try:
        os.write(descriptor, f"{os.getpid()} {platform.node()}".encode())
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(file: Path, place: Path) -> int | None:
    """The open lock file; None if this process holds it already, or nobody can."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if file.exists() and os.path.samestat(os.fstat(descriptor), file.stat()):
                os.ftruncate(descriptor, 0)
                return descriptor
            os.close(descriptor)  # the process before unlinked it meanwhile
        except OSError as error:
            process, _, node = os.read(descriptor, 1000).decode(errors="replace").partition(" ")
            os.close(descriptor)
            if isinstance(error, BlockingIOError) and (process, node) == (str(os.getpid()), platform.node()):
                return None
            if isinstance(error, BlockingIOError):
                whose = f"process {process}" + (f" of {node}" if node != platform.node() else "")
                raise ValueError(
                    f"{place}: another run ({whose}) is writing here. Wait for it or choose another output."
                ) from None
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
                raise
            warnings.warn(f"{place}: this file system has no locks. Start one run at a time here.", stacklevel=3)
            return None


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


def as_umask(file: Path) -> None:
    """Give a file the mode that other files have here; safetensors lets nobody else read its own."""
    mask = os.umask(0)
    os.umask(mask)
    file.chmod(0o666 & ~mask)
