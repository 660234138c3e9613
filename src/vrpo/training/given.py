"""What a trainer is given to train: as a denoiser, and refused where it would train wrongly without an error."""

from typing import Any

import torch
from peft import PeftModel
from torch import nn

from vrpo.models.hf import HFDenoiser, is_quantized, is_spread
from vrpo.models.load import adapt, load
from vrpo.models.precision import weights_dtype


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
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            raise ValueError(
                f"{name} is trained in {parameter.dtype}, where small learning rates round to nothing: load the model "
                "in float32 (--dtype float32) and set bf16=true for speed, or train an adapter (--use_peft)"
            )
    for name, submodule in module.named_modules():
        if isinstance(submodule, nn.Dropout) and submodule.p > 0:
            raise ValueError(f"{name} drops out with probability {submodule.p}: set it (lora_dropout) to 0")
    if module.config.attention_dropout > 0:
        raise ValueError(f"config.json: attention_dropout is {module.config.attention_dropout}: set it to 0")


def as_denoiser(model: HFDenoiser | nn.Module | str, tokenizer: Any) -> HFDenoiser:
    """What a trainer accepts as a model: a denoiser, a module of one of our classes, or a name or folder to load.

    A given tokenizer replaces the one that the model came with.
    """
    if isinstance(model, nn.Module):
        return adapt(model, tokenizer)
    denoiser = model if isinstance(model, HFDenoiser) else load(model, dtype=weights_dtype("training"))
    return denoiser if tokenizer is None else adapt(denoiser.module, tokenizer, denoiser.origin)
