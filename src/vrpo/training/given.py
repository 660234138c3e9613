"""What a trainer is given to train: as a denoiser, and refused where it would train wrongly without an error."""

from typing import Any

import torch
from peft import PeftModel
from torch import nn

from vrpo.models.causal import CausalDenoiser, CausalLikelihood, as_causal, load_causal
from vrpo.models.hf import HFDenoiser, MaskedDiffusion, is_quantized, is_spread
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
    if getattr(module.config, "attention_dropout", 0) > 0:  # some causal models have no such field
        raise ValueError(f"config.json: attention_dropout is {module.config.attention_dropout}: set it to 0")


def as_denoiser(model: HFDenoiser | nn.Module | str, tokenizer: Any, *, exact: bool) -> HFDenoiser:
    """What a trainer accepts as a model: a denoiser, a module of one of our classes, or a name or folder to load; with
    plan=exact a causal language model, as a module of transformers too.

    A given tokenizer replaces the one that the model came with.

    Args:
        exact: plan=exact, which goes with causal language models and they with it.

    Raises:
        ValueError: a model of the other kind.
    """
    if isinstance(model, str):
        model = (load_causal if exact else load)(model, dtype=weights_dtype("training"))
    module: Any = model if isinstance(model, nn.Module) else model.module
    base = module.get_base_model() if isinstance(module, PeftModel) else module
    if exact and isinstance(base, MaskedDiffusion):
        raise ValueError("plan=exact is for causal language models, and this is a diffusion model: take another plan")
    if not exact and isinstance(base, CausalLikelihood):
        raise ValueError("a causal language model has no masks to draw: plan=exact, or causal_ref_model")
    if isinstance(model, HFDenoiser) and tokenizer is None:
        return model
    origin = model.origin if isinstance(model, HFDenoiser) else None
    return (as_causal if exact else adapt)(module, tokenizer, origin)


def load_alike(name: str, denoiser: HFDenoiser, dtype: torch.dtype) -> HFDenoiser:
    """The model in a folder, as one of the same kind."""
    return (load_causal if isinstance(denoiser, CausalDenoiser) else load)(name, dtype=dtype)
