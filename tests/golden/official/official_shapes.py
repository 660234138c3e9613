"""The official config.json of each family at a small size: every field of the official file, smaller shapes and ids.

Values that no public source states are marked; all else is the released checkpoint's (rope bases, epsilons, which
biases exist, what is tied). `Size` is what shrinks. No official code here, and nothing of ours that is tested.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Size:
    """How large a stand-in is: `heads * head` need not be `hidden` where the family has its own head size."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    ffn: int
    vocab: int
    experts: int
    top_k: int
    expert_ffn: int
    groups: int
    kept_groups: int
    length: int
    block: int

    @property
    def ids(self) -> dict[str, int]:
        """Special ids, where a family's real ones do not fit: pad and end of text, end of turn, mask."""
        return {"pad": self.vocab - 4, "turn": self.vocab - 3, "mask": self.vocab - 2}


TINY = Size(64, 2, 4, 2, 32, 80, 160, 8, 2, 24, 4, 2, 20, 4)
MEDIUM = Size(192, 4, 6, 2, 48, 384, 1024, 16, 4, 48, 8, 4, 64, 16)

Config = dict[str, Any]


def auto_map(
    folder: str, config: str, model: str, names: tuple[str, ...] = ("AutoModel", "AutoModelForCausalLM")
) -> Config:
    return {"AutoConfig": f"configuration_{folder}.{config}"} | dict.fromkeys(names, f"modeling_{folder}.{model}")


def common(size: Size) -> Config:
    """What Llama-like layouts share."""
    return {
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": size.hidden,
        "initializer_range": 0.02,
        "intermediate_size": size.ffn,
        "num_attention_heads": size.heads,
        "num_hidden_layers": size.layers,
        "num_key_value_heads": size.kv_heads,
        "rope_scaling": None,
        "vocab_size": size.vocab,
    }


def llada(size: Size) -> Config:
    return {
        "activation_type": "silu",
        "alibi": False,
        "alibi_bias_max": 8.0,
        "architectures": ["LLaDAModelLM"],
        "attention_dropout": 0.0,
        "attention_layer_norm": False,
        "attention_layer_norm_with_affine": True,
        "auto_map": auto_map("llada", "LLaDAConfig", "LLaDAModelLM"),
        "bias_for_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "d_model": size.hidden,
        "embedding_dropout": 0.0,
        "embedding_size": size.vocab,
        "eos_token_id": size.ids["pad"],
        "flash_attention": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "init_cutoff_factor": None,
        "init_device": "meta",
        "init_fn": "mitchell",
        "init_std": 0.02,
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "mask_token_id": size.ids["mask"],
        "max_sequence_length": 4096,
        "mlp_hidden_size": size.ffn,
        "mlp_ratio": 4,
        "model_type": "llada",
        "multi_query_attention": None,
        "n_heads": size.heads,
        "n_kv_heads": size.heads,
        "n_layers": size.layers,
        "pad_token_id": size.ids["pad"],
        "precision": "amp_bf16",
        "residual_dropout": 0.0,
        "rms_norm_eps": 1e-05,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": 500000.0,
        "scale_logits": False,
        "torch_dtype": "float32",
        "transformers_version": "4.46.3",
        "use_cache": False,
        "vocab_size": size.vocab,
        "weight_tying": False,
    }


def illada(size: Size) -> Config:
    """Ids are the released ones (mask 5, which the config does not name); rms_norm_eps and rope_theta are NOT known."""
    return common(size) | {
        "architectures": ["ILLaDAForCausalLM"],
        "attention_bias": False,
        "auto_map": auto_map("illada", "ILLaDAConfig", "ILLaDAForCausalLM"),
        "bos_token_id": 0,
        "dtype": "float32",
        "eos_token_id": 2,
        "layer_norm_eps": None,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "model_type": "illada",
        "pad_token_id": 1,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-06,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "transformers_version": "4.57.1",
    }


def dream(size: Size) -> Config:
    return common(size) | {
        "architectures": ["DreamModel"],
        "auto_map": auto_map("dream", "DreamConfig", "DreamModel", ("AutoModel",)),
        "bos_token_id": size.ids["pad"],
        "eos_token_id": size.ids["pad"],
        "mask_token_id": size.ids["mask"],
        "max_position_embeddings": 131072,
        "max_window_layers": size.layers,
        "model_type": "Dream",
        "pad_token_id": size.ids["pad"],
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.46.2",
        "use_cache": True,
        "use_mrope": False,
        "use_sliding_window": False,
    }


def llada_moe(size: Size, bias: bool = False) -> Config:
    shared = common(size)
    del shared["intermediate_size"]
    return shared | {
        "architectures": ["LLaDAMoEModelLM"],
        "attention_bias": False,
        "auto_map": auto_map("lladamoe", "LLaDAConfig", "LLaDAMoEModelLM"),
        "clip_qkv": None,
        "dense_intermediate_size": size.ffn,
        "eos_token_id": size.ids["pad"],
        "expert_intermediate_size": size.expert_ffn,
        "max_position_embeddings": 8192,
        "model_type": "llada",
        "moe_layer_freq": [1] * size.layers,
        "moe_router_enable_expert_bias": bias,
        "moe_router_score_function": "softmax",
        "norm_topk_prob": None,
        "num_experts": size.experts,
        "num_experts_per_tok": size.top_k,
        "num_key_value_heads": size.heads,
        "output_router_logits": False,
        "pad_token_id": size.ids["pad"],
        "partial_rotary_factor": 1,
        "qk_layernorm": True,
        "rms_norm_eps": 1e-05,
        "rope_theta": 50000,
        "routed_scaling_factor": 1,
        "router_aux_loss_coef": 0.01,
        "router_num_group": None,
        "router_topk_group": None,
        "shared_expert_intermediate_size": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": False,
    }


def llada_moe_bias(size: Size) -> Config:
    return llada_moe(size, bias=True)


def a2d_llama(size: Size) -> Config:
    """Llama-3.2's fields (its rope scaling, tied head) under dllm's model_type."""
    scaling = {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0}
    return common(size) | {
        "architectures": ["A2DLlamaLMHeadModel"],
        "attention_bias": False,
        "bos_token_id": size.ids["pad"] - 1,
        "dtype": "float32",
        "eos_token_id": size.ids["pad"],
        "head_dim": size.hidden // size.heads,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "a2d-llama",
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {**scaling, "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "transformers_version": "4.57.6",
        "use_cache": True,
    }


def a2d_qwen2(size: Size) -> Config:
    return common(size) | {
        "architectures": ["A2DQwen2LMHeadModel"],
        "bos_token_id": size.ids["pad"],
        "dtype": "float32",
        "eos_token_id": size.ids["turn"],
        "layer_types": ["full_attention"] * size.layers,
        "max_position_embeddings": 32768,
        "max_window_layers": size.layers,
        "model_type": "a2d-qwen2",
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "transformers_version": "4.57.6",
        "use_cache": True,
        "use_sliding_window": False,
    }


def a2d_qwen3(size: Size) -> Config:
    """Qwen3-0.6B's fields: tied, and a head size that is not hidden / heads."""
    return a2d_qwen2(size) | {
        "architectures": ["A2DQwen3LMHeadModel"],
        "attention_bias": False,
        "head_dim": size.head,
        "max_position_embeddings": 40960,
        "model_type": "a2d-qwen3",
    }


def sdar(size: Size) -> Config:
    return common(size) | {
        "architectures": ["SDARForCausalLM"],
        "attention_bias": False,
        "auto_map": {**auto_map("sdar", "SDARConfig", "SDARForCausalLM"), "AutoModel": "modeling_sdar.SDARModel"},
        "block_size": size.block,
        "bos_token_id": size.ids["pad"],
        "debug": False,
        "eos_token_id": size.ids["pad"],
        "ep_size": 1,
        "fuse_cross_entropy": True,
        "head_dim": size.head,
        "mask_token_id": size.ids["mask"],
        "max_position_embeddings": 32768,
        "max_window_layers": size.layers,
        "micro_forward": False,
        "model_type": "sdar",
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000,
        "skip_checkpoint": False,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.52.4",
        "use_cache": False,
        "use_deepep": False,
        "use_sliding_window": False,
    }


def sdar_moe(size: Size) -> Config:
    """SDAR-30B-A3B: Qwen3-MoE's fields, renormalised routing, no block size and no mask id in the file."""
    dropped = (
        "block_size",
        "debug",
        "ep_size",
        "fuse_cross_entropy",
        "mask_token_id",
        "micro_forward",
        "skip_checkpoint",
    )
    kept = {key: value for key, value in sdar(size).items() if key not in (*dropped, "use_deepep")}
    names = {
        **auto_map("sdar_moe", "SDARMoeConfig", "SDARMoeForCausalLM"),
        "AutoModel": "modeling_sdar_moe.SDARMoeModel",
    }
    return kept | {
        "architectures": ["SDARMoeForCausalLM"],
        "auto_map": names,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "model_type": "sdar_moe",
        "moe_intermediate_size": size.expert_ffn,
        "norm_topk_prob": True,
        "num_experts": size.experts,
        "num_experts_per_tok": size.top_k,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
        "transformers_version": "4.51.0",
        "use_cache": True,
    }


def llada2(size: Size) -> Config:
    """LLaDA2.0-mini and 2.1-mini, whose files are equal: no mask, begin or end id, and no block size, in the file."""
    names = auto_map("llada2_moe", "LLaDA2MoeConfig", "LLaDA2MoeModelLM")
    return common(size) | {
        "architectures": ["LLaDA2MoeModelLM"],
        "auto_map": {**names, "AutoModel": "modeling_llada2_moe.LLaDA2MoeModel"},
        "dtype": "float32",
        "embedding_dropout": 0.0,
        "first_k_dense_replace": 1,
        "head_dim": size.head,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "model_type": "llada2_moe",
        "moe_intermediate_size": size.expert_ffn,
        "moe_router_enable_expert_bias": True,
        "n_group": size.groups,
        "norm_head": False,
        "norm_softmax": False,
        "norm_topk_prob": True,
        "num_experts": size.experts,
        "num_experts_per_tok": size.top_k,
        "num_shared_experts": 1,
        "output_dropout": 0.0,
        "output_router_logits": False,
        "pad_token_id": size.ids["pad"],
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-06,
        "rope_theta": 600000,
        "rotary_dim": size.head // 2,
        "routed_scaling_factor": 2.5,
        "router_dtype": "fp32",
        "score_function": "sigmoid",
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "topk_group": size.kept_groups,
        "transformers_version": "4.57.1",
        "use_bias": False,
        "use_cache": False,
        "use_qk_norm": True,
        "use_qkv_bias": False,
        "use_rmsnorm": True,
        "use_sliding_window": False,
        "using_split_qkv_in_self_attention": False,
    }
