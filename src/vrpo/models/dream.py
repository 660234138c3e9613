"""Dream-v0, Dream-Coder, DiffuCoder: transformers' Qwen2, bidirectional, whose logits at a position are the next one's.

Only what differs: field names of config.json. Tensors are named as transformers names them.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, no_type_check

from transformers import Qwen2Config, Qwen2ForCausalLM

from vrpo.models.facts import DREAM
from vrpo.models.hf import MaskedDiffusion
from vrpo.models.official import OfficialConfig

_FIELDS = (  # of the same name in transformers
    "attention_dropout",
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "mask_token_id",
    "max_position_embeddings",
    "max_window_layers",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "rms_norm_eps",
    "tie_word_embeddings",
    "vocab_size",
)


@no_type_check
class DreamConfig(OfficialConfig, Qwen2Config):
    """Dream's config.json."""

    model_type = "Dream"
    architecture: ClassVar[str] = "DreamModel"
    fields: ClassVar[Mapping[str, str]] = {name: name for name in _FIELDS}
    fixed: ClassVar[Mapping[str, Any]] = {"rope_scaling": None, "use_mrope": False, "use_sliding_window": False}
    presentation: ClassVar[Mapping[str, Any]] = {
        "sliding_window": None,
        "use_cache": False,
    }
    understood: ClassVar[Mapping[str, Any]] = {"mask_token_id": DREAM.mask_id}
    required: ClassVar[tuple[str, ...]] = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "vocab_size",
        "rope_theta",
    )
    official: dict[str, Any] | None = None
    mask_token_id: int | None = None
    is_causal: bool = False
    shift_logits: bool = True


class Dream(MaskedDiffusion, Qwen2ForCausalLM):
    """Dream as a transformers model: bidirectional Qwen2 with the masked-diffusion forward."""

    config_class = DreamConfig
    lora_targets = DREAM.lora_targets
