"""A trainable adapter on a denoiser, by peft."""

import copy
import difflib
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer

from vrpo.models.base_model import identity_of
from vrpo.models.hf import HFDenoiser

SMALL = 0.1  # share of the parameters that are trained, up to which buffers of their size cost little


def is_small(module: Any) -> bool:
    """Whether the module is an adapter on a base that is at least nine times as large."""
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    whole = sum(parameter.numel() for parameter in module.parameters())
    return isinstance(module, PeftModel) and trained <= SMALL * whole


def with_adapter(denoiser: HFDenoiser, peft_config: PeftConfig, seed: int) -> HFDenoiser:
    """The denoiser with a new, trainable adapter, initialised from the seed; the base is frozen, and may be quantised.

    A quantised base needs no `prepare_model_for_kbit_training`, which would freeze what peft freezes anyway, turn head
    and embedding into float32 (at 8B 2 GB more each) though nothing in them is trained, and let the embedding require
    gradients for reentrant checkpointing, which the trainers do not use.

    Raises:
        ValueError: the denoiser carries an adapter already, which a new one would replace without a word; or the
            adapter is not on weights, names what the model has not, or would add nothing or numbers that are none.
    """
    if isinstance(denoiser.module, PeftModel):
        raise ValueError(
            "the model carries an adapter already. Merge it: vrpo.load(adapter).merged().save_pretrained(folder), "
            "then train a new adapter on that folder"
        )
    if peft_config.is_prompt_learning:
        raise ValueError(
            f"peft_config: {type(peft_config).__name__} puts tokens of its own before a text, which have no place in "
            "masks and blocks: train a LoRA"
        )
    if getattr(peft_config, "init_lora_weights", None) == "eva":
        raise ValueError(
            "peft_config: init_lora_weights='eva' begins from data, which no trainer here gives it. Take True, or call "
            "peft's initialize_lora_eva_weights yourself and give the PeftModel as model"
        )
    _check_names(denoiser.module, peft_config)
    config = copy.copy(peft_config)
    if isinstance(config, LoraConfig) and config.target_modules is None:
        config.target_modules = list(denoiser.module.lora_targets)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        base = identity_of(denoiser.module, denoiser.tokenizer)  # some adapters change what they are put on
        adapted = get_peft_model(denoiser.module, config)
    check_layers(adapted)
    return replace(denoiser, module=adapted, base=base)


def _check_names(module: Any, config: Any) -> None:
    """
    Raises:
        ValueError: the configuration names modules, parameters or layers that the model has not. peft passes them over
            where others are found.
    """
    modules, weights = [name for name, _ in module.named_modules()], [name for name, _ in module.named_parameters()]
    for field in ("target_modules", "modules_to_save", "exclude_modules", "target_parameters"):
        given = getattr(config, field, None)
        there = weights if field == "target_parameters" else modules
        for name in given if isinstance(given, list | set | tuple) else ():
            if not any(each == name or each.endswith(f".{name}") for each in there):
                raise ValueError(f"peft_config: {field} names {name!r}, which the model has not{_close(name, there)}")
    for field in ("rank_pattern", "alpha_pattern"):
        for name in getattr(config, field, None) or {}:
            try:
                pattern = re.compile(rf"(.*\.)?({name})$")
            except re.error as error:
                raise ValueError(f"peft_config: {field} names {name!r}, which is no pattern: {error}") from error
            if not any(map(pattern.match, modules)):
                raise ValueError(f"peft_config: {field} names {name!r}, which the model has not{_close(name, modules)}")
    layers = getattr(config, "layers_to_transform", None)
    known = {int(part) for each in modules for part in each.split(".") if part.isdecimal()}
    for layer in [layers] if isinstance(layers, int) else layers or ():
        if layer not in known:
            raise ValueError(f"peft_config: layers_to_transform names {layer}, and layers are 0 to {max(known)}")


def _close(name: str, there: Sequence[str]) -> str:
    found = difflib.get_close_matches(name.rpartition(".")[2], {each.rpartition(".")[2] for each in there}, n=1)
    return f". Did you mean {found[0]!r}?" if found else ""


def check_layers(module: PeftModel) -> None:
    """
    Raises:
        ValueError: a layer of the adapter is scaled by 0, or DoRA divides by the length of a weight's row, which is 0.
    """
    for name, layer in module.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        if any(getattr(layer, "scaling", {}).get(adapter) == 0 for adapter in layer.active_adapters):
            raise ValueError(f"peft_config: {name} is scaled by 0, whatever the adapter learns. Set lora_alpha above 0")
        norms = getattr(layer, "lora_magnitude_vector", None) or {}
        if any(bool((part.weight == 0).any()) for part in norms.values()):
            raise ValueError(
                f"peft_config: use_dora divides by the length of each row of a weight, and {name} has a row of zeros. "
                "Leave use_dora out, or leave that module out of target_modules"
            )
