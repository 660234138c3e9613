"""A trainable adapter on a denoiser, by peft."""

import copy
from dataclasses import replace
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model

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
            adapter is not on weights.
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
    config = copy.copy(peft_config)
    if isinstance(config, LoraConfig) and config.target_modules is None:
        config.target_modules = list(denoiser.module.lora_targets)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        base = identity_of(denoiser.module, denoiser.tokenizer)  # some adapters change what they are put on
        return replace(denoiser, module=get_peft_model(denoiser.module, config), base=base)
