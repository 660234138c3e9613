"""The models that `vrpo variance` measures: a policy, a reference, and the parameters that gradients are taken of."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from vrpo.models.fingerprint import weights_fingerprint
from vrpo.models.hf import HFDenoiser
from vrpo.models.load import load
from vrpo.models.precision import weights_dtype
from vrpo.reference import FrozenReference


@runtime_checkable
class Wanted(Protocol):
    """The fields that say which models."""

    model_name_or_path: str
    ref_model_name_or_path: str | None
    trainable: str | None
    dtype: str
    device: str | None
    attn_implementation: str | None
    experts_implementation: str | None
    mask_token_id: int | None
    shift_logits: bool | None


@dataclass(frozen=True)
class Models:
    """Both models in evaluation mode. `fingerprints` say which weights these are, and which parameters are trained."""

    policy: HFDenoiser
    reference: FrozenReference
    parameters: Sequence[nn.Parameter]
    tokenizer: PreTrainedTokenizerBase
    fingerprints: dict[str, str]

    @property
    def pad_id(self) -> int:
        return self.policy.pad_id

    @property
    def device(self) -> torch.device:
        return self.policy.device


def models_of(args: Wanted) -> Models:
    """Policy and reference; the parameters measured require gradients, no others do.

    Raises:
        ValueError: there is no reference, no tokenizer, or no parameter of such a name.
    """
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    given: dict[str, Any] = {
        "dtype": weights_dtype("measuring", args.dtype),
        "device": device,
        "attn_implementation": args.attn_implementation,
        "experts_implementation": args.experts_implementation,
        "mask_token_id": args.mask_token_id,
        "shift_logits": args.shift_logits,
    }
    policy = load(args.model_name_or_path, **given)
    if policy.block_size is not None:
        raise ValueError(
            f"{args.model_name_or_path} is a block diffusion model, whose plans draw each block by itself: the "
            "variance of such draws is not measured yet"
        )
    adapted = isinstance(policy.module, PeftModel)
    if args.ref_model_name_or_path is None and not adapted:
        raise ValueError(
            f"{args.model_name_or_path} is a whole model, and there is no reference: give --ref_model_name_or_path, "
            "the model that training started from (a policy that is a folder of an adapter has its base as reference)"
        )
    if policy.tokenizer is None:
        raise ValueError(f"{args.model_name_or_path} has no tokenizer.json: save the tokenizer beside the model")
    named = _trainable(policy, args.trainable)
    prints = {"policy": weights_fingerprint(policy.module.named_parameters())}
    if args.ref_model_name_or_path is None:
        reference = FrozenReference(policy, policy.module.disable_adapter)
        prints["reference"] = "the policy with its adapter off"
    else:
        frozen = load(args.ref_model_name_or_path, **given)
        frozen.module.requires_grad_(False)
        reference = FrozenReference(frozen)
        prints["reference"] = weights_fingerprint(frozen.module.named_parameters())
    prints["trainable"] = f"{len(named)} tensors, {weights_fingerprint(named.items())}"
    return Models(policy, reference, list(named.values()), policy.tokenizer, prints)


def _trainable(policy: HFDenoiser, pattern: str | None) -> dict[str, nn.Parameter]:
    """The parameters whose name the pattern is found in; without one the adapter's, or all."""
    if pattern is None:
        pattern = re.escape(str(policy.module.base_model.prefix)) if isinstance(policy.module, PeftModel) else ""
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"trainable {pattern!r} is not a regular expression: {error}") from error
    policy.module.requires_grad_(False)
    named = {name: part for name, part in policy.module.named_parameters() if wanted.search(name)}
    if not named:
        some = [name for name, _ in policy.module.named_parameters()][:3]
        raise ValueError(f"trainable {pattern!r} is found in no parameter's name; the first are {', '.join(some)}")
    for parameter in named.values():
        parameter.requires_grad_(True)
    return named
