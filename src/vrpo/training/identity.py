"""What a run is, by content: a checkpoint carries it, and a run that goes on from there is compared with it."""

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from datasets import Dataset
from peft import PeftModel
from transformers import TrainingArguments
from xxhash import xxh3_128

from vrpo.models.fingerprint import config_fingerprint, frozen_weights, weights_fingerprint
from vrpo.models.hf import HFDenoiser
from vrpo.store import differences
from vrpo.training.config import DiffusionConfig
from vrpo.training.preference_config import VRPOConfig

Record = Mapping[str, Any]

_INHERITED = (  # transformers' fields that what is learnt depends on
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "num_train_epochs", "max_steps"),
    *("optim", "optim_args", "optim_target_modules", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("max_grad_norm", "bf16", "fp16", "tf32", "seed", "data_seed", "ignore_data_skip"),
    *("dataloader_drop_last", "train_sampling_strategy"),
)
_IDLE = {  # fields of ours that change what is told, or how fast it goes, and nothing that is learnt
    *("max_tokens_per_forward", "balance_batches", "gradient_passes", "on_bad_rows", "ref_terms_dir"),
    *("log_gradient_snr", "sample_steps", "num_samples", "sample_max_new_tokens", "warn_displacement"),
    *("resume_with_changes", "stop_at_non_finite", "dataset_num_proc", "eval_num_times"),
}
_OF_PLACE = {"base_model_name_or_path", "revision", "inference_mode", "peft_version"}  # of an adapter's configuration
ANCHORS = ("references", "frozen weights")  # what a run is held to: not even `resume_with_changes` replaces it
_EVALUATED = "evaluation rows"
_NAMED = 12  # changes in a message, at most
_ROWS = 1000  # of a table at a time


def settings_of(config: DiffusionConfig) -> dict[str, Any]:
    """The settings that what is learnt depends on, as JSON values; sizes of batches as the examples of a step."""
    inherited = {each.name for each in fields(TrainingArguments)}
    ours = [each.name for each in fields(config) if each.name not in inherited | _IDLE]
    values = config.to_dict()
    step = config.per_device_train_batch_size * config.gradient_accumulation_steps * config.world_size
    if isinstance(config, VRPOConfig) and config.structure == "labels":  # whose baseline couples what is run together
        ours.append("gradient_accumulation_steps")
    found = {"examples in a step": step, **{name: values[name] for name in (*_INHERITED, *ours)}}
    return found | {"tf32": bool(values["tf32"])}  # None is torch's default


def model_record(denoiser: HFDenoiser) -> dict[str, str]:
    """What a checkpoint of this model goes on: names and shapes of its weights, how they are read; under an adapter
    also what is frozen, and the adapter's configuration."""
    module = denoiser.module
    shapes = "\n".join(f"{name} {tuple(part.shape)}" for name, part in sorted(module.named_parameters()))
    count = sum(part.numel() for part in module.parameters())
    record = {"layout": f"{count} weights {_hash(shapes)}", "conventions": str(denoiser.conventions)}
    record["numbers of config.json"] = config_fingerprint(module.config)
    if isinstance(module, PeftModel):
        config = module.active_peft_config.to_dict().items()
        said = {name: value for name, value in config if name not in _OF_PLACE and value not in (None, False, [], {})}
        record["adapter"] = json.dumps(said, sort_keys=True, default=lambda value: sorted(map(str, value)))
        record["frozen weights"] = weights_fingerprint(frozen_weights(module))
    return record


def rows_record(rows: Any) -> str | None:
    """How many rows, and a hash of all that is in them, in their order; of a dict of tables, of each."""
    if isinstance(rows, dict):
        return ", ".join(f"{name}: {rows_record(part)}" for name, part in rows.items())
    if rows is None or not isinstance(rows, Dataset):
        return None if rows is None else f"a {type(rows).__name__}"
    return f"{len(rows)} rows {rows_digest(rows)}"


def rows_digest(rows: Dataset) -> str:
    """A hash of a table's columns and all that is in them, wherever the table is and however it was made."""
    digest = xxh3_128(" ".join(sorted(rows.column_names)).encode())
    table = rows.select_columns(sorted(rows.column_names)).with_format("arrow")
    for part in table.iter(batch_size=_ROWS):
        for batch in part.combine_chunks().to_batches():
            digest.update(batch.serialize())
    return str(digest.hexdigest())


def check_same(then: Record, now: Record, checkpoint: str, *, changes: bool) -> list[str]:
    """What has changed since the checkpoint; nothing, unless changes are wanted.

    Raises:
        ValueError: something has, and nobody asked for it; or it is what the run is anchored to.
    """
    begins_or_ends = None in (then.get(_EVALUATED), now.get(_EVALUATED))  # to evaluate, or not, changes nothing learnt
    free = {_EVALUATED: None} if begins_or_ends else {}
    changed = differences({**then, **free}, {**now, **free})
    some = "; ".join(changed[:_NAMED]) + (f"; and {len(changed) - _NAMED} more" if len(changed) > _NAMED else "")
    if any(then.get(name) != now.get(name) for name in ANCHORS):
        raise ValueError(
            f"resume_from_checkpoint: {checkpoint} is of a run that began with other models: {some}. "
            "Give the model and the references that it began with, or begin a new run in another output_dir"
        )
    if changed and not changes:
        raise ValueError(
            f"resume_from_checkpoint: {checkpoint} is of another run: {some}. Go on with what it was, "
            "begin anew in another output_dir, or set resume_with_changes"
        )
    return changed


def _hash(text: str) -> str:
    return str(xxh3_128(text.encode()).hexdigest())
