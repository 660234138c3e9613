"""LLaDA-8B-Base, LLaDA-8B-Instruct, LLaDA-1.5: transformers' Llama, bidirectional, under the official names.

Only what differs: field names of config.json, tensor names of the checkpoint, special tokens.
"""

import json
from os import PathLike
from pathlib import Path
from typing import Any, no_type_check

from transformers import LlamaConfig, LlamaForCausalLM
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from vrpo.models.hf import MaskedDiffusion

ARCHITECTURE = "LLaDAModelLM"  # `architectures[0]`; `model_type` alone is shared with LLaDA-MoE
END_OF_TURN = "<|eot_id|>"

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
    "auto_map": {
        # by repository, for other people's tools: no code is saved beside the weights
        "AutoConfig": "GSAI-ML/LLaDA-8B-Base--configuration_llada.LLaDAConfig",
        "AutoModel": "GSAI-ML/LLaDA-8B-Base--modeling_llada.LLaDAModelLM",
        "AutoModelForCausalLM": "GSAI-ML/LLaDA-8B-Base--modeling_llada.LLaDAModelLM",
    },
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


@no_type_check  # transformers writes its __init__, whose signature hides the **kwargs it takes
class LLaDAConfig(LlamaConfig):
    """transformers' Llama configuration that reads and writes LLaDA's official config.json."""

    model_type = "llada"
    mask_token_id: int | None = None
    is_causal: bool = False
    official: dict[str, Any] | None = None  # the file it was read from, so that fields we do not know survive

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        if "hidden_size" in config_dict:  # transformers' own fields, as from to_dict
            return super().from_dict(config_dict, **kwargs)
        return super().from_dict(from_official(config_dict), **kwargs)

    def to_json_file(self, json_file_path: str | PathLike[Any], use_diff: bool = True) -> None:
        """Write the official fields; what `save_pretrained` calls."""
        Path(json_file_path).write_text(json.dumps(to_official(self), indent=2, sort_keys=True) + "\n")


def from_official(official: dict[str, Any]) -> dict[str, Any]:
    """Fields of transformers' Llama from LLaDA's config.json.

    Raises:
        ValueError: a field is missing, or has a value that the official code supports and this adapter does not.
    """
    for field, value in _FIXED.items():
        if field in official and official[field] != value:
            raise ValueError(f"config.json: {field} = {official[field]!r} is not supported, only {value!r}")
    required = ("d_model", "n_layers", "n_heads", "mlp_hidden_size", "vocab_size", "mask_token_id", "rope_theta")
    missing = [field for field in required if field not in official or official[field] is None]
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}: not a LLaDA configuration")
    fields = {ours: official[theirs] for theirs, ours in _FIELDS.items() if theirs in official}
    fields["vocab_size"] = official["embedding_size"] if official.get("embedding_size") else official["vocab_size"]
    fields["rope_parameters"] = {"rope_type": "default", "rope_theta": float(official["rope_theta"])}
    for field in ("torch_dtype", "dtype"):
        if field in official:
            fields["dtype"] = official[field]
    return {**fields, "official": official, "is_causal": False, "bos_token_id": None}


def to_official(config: LLaDAConfig) -> dict[str, Any]:
    """LLaDA's config.json from a configuration, whichever way it was made."""
    fields = {theirs: getattr(config, ours) for theirs, ours in _FIELDS.items()}
    assert config.rope_parameters is not None
    return {
        **_PRESENTATION,
        **_FIXED,
        **(config.official or {}),
        **fields,
        "architectures": [ARCHITECTURE],
        "model_type": "llada",
        "vocab_size": config.vocab_size,
        "rope_theta": config.rope_parameters["rope_theta"],
        "torch_dtype": str(config.dtype).removeprefix("torch."),
    }


class LLaDA(MaskedDiffusion, LlamaForCausalLM):
    """LLaDA as a transformers model: bidirectional Llama with the masked-diffusion forward."""

    config_class = LLaDAConfig
    lora_targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


register_checkpoint_conversion_mapping(
    LLaDA.__name__, [WeightRenaming(source_patterns=a, target_patterns=b) for a, b in _TENSORS], overwrite=True
)
