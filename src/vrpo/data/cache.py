"""Tables that were made once, kept where datasets keeps its own: named by everything that they depend on."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import file_digest, sha256
from importlib.metadata import version
from pathlib import Path

import datasets
from datasets.fingerprint import Hasher, get_temporary_cache_files_directory
from filelock import FileLock

_MAKERS = ("datasets", "jinja2", "pyarrow", "tokenizers", "transformers")  # whose versions a table depends on


def key_of(*content: object) -> str:
    """A name for what is made of this content by this code: equal content, equal name, also in another process."""
    return str(Hasher.hash([_code(), *content]))


def digest_of(path: Path) -> str:
    """What stands for the content of a file.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


@contextmanager
def kept(key: str) -> Iterator[Path]:
    """The file that the table of this name is kept in, or will be; one process at a time, so that of several one makes
    it and the others find it.

    Raises:
        ValueError: the cache's folder cannot be written.
    """
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "vrpo"
    if not datasets.is_caching_enabled():
        folder = Path(get_temporary_cache_files_directory())
    lock = FileLock(folder / f"{key}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise ValueError(f"HF_DATASETS_CACHE: {folder} cannot be written ({error}). Set another folder") from error
    try:
        yield folder / f"{key}.arrow"
    finally:
        lock.release()


@cache
def _code() -> str:
    """The text of this folder's modules, and the versions of what they call."""
    digest = sha256(" ".join(map(version, _MAKERS)).encode())
    for module in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(module.read_bytes())
    return digest.hexdigest()
