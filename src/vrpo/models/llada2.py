"""LLaDA2.0-mini, LLaDA2.1-mini: transformers' GLM-4 MoE, block by block, under the official names.

The same arithmetic: grouped queries with norms per head, rotary embedding of half of each head, a dense first layer,
sigmoid routing within the best groups of experts by biased scores, and one shared expert. Only what differs: field
names of config.json, tensor names of the checkpoint, query_key_value being one matrix there.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, no_type_check

import torch
from torch import Tensor
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.core_model_loading import Concatenate, ConversionOps, WeightConverter, WeightRenaming

from vrpo.models.block import BlockDiffusion
from vrpo.models.facts import LLADA2
from vrpo.models.official import OfficialConfig

_FIELDS = {  # official field -> transformers' field
    **{
        name: name
        for name in (
            "attention_dropout",
            "block_size",
            "first_k_dense_replace",
            "head_dim",
            "hidden_act",
            "hidden_size",
            "initializer_range",
            "intermediate_size",
            "mask_token_id",
            "max_position_embeddings",
            "moe_intermediate_size",
            "n_group",
            "num_attention_heads",
            "num_experts_per_tok",
            "num_hidden_layers",
            "num_key_value_heads",
            "pad_token_id",
            "rms_norm_eps",
            "routed_scaling_factor",
            "tie_word_embeddings",
            "topk_group",
            "vocab_size",
        )
    },
    "num_experts": "n_routed_experts",
    "num_shared_experts": "n_shared_experts",
}
_TENSORS = (  # official name -> transformers' name, applied in this order
    (r"model.word_embeddings.", r"model.embed_tokens."),
    (r"attention.dense.", r"self_attn.o_proj."),
    (r"attention.query_layernorm.", r"self_attn.q_norm."),
    (r"attention.key_layernorm.", r"self_attn.k_norm."),
    (r"mlp.gate.expert_bias", r"mlp.gate.e_score_correction_bias"),
)


class _Split(ConversionOps):
    """One matrix as several, as high as the parameters they become. transformers' own `Split` came after 5.10."""

    @torch.no_grad()
    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        full_layer_name: str = "",
        model: Any = None,
        **unused: Any,
    ) -> dict[str, Any]:
        (found,) = input_dict.values()
        whole: Tensor = found[0] if isinstance(found, list) else found
        names = [full_layer_name.replace(target_patterns[0], target) for target in target_patterns]
        parts = whole.split([len(model.get_parameter(name)) for name in names])
        return {target: part.contiguous() for target, part in zip(target_patterns, parts, strict=True)}

    @property
    def reverse_op(self) -> ConversionOps:
        return Concatenate(dim=0)


_QUERY_KEY_VALUE = WeightConverter(
    source_patterns="attention.query_key_value.weight",
    target_patterns=[f"self_attn.{part}_proj.weight" for part in "qkv"],
    operations=[_Split()],
)


@no_type_check
class LLaDA2Config(OfficialConfig, Glm4MoeConfig):
    """LLaDA2.x's config.json, which says neither mask nor end token nor the size of a block: all published models have
    blocks of 32 tokens, and pad with the token that ends a text."""

    model_type = "llada2_moe"
    architecture: ClassVar[str] = "LLaDA2MoeModelLM"
    fields: ClassVar[Mapping[str, str]] = _FIELDS
    fixed: ClassVar[Mapping[str, Any]] = {
        "embedding_dropout": 0.0,
        "moe_router_enable_expert_bias": True,
        "norm_head": False,
        "norm_softmax": False,
        "norm_topk_prob": True,
        "output_dropout": 0.0,
        "rope_scaling": None,
        "router_dtype": "fp32",
        "score_function": "sigmoid",
        "use_bias": False,
        "use_qk_norm": True,
        "use_qkv_bias": False,
        "use_rmsnorm": True,
        "use_sliding_window": False,
        "using_split_qkv_in_self_attention": False,
    }
    presentation: ClassVar[Mapping[str, Any]] = {
        "max_window_layers": 28,
        "output_router_logits": False,
        "sliding_window": 4096,  # of no effect while use_sliding_window is false
        "use_cache": False,
    }
    understood: ClassVar[Mapping[str, Any]] = {"mask_token_id": LLADA2.mask_id}
    required: ClassVar[tuple[str, ...]] = (
        "first_k_dense_replace",
        "head_dim",
        "hidden_size",
        "intermediate_size",
        "moe_intermediate_size",
        "n_group",
        "num_attention_heads",
        "num_experts",
        "num_experts_per_tok",
        "num_hidden_layers",
        "num_key_value_heads",
        "num_shared_experts",
        "pad_token_id",
        "partial_rotary_factor",
        "rope_theta",
        "routed_scaling_factor",
        "topk_group",
        "vocab_size",
    )
    official: dict[str, Any] | None = None
    head_dim: int = 128
    mask_token_id: int | None = None
    block_size: int | None = LLADA2.block_size
    is_causal: bool = False
    shift_logits: bool = False

    @classmethod
    def read(cls, official: dict[str, Any]) -> dict[str, Any]:
        known = super().read(official)
        known["rope_parameters"]["partial_rotary_factor"] = official["partial_rotary_factor"]
        ours = {"use_qk_norm": True, "norm_topk_prob": True, "num_mtp_layers": 0}
        return {**known, **ours, "eos_token_id": official["pad_token_id"]}

    def write(self) -> dict[str, Any]:
        rope: Any = self.rope_parameters
        rotated = rope["partial_rotary_factor"]
        dims = {"partial_rotary_factor": rotated, "rotary_dim": int(self.head_dim * rotated)}
        return {**super().write(), **dims}


class LLaDA2(BlockDiffusion, Glm4MoeForCausalLM):
    """LLaDA2 as a transformers model: GLM-4 MoE with the block-diffusion forward. Adapters are on attention, the dense
    layer and the shared experts."""

    config_class = LLaDA2Config
    lora_targets = LLADA2.lora_targets
    _keys_to_ignore_on_load_unexpected: list[str] = []  # noqa: RUF012  # GLM's are layers by number


register_checkpoint_conversion_mapping(
    LLaDA2.__name__,
    [
        *(WeightRenaming(source_patterns=a, target_patterns=b) for a, b in _TENSORS),
        _QUERY_KEY_VALUE,
        *get_checkpoint_conversion_mapping(Glm4MoeConfig.model_type),
    ],
    overwrite=True,
)
