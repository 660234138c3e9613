"""Fields of transformers' TrainingArguments that the trainers here cannot honour, and why: refused, never ignored.

What a trainer computes is its own (masks that are replayed, a bound and not logits, one forward for each draw), so what
transformers would do in its own step or its own evaluation does not take place. tests/training/test_inherited.py has
the list of the fields that work, so that a field of a new release of transformers is noticed.
"""

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import MISSING, fields
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from transformers import TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, get_scheduler
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import SchedulerType

_OWN_EVALUATION = "evaluations here have metrics of their own, which are means over rows of bounds, and keep no logits"
NOT_OFFERED = {  # any other value than transformers' default
    "neftune_noise_alpha": "it adds noise to embeddings, and values, gradients and references of a step must belong to "
    "one network: regularise by weight_decay, or train fewer steps",
    "label_smoothing_factor": "it smooths the targets of a cross entropy, which is not what is minimised here: of "
    "labels that may be wrong, set label_smoothing, with loss_type sigmoid, robust or exo_pair",
    "bf16_full_eval": "evaluations compute as training does: set bf16, or load weights in bfloat16 (dtype)",
    "fp16_full_eval": "evaluations compute as training does: set fp16, or load weights in float16 (dtype)",
    "average_tokens_across_devices": "each item of a step weighs the same, over all processes",
    "use_liger_kernel": "it replaces the forward of a causal model with a loss of its own: torch_compile fuses kernels",
    "liger_kernel_config": "it belongs to use_liger_kernel, which is not offered",
    "use_cache": "a training step decodes nothing",
    "torch_empty_cache_steps": "it empties the cache in transformers' own step: set the environment variable "
    "PYTORCH_CUDA_ALLOC_CONF to expandable_segments:True, or lower max_tokens_per_forward",
    "auto_find_batch_size": "it changes how many rows a step sees, which makes it another run: max_tokens_per_forward "
    "bounds the memory of a step of any size",
    "include_num_input_tokens_seen": "it counts the tokens of one forward of each row, and a row has as many as draws",
    "prediction_loss_only": _OWN_EVALUATION,
    "eval_do_concat_batches": _OWN_EVALUATION,
    "eval_use_gather_object": _OWN_EVALUATION,
    "eval_accumulation_steps": _OWN_EVALUATION,
    "include_for_metrics": _OWN_EVALUATION,
    "batch_eval_metrics": _OWN_EVALUATION,
    "label_names": _OWN_EVALUATION,
    "parallelism_config": "rows are not split over processes: shard weights by FSDP2 or ZeRO-3 (docs/scaling.md)",
    "ddp_static_graph": "a step has as many forwards as it needs, not always the same",
    "dataloader_in_order": "a run that can be gone on with sees its rows in one order",
    "length_column_name": "it belongs to train_sampling_strategy=group_by_length, which is not offered",
    "do_predict": "a trainer predicts nothing: vrpo generate and vrpo eval do",
}
_OPTIMIZERS = {  # what in the name of an optimizer it does with a step of several backwards
    "layerwise": "it changes weights in the middle of a backward, of which a step has several",
    "lomo": "it changes weights in the middle of a backward, of which a step has several",
    "schedule_free": "it holds other weights while it trains than it evaluates and saves",
}
_PACKAGES = {  # what the names of optimizers contain -> the module that has them
    "galore": "galore_torch",
    "apollo": "apollo_torch",
    "grokadamw": "grokadamw",
    "stable_adamw": "optimi",
    "adamw_torch_4bit": "torchao",
    "adamw_torch_8bit": "torchao",
    "anyprecision": "torchdistx",
    "adamw_torch_xla": "torch_xla",
    "npu": "torch_npu",
    "bnb": "bitsandbytes",
    "paged": "bitsandbytes",
    "_8bit": "bitsandbytes",
    "_32bit": "bitsandbytes",
    "ademamix": "bitsandbytes",
}
_OPTIM_ARGS = {  # what the names of optimizers contain -> the names that transformers reads in optim_args
    "galore": "rank update_proj_gap scale proj_type",
    "apollo": "rank proj scale_type update_proj_gap scale proj_type",
    "grokadamw": "alpha_init lamb gamma grokking_signal_decay_rate gradient_clipping",
    "stable_adamw": "max_lr kahan_sum decouple_lr",
    "adamw_torch_4bit": "block_size bf16_stochastic_round",
    "adamw_torch_8bit": "block_size bf16_stochastic_round",
    "anyprecision": "use_kahan_summation momentum_dtype variance_dtype compensation_buffer_dtype",
    "ademamix": "beta1 beta2 beta3 alpha eps t_alpha t_beta3",
    "rmsprop_bnb": "",  # takes text for numbers
    "sgd": "momentum dampening weight_decay nesterov",
    "adagrad": "lr_decay weight_decay eps",
    "rmsprop": "momentum alpha eps weight_decay centered",
}
_NO_NUMBERS = {"nesterov", "centered", "proj", "scale_type", "proj_type", "kahan_sum", "decouple_lr"}
_NO_NUMBERS |= {"bf16_stochastic_round", "use_kahan_summation"}
_MAPPINGS = ("lr_scheduler_kwargs", "activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")
_ACCELERATOR: dict[str, tuple[Any, ...]] = {  # fields of accelerator_config, and the values that work
    "dispatch_batches": (None, False),
    "split_batches": (False,),
    "even_batches": (True,),
    "use_seedable_sampler": (True,),
    "gradient_accumulation_kwargs": (None, {}),
}


def check_inherited(args: TrainingArguments) -> None:
    """Before transformers fills in what is not given.

    Raises:
        ValueError: a field that would be ignored, or would change what is computed, with the reason.
    """
    for each in fields(TrainingArguments):
        default: Any = each.default if each.default_factory is MISSING else each.default_factory()
        off = (default, None, False if default == "no" else default)  # as a command line reads "no"
        if each.name in NOT_OFFERED and getattr(args, each.name) not in off:
            raise ValueError(f"{each.name} is not offered: {NOT_OFFERED[each.name]}. Leave it out")
    if args.train_sampling_strategy in ("batch_rebalance", "group_by_length"):
        raise ValueError(
            f"train_sampling_strategy: {args.train_sampling_strategy} is not offered: balance_batches deals rows by "
            "their length, of random"
        )
    name = str(getattr(args.optim, "value", args.optim))
    for part, reason in _OPTIMIZERS.items():
        if part in name:
            raise ValueError(f"optim: {name} is not offered: {reason}. Take another one, such as adamw_torch")
    if args.optim_target_modules and not name.startswith(("galore", "apollo")):
        raise ValueError(f"optim_target_modules belongs to optimizers of GaLore and APOLLO, and optim is {name}")
    if args.do_eval and args.eval_strategy == "no":
        raise ValueError("do_eval says nothing of when to evaluate: set eval_strategy to steps or epoch")
    for field in _MAPPINGS:
        _check_mapping(field, getattr(args, field))
    if str(args.local_rank) not in ("-1", os.environ.get("LOCAL_RANK")):  # deepspeed's launcher says it as well
        raise ValueError("local_rank: a launcher says it (accelerate launch, torchrun), by the variable LOCAL_RANK")
    _check_accelerator(args.accelerator_config)
    if args.fsdp_config and not args.fsdp:
        raise ValueError("fsdp_config belongs to fsdp, which is off: set fsdp, or take recipes/accelerate/fsdp2.yaml")
    if args.eval_strategy == "no":
        for field in ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"):
            if getattr(args, field):
                raise ValueError(
                    f"{field} is about evaluations, and there are none: set eval_strategy to steps or epoch"
                )
    _check_optim_args(name, args.optim_args)
    if args.deepspeed and find_spec("deepspeed") is None:
        raise ValueError("deepspeed is not installed here: install it, or leave it out (recipes/accelerate has FSDP2)")
    _check_compiled(args.torch_compile_backend, args.torch_compile_mode)


def _check_optim_args(optimizer: str, given: str | None) -> None:
    """
    Raises:
        ValueError: text that is no list of name=value, or a name or value that this optimizer does not read.
    """
    known = next((names for part, names in _OPTIM_ARGS.items() if part in optimizer), "").split()
    for part in given.split(",") if given else ():
        name, *values = part.replace(" ", "").split("=")
        if len(values) != 1:
            raise ValueError(f"optim_args is {given!r}: write name=value, several with a comma between them")
        if name not in known:
            raise ValueError(f"optim_args: {optimizer} does not read {name!r}; it reads {', '.join(known) or 'none'}")
        if name not in _NO_NUMBERS and not name.endswith("dtype"):
            try:
                float(values[0])
            except ValueError as error:
                raise ValueError(f"optim_args: {name} is {values[0]!r}, which is no number") from error


def _check_mapping(field: str, value: Any) -> None:
    """
    Raises:
        ValueError: text that is no JSON object, of which transformers would not say where it stands.
    """
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f'{field} is {value!r}: write a JSON object, such as {{"name": 1}} ({error})') from error
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f'{field} is {value!r}: give a mapping, in JSON such as {{"name": 1}}')


def _check_accelerator(given: Any) -> None:
    """
    Raises:
        ValueError: accelerate has no such field; transformers would say so in a traceback.
    """
    if isinstance(given, str) and Path(given).is_file():
        try:
            given = json.loads(Path(given).read_bytes())
        except ValueError as error:
            raise ValueError(f"accelerator_config: {given} is no JSON: {error}") from error
    elif not isinstance(given, AcceleratorConfig | type):
        _check_mapping("accelerator_config", given)
        given = json.loads(given) if isinstance(given, str) else given
    known = [each.name for each in fields(AcceleratorConfig)]
    for name in given if isinstance(given, Mapping) else ():
        if name not in known:
            raise ValueError(f"accelerator_config: there is no {name!r}; there are {', '.join(known)}")


def _check_compiled(backend: str | None, mode: str | None) -> None:
    """
    Raises:
        ValueError: there is no such way to compile.
    """
    if backend is not None and backend.upper() not in DynamoBackend.__members__:
        raise ValueError(f"torch_compile_backend: there is no {backend!r}; inductor is torch's own")
    if mode is None or backend not in (None, "inductor"):
        return
    from torch._inductor import list_mode_options  # slow

    if mode not in list_mode_options():
        raise ValueError(f"torch_compile_mode: there is no {mode!r}; take one of {', '.join(list_mode_options())}")


def _check_schedule(args: TrainingArguments) -> None:
    """
    Raises:
        ValueError: this schedule does not take what lr_scheduler_kwargs has, or takes more: found out by making it.
    """
    kind, said = SchedulerType(args.lr_scheduler_type), args.lr_scheduler_kwargs or {}
    assert not isinstance(said, str)  # transformers has read it
    given = dict(said)
    make: Any = TYPE_TO_SCHEDULER_FUNCTION[kind]
    known = signature(make).parameters
    own = [name for name in known if name not in ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")]
    for name in given:
        if name not in own and "kwargs" not in own:
            raise ValueError(f"lr_scheduler_kwargs: {kind.value} does not take {name!r}; it takes {own or 'none'}")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
    try:
        with warnings.catch_warnings(action="ignore"):  # of a step of the schedule before one of the optimizer
            schedule = get_scheduler(kind, optimizer, 0, 10, given)
            schedule.step(1.0) if "kwargs" in own else schedule.step()
    except (ValueError, TypeError) as error:
        takes = ", ".join(own).replace("kwargs", "what its class in torch takes") or "none"
        raise ValueError(
            f"lr_scheduler_type: {kind.value} cannot be made with lr_scheduler_kwargs {given}: {error}. It takes "
            f"{takes}"
        ) from error


def check_resolved(args: TrainingArguments) -> None:
    """Once transformers knows the device and has read what is nested.

    Raises:
        ValueError: as `check_inherited`.
    """
    for name, values in _ACCELERATOR.items():
        found = getattr(args.accelerator_config, name)
        if found not in values:
            raise ValueError(
                f"accelerator_config: {name} is not offered as {found}: batches are made on each process, in an order "
                "that a run can go on with, and gradient_accumulation_steps says how many make a step. Leave it out"
            )
    if args.fp16 and args.device.type == "cpu":
        raise ValueError("fp16 is about GPUs: a CPU would compute in float32. Set bf16, or leave it out")
    _check_packages(args)
    _check_schedule(args)


def _check_packages(args: TrainingArguments) -> None:
    """
    Raises:
        ValueError: report_to or optim is done by a package that is not installed; transformers would say so later.
    """
    there = get_available_reporting_integrations()
    for name in args.report_to or ():
        if name not in INTEGRATION_TO_CALLBACK:
            raise ValueError(
                f"report_to: there is no {name!r}. Choose among {', '.join(INTEGRATION_TO_CALLBACK)}, none"
            )
        if name not in there and name != "flyte":  # which is not listed where it is installed
            raise ValueError(f"report_to: {name} is not installed here. Install it, or choose none")
    optimizer = str(getattr(args.optim, "value", args.optim))
    package = next((package for part, package in _PACKAGES.items() if part in optimizer), None)
    if package is not None and find_spec(package) is None:
        raise ValueError(f"optim {optimizer} is in the package {package}, which is not installed: choose adamw_torch")
