"""`vrpo train` with a reward model: the rewards of pairs that have none, computed once before training and kept.

What deliberately does not live here: what rewards do to a loss (temperature.py), making pairs by rewards
(pairs/run.py).
"""

import json
import math
import shutil
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from tqdm import tqdm

from vrpo.data.formats import NUMBERS, Text, UnusableRow, kind_of, preference_of
from vrpo.data.json_rows import read_records
from vrpo.models.fingerprint import weights_fingerprint
from vrpo.models.reward_model import RewardModel, load_reward_model
from vrpo.rewards.verdict import Answer
from vrpo.store import Parts
from vrpo.training.arguments import PreferenceDataArguments
from vrpo.training.preference_config import VRPOConfig

_PART = 64  # rows whose rewards are written together
_REWARDS = NUMBERS["pairs"][:2]


def check_reward_model(data: PreferenceDataArguments, config: VRPOConfig) -> None:
    """
    Raises:
        ValueError: a reward model that nothing asks for, or a field of one that is not named.
    """
    if data.reward_model_name_or_path is None:
        for name in ("reward_model_form", "reward_model_label"):
            if getattr(data, name) is not None:
                raise ValueError(f"{name} goes with reward_model_name_or_path, which is missing")
    elif config.temperature == "constant":
        raise ValueError("reward_model_name_or_path gives rewards to temperature=reward_scaling, which is not set")
    elif config.structure != "pairs":
        raise ValueError(
            "reward_model_name_or_path gives rewards to pairs, which kto and plackett_luce are not about: leave it out"
        )


def with_rewards(
    data: PreferenceDataArguments, config: VRPOConfig, rows: Dataset, eval_rows: Dataset | None
) -> tuple[Dataset, Dataset | None]:
    """The rows with columns `chosen_reward` and `rejected_reward` from the reward model, if one is named. They are null
    where a row is unusable anyway, or longer than the model reads.

    Raises:
        ValueError: the rows are no pairs, or have rewards already.
    """
    if data.reward_model_name_or_path is None:
        return rows, eval_rows
    parts = {"train": rows} if eval_rows is None else {"train": rows, "eval": eval_rows}
    for part in parts.values():
        _check_columns(part.column_names)
    model = load_reward_model(
        data.reward_model_name_or_path,
        form=data.reward_model_form,
        label=data.reward_model_label,
        too_long="unjudged",
        device=config.device,
    )
    found = {name: _scored(name, part, model, config) for name, part in parts.items()}
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # for the policy
    return found["train"], found.get("eval")


def _check_columns(columns: list[str]) -> None:
    if kind_of(columns) != "pairs":
        raise ValueError(
            "reward_model_name_or_path gives rewards to pairs: rewards order ranked lists, so give them as a column "
            "'rewards'"
        )
    there = [name for name in _REWARDS if name in columns]
    if there:
        raise ValueError(
            f"reward_model_name_or_path: the rows have {' and '.join(there)} already; leave it out to use them, or "
            "remove the columns"
        )


def _scored(name: str, rows: Dataset, model: RewardModel, config: VRPOConfig) -> Dataset:
    """Rows with their rewards, from the file of this model and these rows, which is made if it is not there."""
    settings = {
        "reward_model": weights_fingerprint(model.module.named_parameters()),
        "form": model.form,
        "label": model.label,
        "max_length": model.max_length,
        "rows": _digest(*map(_texts, rows)),
    }
    path = config.folder / "rewards" / f"{name}-{_digest(settings)}.jsonl"
    parts, state = Parts(path, settings, -(-len(rows) // _PART)), PartialState()
    missing = parts.missing()[config.process_index :: config.world_size]
    state.wait_for_everyone()
    for part in tqdm(missing, desc=f"rewards ({name})", unit="part", disable=config.disable_tqdm):
        chosen = rows.select(range(part * _PART, min((part + 1) * _PART, len(rows))))
        parts.write(part, _judged(chosen, model))
    state.wait_for_everyone()
    if config.process_index == 0:
        assert parts.join()
        _clear_others(path, name)
    state.wait_for_everyone()
    found = [record.fields for record in read_records(path, path.name)]
    for column in _REWARDS:
        rows = rows.add_column(column, [row[column] for row in found])
    return rows


def _judged(rows: Dataset, model: RewardModel) -> list[dict[str, Any]]:
    """A line for each row: its rewards, or null."""
    answers = [_answers(row, "prompt" in rows.column_names) for row in rows]
    verdicts = iter(model([answer for both in answers for answer in both]))
    rewards = [[next(verdicts).reward for _ in both] for both in answers]
    judged = [None if not both or any(map(math.isnan, both)) else both for both in rewards]
    return [dict(zip(_REWARDS, both or (None, None), strict=True)) for both in judged]


def _answers(row: Mapping[str, Any], explicit: bool) -> list[Answer]:
    """The two answers of a row, to be judged; none of an unusable one."""
    if row.get("unusable") is not None:
        return []
    try:
        prompt, *answers = preference_of(row, explicit)
    except UnusableRow:
        return []
    return [_answer(prompt, answer) for answer in answers]


def _answer(prompt: Text, answer: Text) -> Answer:
    """What is judged is the last turn; the turns before it belong to what it answers."""
    if isinstance(answer, str) or isinstance(prompt, str):
        return Answer(prompt, str(answer))
    return Answer([*prompt, *answer[:-1]], answer[-1]["content"])


def _texts(row: Mapping[str, Any]) -> list[Any]:
    return [row.get(name) for name in ("prompt", "chosen", "rejected", "unusable")]


def _digest(*values: Any) -> str:
    digest = blake2b(digest_size=8)
    for value in values:
        digest.update(json.dumps(value).encode())
    return digest.hexdigest()


def _clear_others(path: Path, name: str) -> None:
    """Rewards of another model, or of other rows, that an earlier run left."""
    for other in path.parent.glob(f"{name}-*"):
        if not other.name.startswith(path.stem):
            shutil.rmtree(other) if other.is_dir() else other.unlink()
