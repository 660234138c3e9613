"""Every field of transformers' TrainingArguments works, or is refused with the reason."""

import copy
import pickle
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from tests.loops import each
from tests.training.runs import settings
from vrpo.training.config import SFTConfig
from vrpo.training.inherited import NOT_OFFERED
from vrpo.training.preference_config import VRPOConfig

WORKS = re.findall(
    r"\w+",
    """output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type
lr_scheduler_kwargs warmup_steps optim optim_args optim_target_modules weight_decay adam_beta1 adam_beta2 adam_epsilon
gradient_accumulation_steps max_grad_norm bf16 fp16 tf32 activation_checkpointing activation_checkpointing_kwargs
gradient_checkpointing gradient_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode
logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter log_level log_level_replica
disable_tqdm report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id eval_strategy
eval_steps eval_delay per_device_eval_batch_size eval_on_start save_only_model save_strategy save_steps
save_on_each_node save_total_limit enable_jit_checkpoint push_to_hub hub_token hub_private_repo hub_model_id
hub_strategy hub_always_push hub_revision load_best_model_at_end metric_for_best_model greater_is_better
ignore_data_skip restore_callback_states_from_checkpoint full_determinism seed data_seed use_cpu accelerator_config
dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
dataloader_prefetch_factor dataloader_multiprocessing_context remove_unused_columns train_sampling_strategy
ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_backend ddp_timeout fsdp
fsdp_config deepspeed debug skip_memory_metrics do_train do_eval resume_from_checkpoint local_rank""",
)
KNOWN_TO_SOME = {"activation_checkpointing", "activation_checkpointing_kwargs"}  # releases of transformers
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"neftune_noise_alpha": 5.0}, "it adds noise to embeddings"),
    ({"label_smoothing_factor": 0.1}, "set label_smoothing"),
    ({"bf16_full_eval": True}, "evaluations compute as training does"),
    ({"fp16_full_eval": True}, "evaluations compute as training does"),
    ({"fp16": True}, "fp16 is about GPUs"),
    ({"average_tokens_across_devices": False}, "weighs the same"),
    ({"use_liger_kernel": True}, "replaces the forward"),
    ({"use_cache": True}, "decodes nothing"),
    ({"torch_empty_cache_steps": 2}, "transformers' own step"),
    ({"auto_find_batch_size": True}, "another run"),
    ({"include_num_input_tokens_seen": "all"}, "as many as draws"),
    ({"include_num_input_tokens_seen": True}, "as many as draws"),
    ({"prediction_loss_only": True}, "metrics of their own"),
    ({"eval_accumulation_steps": 1}, "metrics of their own"),
    ({"eval_do_concat_batches": False}, "metrics of their own"),
    ({"include_for_metrics": ["loss"]}, "metrics of their own"),
    ({"batch_eval_metrics": True}, "metrics of their own"),
    ({"label_names": ["labels"]}, "metrics of their own"),
    ({"ddp_static_graph": True}, "as many forwards as it needs"),
    ({"dataloader_in_order": False}, "in one order"),
    ({"do_predict": True}, "vrpo generate"),
    ({"do_eval": True}, "set eval_strategy"),
    ({"local_rank": 3}, "by the variable LOCAL_RANK"),
    ({"fsdp_config": {"version": 2}}, "fsdp_config belongs to fsdp"),
    ({"metric_for_best_model": "loss"}, "metric_for_best_model is about evaluations"),
    ({"load_best_model_at_end": True}, "load_best_model_at_end is about evaluations"),
    ({"optim": "adamw_torch", "optim_args": "momentum=0.9"}, "adamw_torch does not read 'momentum'"),
    ({"optim": "sgd", "optim_args": "momentum=much"}, "momentum is 'much', which is no number"),
    ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type: cosine_with_min_lr cannot be made"),
    ({"lr_scheduler_type": "warmup_stable_decay"}, "lr_scheduler_type: warmup_stable_decay cannot be made"),
    ({"accelerator_config": {"split_batches": True}}, "split_batches"),
    ({"accelerator_config": {"nonsense": True}}, "accelerator_config: there is no 'nonsense'"),
    ({"ddp_timeout": -3}, "ddp_timeout must be from 1"),
    ({"train_sampling_strategy": "batch_rebalance"}, "balance_batches deals"),
    ({"train_sampling_strategy": "group_by_length"}, "balance_batches deals"),
    ({"length_column_name": "size"}, "group_by_length, which is not offered"),
    ({"optim": "lomo"}, "in the middle of a backward"),
    ({"optim": "galore_adamw_layerwise"}, "in the middle of a backward"),
    ({"optim": "schedule_free_adamw"}, "holds other weights"),
    ({"optim_target_modules": ["q_proj"]}, "optim is sgd"),
    ({"lr_scheduler_kwargs": "nonsense"}, "write a JSON object"),
    ({"lr_scheduler_kwargs": "[1]"}, "give a mapping"),
    ({"lr_scheduler_kwargs": {"min_lr": 0.1}}, "linear does not take 'min_lr'; it takes none"),
    ({"gradient_checkpointing_kwargs": "nonsense"}, "write a JSON object"),
    ({"optim_args": "nonsense"}, "write name=value"),
    ({"torch_compile_backend": "nonsense"}, "there is no 'nonsense'"),
    ({"torch_compile_mode": "nonsense"}, "there is no 'nonsense'; take one of default"),
    ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches is not offered as True"),
    ({"accelerator_config": {"even_batches": False}}, "even_batches is not offered as False"),
    ({"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 2}}}, "gradient_accumulation_kwargs"),
]


def test_every_field_is_known() -> None:
    """Kills: a field of a new release, or one that was forgotten, accepted and ignored."""
    there = {each.name for each in fields(TrainingArguments)}
    assert len(WORKS) == len(set(WORKS))
    assert not set(WORKS) & NOT_OFFERED.keys()
    assert there <= {*WORKS, *NOT_OFFERED}
    assert {*WORKS, *NOT_OFFERED} - there <= KNOWN_TO_SOME


@each(("given", "reason"), REFUSED, ids=str)
def test_what_would_be_ignored_is_refused(tmp_path: Path, given: dict[str, Any], reason: str) -> None:
    """Kills: a switch of transformers' own step or evaluation, which does nothing here or something wrong."""
    with pytest.raises(ValueError, match=reason) as error:
        VRPOConfig(**{**settings(tmp_path), **given})
    assert next(iter(given)) in str(error.value)


def test_defaults_and_neutral_values_are_taken(tmp_path: Path) -> None:
    """Kills: a refusal of what says nothing. Compiled steps compute what others do."""
    neutral = {"label_smoothing_factor": 0.0, "include_for_metrics": [], "eval_strategy": "steps", "do_eval": True}
    SFTConfig(**settings(tmp_path, **neutral, eval_steps=1))
    assert VRPOConfig(**settings(tmp_path, torch_compile_backend="eager")).tf32 is False


def test_a_copy_of_the_settings_keeps_its_secret(tmp_path: Path) -> None:
    """And a pickle, which lies beside the weights, has none. Kills: a copy made as a pickle."""
    config = VRPOConfig(**settings(tmp_path, hub_token="secret"))
    assert copy.deepcopy(config).hub_token == copy.copy(config).hub_token == "secret"
    assert pickle.loads(pickle.dumps(config)).hub_token is None
