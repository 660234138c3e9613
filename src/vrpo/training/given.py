"""What a trainer is given to train: as a denoiser, and refused where it would train wrongly without an error."""

from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
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
    if isinstance(module, PeftModel):
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
    _check_bare(module)
    base = module.get_base_model() if isinstance(module, PeftModel) else module
    if exact and isinstance(base, MaskedDiffusion):
        raise ValueError("plan=exact is for causal language models, and this is a diffusion model: take another plan")
    if not exact and isinstance(base, CausalLikelihood):
        raise ValueError("a causal language model has no masks to draw: plan=exact, or causal_ref_model")
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
