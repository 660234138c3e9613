"""iLLaDA-8B: transformers' Llama with grouped queries and a tied head, bidirectional.

Only what differs: field names of config.json. Tensors are named as transformers names them.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, no_type_check

from transformers import LlamaConfig, LlamaForCausalLM

from vrpo.models.facts import ILLADA
from vrpo.models.hf import MaskedDiffusion
from vrpo.models.official import OfficialConfig

_FIELDS = (  # of the same name in transformers
    "attention_bias",
    "attention_dropout",
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "mask_token_id",
    "max_position_embeddings",
    "mlp_bias",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "rms_norm_eps",
    "tie_word_embeddings",
    "vocab_size",
)


@no_type_check
class ILLaDAConfig(OfficialConfig, LlamaConfig):
    """iLLaDA's config.json, which does not say what its mask token is."""

    model_type = "illada"
    architecture: ClassVar[str] = "ILLaDAForCausalLM"
    fields: ClassVar[Mapping[str, str]] = {name: name for name in _FIELDS}
    fixed: ClassVar[Mapping[str, Any]] = {"layer_norm_eps": None, "resid_pdrop": 0.0, "rope_scaling": None}
    presentation: ClassVar[Mapping[str, Any]] = {}
    understood: ClassVar[Mapping[str, Any]] = {"mask_token_id": ILLADA.mask_id}
    required: ClassVar[tuple[str, ...]] = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "vocab_size",
        "rms_norm_eps",
        "rope_theta",
        "tie_word_embeddings",
    )
    official: dict[str, Any] | None = None
    mask_token_id: int | None = None
    is_causal: bool = False
    shift_logits: bool = False


class ILLaDA(MaskedDiffusion, LlamaForCausalLM):
    """iLLaDA as a transformers model: bidirectional Llama with the masked-diffusion forward."""

    config_class = ILLaDAConfig
    lora_targets = ILLADA.lora_targets

    def save_pretrained(  # type: ignore[override]
        self, save_directory: Any, *, state_dict: Any = None, **kwargs: Any
    ) -> None:
        """With the head, which published folders store though it is the embedding."""
        tensors = dict(self.state_dict() if state_dict is None else state_dict)
        if self.config.tie_word_embeddings:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()  # what shares memory is left out
        super().save_pretrained(save_directory, state_dict=tensors, **kwargs)
