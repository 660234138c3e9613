"""Causal models (Llama, Qwen2, Qwen3) turned bidirectional, for those who convert autoregressive models.

config.json stays transformers' own. Three fields are added where they are set: `mask_token_id`; `is_causal: false`,
with which transformers itself runs the saved model in both directions; and `shift_logits: true`, for a model that goes
on predicting the next token. What does not live here: training the conversion, which is `vrpo sft` on text.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, no_type_check

from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from vrpo.models.facts import facts_of
from vrpo.models.hf import MaskedDiffusion
from vrpo.models.official import OfficialConfig


@no_type_check
class BidirectionalConfig(OfficialConfig):
    """transformers' own fields as they are, and ours beside them."""

    fields: ClassVar[Mapping[str, str]] = {
        name: name
        for name in ("mask_token_id", "is_causal", "shift_logits", "vocab_size", "pad_token_id", "tie_word_embeddings")
    }
    fixed: ClassVar[Mapping[str, Any]] = {"use_sliding_window": False}
    presentation: ClassVar[Mapping[str, Any]] = {}
    required: ClassVar[tuple[str, ...]] = ("hidden_size", "num_hidden_layers", "vocab_size")

    @classmethod
    def read(cls, official: dict[str, Any]) -> dict[str, Any]:
        return {**official, "is_causal": False}

    def write(self) -> dict[str, Any]:
        if self.official is None:
            return {**self.to_diff_dict(), "architectures": [self.architecture], "is_causal": False}
        return {**super().write(), "is_causal": False}


@no_type_check
class BidirectionalLlamaConfig(BidirectionalConfig, LlamaConfig):
    architecture: ClassVar[str] = "LlamaForCausalLM"
    official: dict[str, Any] | None = None
    mask_token_id: int | None = None
    is_causal: bool = False
    shift_logits: bool = False


@no_type_check
class BidirectionalQwen2Config(BidirectionalConfig, Qwen2Config):
    architecture: ClassVar[str] = "Qwen2ForCausalLM"
    official: dict[str, Any] | None = None
    mask_token_id: int | None = None
    is_causal: bool = False
    shift_logits: bool = False


@no_type_check
class BidirectionalQwen3Config(BidirectionalConfig, Qwen3Config):
    architecture: ClassVar[str] = "Qwen3ForCausalLM"
    official: dict[str, Any] | None = None
    mask_token_id: int | None = None
    is_causal: bool = False
    shift_logits: bool = False


class BidirectionalLlama(MaskedDiffusion, LlamaForCausalLM):
    """A Llama that sees both sides."""

    config_class = BidirectionalLlamaConfig
    lora_targets = facts_of(BidirectionalLlamaConfig.architecture).lora_targets


class BidirectionalQwen2(MaskedDiffusion, Qwen2ForCausalLM):
    """A Qwen2 that sees both sides."""

    config_class = BidirectionalQwen2Config
    lora_targets = facts_of(BidirectionalQwen2Config.architecture).lora_targets


class BidirectionalQwen3(MaskedDiffusion, Qwen3ForCausalLM):
    """A Qwen3 that sees both sides."""

    config_class = BidirectionalQwen3Config
    lora_targets = facts_of(BidirectionalQwen3Config.architecture).lora_targets
