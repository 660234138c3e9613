"""Checkpoints that are whole: a manifest, written last, has the size and the digest of each file, and what the run is.
Which one a run goes on from, and which ones are kept.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.trainer_callback import TrainerState
from transformers.utils import logging

from vrpo.models.fingerprint import file_digest
from vrpo.store import write_whole
from vrpo.training.config import DiffusionConfig

logger = logging.get_logger(__name__)

MANIFEST = "manifest.json"
_STATE = "trainer_state.json"


def seal(checkpoint: Path, run: Mapping[str, Any], changes: Sequence[str]) -> None:
    """Say that the checkpoint is whole, once all of it is on disk.

    Args:
        run: what the run is (`identity`).
        changes: in which it is not the run that it was when it began.
    """
    files = {path.relative_to(checkpoint).as_posix(): path for path in sorted(checkpoint.rglob("*")) if path.is_file()}
    files.pop(MANIFEST, None)
    for path in files.values():
        _on_disk(path)
    found = {name: {"bytes": path.stat().st_size, "digest": file_digest(path)} for name, path in files.items()}
    text = json.dumps({"run": run, "changes": changes, "files": found}, indent=1, allow_nan=False) + "\n"
    for folder in {path.parent for path in files.values()}:
        _on_disk(folder)
    write_whole(checkpoint / MANIFEST, lambda part: part.write_text(text))
    _on_disk(checkpoint)
    _on_disk(checkpoint.parent)


def manifest_of(checkpoint: Path) -> dict[str, Any]:
    """`run`, `changes` and `files` of a checkpoint."""
    return dict(json.loads((checkpoint / MANIFEST).read_bytes()))


def problem_of(checkpoint: Path) -> str | None:
    """Why a run cannot go on from this checkpoint; None: it can."""
    try:
        manifest = manifest_of(checkpoint)
        files = {name: (int(said["bytes"]), said["digest"]) for name, said in manifest["files"].items()}
        dict(manifest["run"]), list(manifest["changes"])
    except FileNotFoundError:
        return f"it has no {MANIFEST}, which is written last: it was not finished, or not by this version of vrpo"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    for name, (size, _) in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes of {size}"
    for name, (_, digest) in files.items():
        if file_digest(checkpoint / name) != digest:
            return f"{name} has other bytes than were written"
    if not any(name.startswith("rng_state") for name in files):
        return "it has no state of the optimizer (save_only_model)"
    return None


def checkpoint_of(given: str | bool | None, folder: Path) -> Path | None:
    """What `resume_from_checkpoint` says: a folder as it is; `true`, the last whole checkpoint of output_dir; `auto`,
    the same if there is one, so that one command both begins a run and goes on with it.

    Raises:
        ValueError: `true`, and there is none; or what is named is none, or not whole.
    """
    word = str(given).lower()
    if given is None or word == "false":
        return None
    if word in ("true", "auto"):
        found = last_checkpoint(folder)
        if found is None and word == "true":
            raise ValueError(
                f"--resume_from_checkpoint true: {folder} holds no checkpoint that is whole; auto begins without one"
            )
        return found
    checkpoint = check_named(given)
    problem = None if checkpoint is None else problem_of(checkpoint)
    if problem is not None:
        raise ValueError(
            f"--resume_from_checkpoint {checkpoint}: {problem}. Name another one; true takes the last of output_dir "
            "that is whole"
        )
    return checkpoint


def check_named(given: str | bool | None) -> Path | None:
    """The folder that `resume_from_checkpoint` names; None: it names none.

    Raises:
        ValueError: there is no such folder.
    """
    if given is None or str(given).lower() in ("true", "auto", "false"):
        return None
    if not Path(str(given)).is_dir():
        raise ValueError(f"--resume_from_checkpoint {given}: no such folder; true and auto find the last one")
    return Path(str(given))


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the most steps that is whole; what is passed over is said."""
    for path in reversed(checkpoints(folder)):
        problem = problem_of(path)
        if problem is None:
            return path
        logger.warning(f"{path} is passed over: {problem}")
    return None


def sealed(folder: Path) -> list[Path]:
    """Those that were written to their end, in the order of their steps; not looked at any further."""
    return [path for path in checkpoints(folder) if (path / MANIFEST).is_file()]


def rotate(config: DiffusionConfig, checkpoint: Path) -> None:
    """Remove what `save_total_limit` has no room for beside this checkpoint: also after a kill in the middle of
    that."""
    if config.save_total_limit is None or config.save_total_limit < 1:
        return
    best = TrainerState.load_from_json(str(checkpoint / _STATE)).best_model_checkpoint
    protected = {checkpoint} if best is None else {checkpoint, Path(best)}
    older = [path for path in checkpoints(checkpoint.parent) if _steps(path) <= _steps(checkpoint)]
    surplus = len(older) - max(config.save_total_limit, len(protected))
    halves_first = sorted(older, key=lambda path: (path / MANIFEST).is_file())
    for path in [path for path in halves_first if path not in protected][: max(surplus, 0)]:
        (path / MANIFEST).unlink(missing_ok=True)  # first: half of it is none
        shutil.rmtree(path)


def checkpoints(folder: Path) -> list[Path]:
    """Those of a run, whole or not, in the order of their steps."""
    return sorted((path for path in folder.glob("checkpoint-*") if path.name[11:].isdecimal()), key=_steps)


def _steps(checkpoint: Path) -> int:
    return int(checkpoint.name[11:])


def _on_disk(path: Path) -> None:
    """The bytes of a file, or the entries of a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
