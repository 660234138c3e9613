"""LLaDA-8B-Base, LLaDA-8B-Instruct, LLaDA-1.5: transformers' Llama, bidirectional, under the official names.

Only what differs: field names of config.json, tensor names of the checkpoint.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, no_type_check

from transformers import LlamaConfig, LlamaForCausalLM
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from vrpo.models.facts import LLADA
from vrpo.models.hf import MaskedDiffusion
from vrpo.models.official import OfficialConfig

_FIELDS = {  # official field -> transformers' Llama field
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "mlp_hidden_size": "intermediate_size",
    "embedding_size": "vocab_size",
    "max_sequence_length": "max_position_embeddings",
    "rms_norm_eps": "rms_norm_eps",
    "weight_tying": "tie_word_embeddings",
    "attention_dropout": "attention_dropout",
    "init_std": "initializer_range",
    "mask_token_id": "mask_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}
_FIXED = {  # official fields with the one value that this adapter implements
    "activation_type": "silu",
    "alibi": False,
    "attention_layer_norm": False,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "multi_query_attention": None,
    "rope": True,
    "scale_logits": False,
    "embedding_dropout": 0.0,
    "residual_dropout": 0.0,
}
_PRESENTATION = {  # official fields that change nothing here, written so that the official code finds what it expects
    "alibi_bias_max": 8.0,
    "attention_layer_norm_with_affine": True,
    "flash_attention": False,
    "init_cutoff_factor": None,
    "init_device": "meta",
    "init_fn": "mitchell",
    "layer_norm_with_affine": True,
    "mlp_ratio": 4,
    "precision": "amp_bf16",
    "rope_full_precision": True,
    "use_cache": False,
}
_TENSORS = (  # official name -> transformers' Llama name, applied in this order
    (r"model.transformer.wte.", r"model.embed_tokens."),
    (r"model.transformer.ln_f.", r"model.norm."),
    (r"^model.transformer.ff_out.", r"lm_head."),
    (r"model.transformer.blocks.(\d+).attn_norm.", r"model.layers.\1.input_layernorm."),
    (r"model.transformer.blocks.(\d+).q_proj.", r"model.layers.\1.self_attn.q_proj."),
    (r"model.transformer.blocks.(\d+).k_proj.", r"model.layers.\1.self_attn.k_proj."),
    (r"model.transformer.blocks.(\d+).v_proj.", r"model.layers.\1.self_attn.v_proj."),
    (r"model.transformer.blocks.(\d+).attn_out.", r"model.layers.\1.self_attn.o_proj."),
    (r"model.transformer.blocks.(\d+).ff_norm.", r"model.layers.\1.post_attention_layernorm."),
    (r"model.transformer.blocks.(\d+).ff_proj.", r"model.layers.\1.mlp.gate_proj."),
    (r"model.transformer.blocks.(\d+).up_proj.", r"model.layers.\1.mlp.up_proj."),
    (r"model.transformer.blocks.(\d+).ff_out.", r"model.layers.\1.mlp.down_proj."),
)


@no_type_check
class LLaDAConfig(OfficialConfig, LlamaConfig):
    """LLaDA's config.json. `model_type` is LLaDA-MoE's too, hence `architectures` tells them apart."""

    model_type = "llada"
    architecture: ClassVar[str] = "LLaDAModelLM"
    fields: ClassVar[Mapping[str, str]] = _FIELDS
    fixed: ClassVar[Mapping[str, Any]] = _FIXED
    presentation: ClassVar[Mapping[str, Any]] = _PRESENTATION
    required: ClassVar[tuple[str, ...]] = (
        "d_model",
        "n_layers",
        "n_heads",
        "mlp_hidden_size",
        "vocab_size",
        "rope_theta",
    )
    official: dict[str, Any] | None = None
    mask_token_id: int | None = None
    is_causal: bool = False
    shift_logits: bool = False

    @classmethod
    def read(cls, official: dict[str, Any]) -> dict[str, Any]:
        """`embedding_size` is what `vocab_size` is padded to, where it is given."""
        rows = official["embedding_size"] if official.get("embedding_size") else official["vocab_size"]
        return {**super().read(official), "vocab_size": rows, "bos_token_id": None}

    def write(self) -> dict[str, Any]:
        return {**super().write(), "vocab_size": self.vocab_size}


class LLaDA(MaskedDiffusion, LlamaForCausalLM):
    """LLaDA as a transformers model: bidirectional Llama with the masked-diffusion forward."""

    config_class = LLaDAConfig
    lora_targets = LLADA.lora_targets


register_checkpoint_conversion_mapping(
    LLaDA.__name__, [WeightRenaming(source_patterns=a, target_patterns=b) for a, b in _TENSORS], overwrite=True
)
