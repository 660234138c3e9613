"""SDAR and TraDo: transformers' Qwen3 and Qwen3-MoE, block by block.

Only what differs: field names of config.json. Tensors are named as in Qwen3 and Qwen3-MoE.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, no_type_check

from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping

from vrpo.models import facts
from vrpo.models.block import BlockDiffusion
from vrpo.models.official import OfficialConfig

_FIELDS = (  # of the same name in transformers
    "attention_bias",
    "attention_dropout",
    "block_size",
    "bos_token_id",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "mask_token_id",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "rms_norm_eps",
    "tie_word_embeddings",
    "vocab_size",
)
_EXPERT_FIELDS = (
    "decoder_sparse_step",
    "mlp_only_layers",
    "moe_intermediate_size",
    "norm_topk_prob",
    "num_experts",
    "num_experts_per_tok",
    "router_aux_loss_coef",
)
_REQUIRED = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "rope_theta",
)
_FIXED = {"rope_scaling": None, "use_sliding_window": False}


@no_type_check
class SDARConfig(OfficialConfig, Qwen3Config):
    """SDAR's config.json."""

    model_type = "sdar"
    architecture: ClassVar[str] = "SDARForCausalLM"
    fields: ClassVar[Mapping[str, str]] = {name: name for name in (*_FIELDS, "max_window_layers")}
    fixed: ClassVar[Mapping[str, Any]] = _FIXED
    presentation: ClassVar[Mapping[str, Any]] = {
        "debug": False,
        "ep_size": 1,
        "fuse_cross_entropy": True,
        "micro_forward": False,
        "skip_checkpoint": False,
        "sliding_window": None,
        "use_cache": False,
        "use_deepep": False,
    }
    required: ClassVar[tuple[str, ...]] = _REQUIRED
    official: dict[str, Any] | None = None
    mask_token_id: int | None = None
    block_size: int | None = None
    is_causal: bool = False
    shift_logits: bool = False


@no_type_check
class SDARMoeConfig(OfficialConfig, Qwen3MoeConfig):
    """SDAR-30B-A3B's config.json, which says neither the mask token nor the size of a block."""

    model_type = "sdar_moe"
    architecture: ClassVar[str] = "SDARMoeForCausalLM"
    fields: ClassVar[Mapping[str, str]] = {name: name for name in _FIELDS + _EXPERT_FIELDS}
    fixed: ClassVar[Mapping[str, Any]] = _FIXED
    presentation: ClassVar[Mapping[str, Any]] = {
        "sliding_window": None,
        "use_cache": False,
    }
    understood: ClassVar[Mapping[str, Any]] = {"mask_token_id": facts.SDAR_MOE.mask_id}
    required: ClassVar[tuple[str, ...]] = (*_REQUIRED, "num_experts", "num_experts_per_tok", "norm_topk_prob")
    official: dict[str, Any] | None = None
    head_dim: int = 128
    mask_token_id: int | None = None
    block_size: int | None = None
    is_causal: bool = False
    shift_logits: bool = False


class SDAR(BlockDiffusion, Qwen3ForCausalLM):
    """SDAR as a transformers model: Qwen3 with the block-diffusion forward."""

    config_class = SDARConfig
    lora_targets = facts.SDAR.lora_targets


class SDARMoe(BlockDiffusion, Qwen3MoeForCausalLM):
    """SDAR with experts: Qwen3-MoE with the block-diffusion forward. Adapters are on attention alone."""

    config_class = SDARMoeConfig
    lora_targets = facts.SDAR_MOE.lora_targets


register_checkpoint_conversion_mapping(
    SDARMoe.__name__, get_checkpoint_conversion_mapping(Qwen3MoeConfig.model_type), overwrite=True
)
