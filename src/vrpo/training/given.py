"""What a trainer is given: a model as a denoiser, and refused where it would train wrongly without an error or where
Python would fail later, in other words."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vrpo.models.adapter import check_layers, with_adapter
from vrpo.models.causal import CausalDenoiser, CausalLikelihood, as_causal, load_causal
from vrpo.models.hf import HFDenoiser, MaskedDiffusion, is_quantized, is_spread
from vrpo.models.load import adapt, load
from vrpo.models.precision import weights_dtype
from vrpo.training.config import DiffusionConfig

Config = TypeVar("Config", bound=DiffusionConfig)
_NOT_TAKEN = {  # arguments of other trainers, and what to do instead
    "compute_loss_func": "loss_type names the loss (docs/losses.md)",
    "compute_metrics": "metrics are of items, not of predictions (docs/training_metrics.md); a callback's on_evaluate "
    "gets them",
    "data_collator": "the trainer makes batches, which carry the keys of draws",
    "formatting_func": "map the rows before, to the columns of docs/data.md",
    "model_init": "make the model and give it as model",
    "optimizer_cls_and_kwargs": "give optimizers=(optimizer, scheduler), or optim and optim_args in args",
    "preprocess_logits_for_metrics": "evaluation keeps no logits",
    "quantization_config": "load the model with it: vrpo.load(name, quantization_config=...)",
    "tokenizer": "its name is processing_class",
}
_ADAPTERS = {  # fields of adapters' configurations
    "alora_invocation_tokens": "turns the adapter on after tokens of a causal text, and a row here is seen as a whole: "
    "leave it out",
    "arrow_config": "mixes adapters for each token, and one is trained: leave it out",
}
_ROWS = {  # kinds of rows by the name of their class, and how to make a Dataset of them
    "DataFrame": "datasets.Dataset.from_pandas(rows)",
    "DatasetDict": "one of its splits, such as rows['train']",
    "IterableDataset": "datasets.Dataset.from_generator over it, or load it without streaming=True, for a row's place "
    "names its draws",
    "IterableDatasetDict": "one of its splits, loaded without streaming=True",
    "Table": "datasets.Dataset(rows)",
    "dict": "datasets.Dataset.from_dict(rows), or one of its values",
    "generator": "datasets.Dataset.from_list(list(rows))",
    "list": "datasets.Dataset.from_list(rows)",
    "str": "vrpo.data.load_rows(path)",
    "PosixPath": "vrpo.data.load_rows(path)",
    "tuple": "datasets.Dataset.from_list(list(rows))",
}


def config_of(args: Any, kind: type[Config], others: Mapping[str, Any]) -> Config:
    """The configuration of a trainer; of nothing, that of no fields.

    Args:
        others: what the trainer was given besides and means nothing here.

    Raises:
        ValueError: it is another one, such as TRL's, or one of the others is there.
    """
    _check_others(kind, others)
    if args is None:
        return kind()
    if not isinstance(args, kind):
        whose = type(args).__module__.partition(".")[0]
        raise ValueError(
            f"args is a {type(args).__name__} of {whose}, and this trainer takes a {kind.__name__}: give its fields to "
            f"vrpo.{kind.__name__}(...), which has their names, and says what to do of those that it has not"
        )
    return args


def _check_others(kind: type[DiffusionConfig], others: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: an argument of transformers' or TRL's trainers that means nothing here, or one that none has.
    """
    for name, value in others.items():
        if isinstance(value, Dataset):
            raise ValueError(f"{name} is a Dataset: give train_dataset and eval_dataset by their names")
        if name in _NOT_TAKEN and value is not None:
            raise ValueError(f"{name}: {_NOT_TAKEN[name]}. Leave it out")
        if name not in _NOT_TAKEN:
            field = name in {each.name for each in fields(kind)}
            said = f"it is a field: args={kind.__name__}({name}=...)" if field else "there is no such argument"
            raise ValueError(f"{name}: {said}")


def check_parts(tokenizer: Any, peft_config: Any, callbacks: Any, train_dataset: Any, eval_dataset: Any) -> None:
    """
    Raises:
        ValueError: one of these is of another kind than its name says.
    """
    if tokenizer is not None and not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(
            f"processing_class is a {type(tokenizer).__name__}, not a tokenizer: load it with AutoTokenizer, or leave "
            "it out for the model's own"
        )
    if peft_config is not None and not isinstance(peft_config, PeftConfig):
        raise ValueError(f"peft_config is a {type(peft_config).__name__}: give a peft.LoraConfig or another PeftConfig")
    if callbacks is not None and not isinstance(callbacks, list | tuple):
        raise ValueError(f"callbacks is a {type(callbacks).__name__}: give a list")
    parts = eval_dataset if isinstance(eval_dataset, dict) else {None: eval_dataset}
    named = {f"eval_dataset[{part!r}]" if part else "eval_dataset": dataset for part, dataset in parts.items()}
    for name, dataset in {"train_dataset": train_dataset, **named}.items():
        if dataset is not None:
            check_dataset(dataset, name)


def check_dataset(dataset: Any, name: str) -> None:
    """
    Raises:
        ValueError: rows that are no `datasets.Dataset`, with how to make one of them.
    """
    if not isinstance(dataset, Dataset):
        kind = type(dataset).__name__
        raise ValueError(f"{name} is a {kind}, and rows are a datasets.Dataset: give {_ROWS.get(kind, _ROWS['list'])}")


def check_trainable(module: Any) -> None:
    """Refuse what would train wrongly without an error: low-precision masters, and dropout under replayed draws.

    Raises:
        ValueError: a trainable parameter has less than float32, in which a step of 5e-7 rounds away; or a dropout is
            active, which would make the value and the gradient of a step belong to different networks; or nothing is
            trainable at all; or the weights are quantised, or spread over devices.
    """
    if is_quantized(module) and not isinstance(module, PeftModel):
        raise ValueError("quantised weights cannot be trained: train an adapter on them (peft_config, --use_peft)")
    if is_spread(module.get_base_model() if isinstance(module, PeftModel) else module):
        raise ValueError(
            "a model that a device_map has spread over devices is for inference: each process trains on one device; "
            "what does not fit is sharded by FSDP2 or ZeRO-3 (accelerate launch, docs/scaling.md)"
        )
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ValueError(
            "nothing to train: the model's adapter is frozen. Merge it (vrpo.load(...).merged()), or load the adapter "
            "as trainable with peft"
        )
    if isinstance(module, PeftModel):
        _check_adapter(module)
        check_layers(module)
        _check_saved(module)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            raise ValueError(
                f"{name} is trained in {parameter.dtype}, where small learning rates round to nothing: load the model "
                "in float32 (--dtype float32) and set bf16=true for speed, or train an adapter (--use_peft)"
            )
    for name, submodule in module.named_modules():
        if isinstance(submodule, nn.Dropout) and submodule.p > 0:
            raise ValueError(f"{name} drops out with probability {submodule.p}: set it (lora_dropout) to 0")
    if getattr(module.config, "attention_dropout", 0) > 0:  # some causal models have no such field
        raise ValueError(f"config.json: attention_dropout is {module.config.attention_dropout}: set it to 0")


def _check_adapter(module: PeftModel) -> None:
    """
    Raises:
        ValueError: the adapter drops out, by whatever module it does so, or needs a call in each forward or step.
    """
    for config in module.peft_config.values():
        given = config.to_dict()
        for name, why in _ADAPTERS.items():
            if given.get(name):
                raise ValueError(f"peft_config: {name} {why}")
        if config.peft_type == "ADALORA":
            raise ValueError(
                "peft_config: AdaLoRA deals out ranks in a loop of its own, which would not take place here"
            )
        for name, value in given.items():
            if name.endswith("dropout") and value:
                raise ValueError(f"peft_config: it drops out with probability {value}: set {name} to 0")


def _check_saved(module: PeftModel) -> None:
    """
    Raises:
        ValueError: a weight of the base is trained, which is no part of what is saved of an adapter.
    """
    states = [get_peft_model_state_dict(module, None, name, False, False) for name in module.peft_config]
    saved = {tensor.data_ptr() for state in states for tensor in state.values()}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and parameter.numel() and parameter.data_ptr() not in saved:
            raise ValueError(
                f"{name} is trained beside the adapter, with which it is not saved: name its module in modules_to_save "
                "of the adapter's configuration, or set requires_grad to False"
            )


def check_reached(module: nn.Module) -> None:
    """After a backward. Experts that no token chose are the exception.

    Raises:
        ValueError: something that is trained got no gradient.
    """
    named = [(name, each) for name, each in module.named_parameters() if each.requires_grad]
    left = [name for name, each in named if each.grad is None]
    if len(left) == len(named) or any("expert" not in name for name in left):
        raise ValueError(
            f"{left[0]} is trained and got no gradient, like {len(left)} of {len(named)} trained parameters. The model "
            "does not call it, or the way it is run loses gradients: leave it out of what is trained"
        )


def policy_of(
    model: HFDenoiser | nn.Module | str | Path | Any,
    tokenizer: PreTrainedTokenizerBase | None,
    peft_config: PeftConfig | None,
    args: DiffusionConfig,
) -> HFDenoiser:
    """The model that is trained, with a new adapter if one is asked for."""
    denoiser = as_denoiser(model, tokenizer, exact=args.plan == "exact")
    return denoiser if peft_config is None else with_adapter(denoiser, peft_config, args.seed)


def as_denoiser(
    model: HFDenoiser | nn.Module | str | Path | Any, tokenizer: Any, *, exact: bool, name: str = "model"
) -> HFDenoiser:
    """What a trainer accepts as a model: a denoiser, a module of one of our classes, or a name or folder to load; with
    plan=exact a causal language model, as a module of transformers too.

    A given tokenizer replaces the one that the model came with.

    Args:
        exact: plan=exact, which goes with causal language models and they with it.
        name: of the argument, for messages.

    Raises:
        ValueError: a model of the other kind, or none.
    """
    if not isinstance(model, HFDenoiser | nn.Module | str | Path):
        raise ValueError(f"{name} is a {type(model).__name__}: give a name, a folder, or what vrpo.load returns")
    if isinstance(model, str | Path):
        model = (load_causal if exact else load)(str(model), dtype=weights_dtype("training"))
    module: Any = model if isinstance(model, nn.Module) else model.module
    _check_bare(module)
    base = module.get_base_model() if isinstance(module, PeftModel) else module
    if exact and isinstance(base, MaskedDiffusion):
        raise ValueError("plan=exact is for causal language models, and this is a diffusion model: take another plan")
    if not exact and isinstance(base, CausalLikelihood):
        raise ValueError("a causal language model has no masks to draw: plan=exact, or causal_ref_model")
    if isinstance(model, nn.Module) and not isinstance(base, PreTrainedModel if exact else MaskedDiffusion):
        raise ValueError(
            f"{name} is a {type(base).__name__}, which is no {'causal' if exact else 'diffusion'} language model known "
            f"here: load its folder with vrpo.{'load_causal' if exact else 'load'}(folder), or see docs/models.md"
        )
    if isinstance(model, HFDenoiser) and tokenizer is None:
        return model
    origin = model.origin if isinstance(model, HFDenoiser) else None
    return (as_causal if exact else adapt)(module, tokenizer, origin)


def _check_bare(module: nn.Module) -> None:
    """
    Raises:
        ValueError: the module is only a wrapper (of torch.compile, DDP, DeepSpeed), which hides what the model is, or
            has an adapter inside that it does not show.
    """
    parts = {name for name, _ in module.named_children()}
    if parts and parts <= {"module", "_orig_mod"}:
        raise ValueError(
            f"model is wrapped in {type(module).__name__}: give the model itself. torch_compile compiles it, and "
            "accelerate wraps it"
        )
    inside = not isinstance(module, PeftModel) and any(isinstance(each, BaseTunerLayer) for each in module.modules())
    if inside:
        raise ValueError(
            "model: there is an adapter inside, which no PeftModel tells of (add_adapter, PeftMixedModel): give the "
            "base model and peft_config, or peft's get_peft_model of it"
        )


def load_alike(name: str, denoiser: HFDenoiser, dtype: torch.dtype) -> HFDenoiser:
    """The model in a folder, as one of the same kind."""
    return (load_causal if isinstance(denoiser, CausalDenoiser) else load)(name, dtype=dtype)
