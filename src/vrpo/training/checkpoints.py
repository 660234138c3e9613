"""Which checkpoint a run goes on from: the last one that is whole."""

import json
import shutil
from pathlib import Path
from typing import Any

from transformers.trainer_callback import TrainerState

from vrpo.training.config import DiffusionConfig

_STATE = "trainer_state.json"  # what transformers writes last


def checkpoint_of(config: DiffusionConfig) -> str | None:
    """What `resume_from_checkpoint` says: a folder as it is; `true`, the last whole checkpoint of output_dir; `auto`,
    the same if there is one, so that one command both begins a run and goes on with it.

    Raises:
        ValueError: `true`, and there is none.
    """
    given: Any = config.resume_from_checkpoint
    word = str(given).lower()
    if given is None or word not in ("true", "auto"):
        return given
    found = last_checkpoint(config.folder)
    if found is None and word == "true":
        raise ValueError(
            f"--resume_from_checkpoint true: {config.folder} holds no checkpoint that is whole; auto begins without one"
        )
    return None if found is None else str(found)


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the most steps whose state can be read: one that a run was killed in the middle of has none."""
    return next((path for path in reversed(_checkpoints(folder)) if _is_whole(path)), None)


def clear_halves(config: DiffusionConfig, checkpoint: Path | None) -> None:
    """Remove what a kill left of checkpoints after this one (None: of any): they are written again, and peft would take
    half a card for one to add to."""
    first = -1 if checkpoint is None else _steps(checkpoint)
    for path in [path for path in _checkpoints(config.folder) if _steps(path) > first and not _is_whole(path)]:
        shutil.rmtree(path)


def finish_rotation(config: DiffusionConfig, checkpoint: Path) -> None:
    """Remove what `save_total_limit` had no room for when this checkpoint of output_dir was made: the run may have been
    killed while it did that, and transformers takes a folder that is half removed for a new one."""
    best = TrainerState.load_from_json(str(checkpoint / _STATE)).best_model_checkpoint
    protected = {checkpoint} if best is None else {checkpoint, Path(best)}
    older = [path for path in _checkpoints(config.folder) if _steps(path) <= _steps(checkpoint)]
    surplus = len(older) - max(config.save_total_limit or len(older), len(protected))
    for path in [path for path in older if path not in protected][: max(surplus, 0)]:
        shutil.rmtree(path)


def _checkpoints(folder: Path) -> list[Path]:
    """In the order of their steps."""
    return sorted((path for path in folder.glob("checkpoint-*") if path.name[11:].isdecimal()), key=_steps)


def _steps(checkpoint: Path) -> int:
    return int(checkpoint.name[11:])


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / _STATE).read_text())
    except (OSError, ValueError):
        return False
    return True
