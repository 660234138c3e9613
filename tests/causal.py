"""Tiny causal language models of transformers, as objects and as folders."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from vrpo.models.tiny import train_tokenizer

VOCAB = 300
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_LLAMA = {**_SHAPE, "intermediate_size": 48, "num_key_value_heads": 2}
CONFIGS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {**_LLAMA, "pad_token_id": None}),
    "gpt2": (GPT2Config, {**_SHAPE, "resid_pdrop": 0.1}),  # positions are absolute, and it drops out
    "gemma2": (Gemma2Config, {**_LLAMA, "head_dim": 8, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8}),
    "granite": (GraniteConfig, {**_LLAMA, "logits_scaling": 4.0}),
    "opt": (OPTConfig, {**_SHAPE, "ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.1}),
}
PLAIN = {"llama": True, "gpt2": True, "gemma2": False, "granite": False}  # logits are those of the head


def tokenizer() -> PreTrainedTokenizerFast:
    """It names no mask token: `vrpo.load` would take a model that has one for a diffusion model."""
    found = train_tokenizer(["the sky is blue and the sun is in the sky"], VOCAB)
    found.mask_token = None
    return found


def causal(kind: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float64, **fields: Any) -> Any:
    """A module of transformers, with weights large enough for logits to differ."""
    klass, given = CONFIGS[kind]
    config = klass(**{**given, "initializer_range": 0.25, **fields})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).to(dtype).eval()


def causal_folder(folder: Path, kind: str = "llama", *, seed: int = 0, **fields: Any) -> Path:
    """The same as transformers saves it, with a tokenizer."""
    causal(kind, seed=seed, dtype=torch.float32, **fields).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
