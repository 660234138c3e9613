"""Tiny checkpoints of every family, as folders in their official layout."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from vrpo.models import tiny
from vrpo.models.load import _ADAPTERS

HIDDEN, LAYERS, HEADS, VOCAB = 64, 2, 4, 320
_QWEN = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": VOCAB,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 128,
    "attention_dropout": 0.0,
    "initializer_range": 0.1,
    "hidden_act": "silu",
    "torch_dtype": "float32",
}
CONFIGS: dict[str, dict[str, Any]] = {  # config.json by family; special ids come from the tokenizer
    "llada": {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "d_model": HIDDEN,
        "n_layers": LAYERS,
        "n_heads": HEADS,
        "n_kv_heads": HEADS,
        "mlp_hidden_size": 128,
        "vocab_size": VOCAB,
        "embedding_size": VOCAB,
        "rope_theta": 500000.0,
        "init_std": 0.1,
        "max_sequence_length": 128,
        "rms_norm_eps": 1e-5,
        "weight_tying": False,
        "torch_dtype": "float32",
    },
    "illada": {
        **_QWEN,
        "architectures": ["ILLaDAForCausalLM"],
        "model_type": "illada",
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "llada_moe": {
        **{name: value for name, value in _QWEN.items() if name != "intermediate_size"},
        "architectures": ["LLaDAMoEModelLM"],
        "model_type": "llada",
        "num_key_value_heads": HEADS,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "expert_intermediate_size": 32,
        "moe_layer_freq": [1] * LAYERS,
        "rope_theta": 50000.0,
        "tie_word_embeddings": False,
    },
    "dream": {
        **_QWEN,
        "architectures": ["DreamModel"],
        "model_type": "Dream",
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
    },
    "causal": {
        **_QWEN,
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
    },
}
CODE = {  # modelling code as it stands beside the weights: never run here
    "configuration_tiny.py": "from transformers import PretrainedConfig\n",
    "modeling_tiny.py": "from .configuration_tiny import TinyConfig\nfrom .parts_tiny import Part\nimport torch\n",
    "parts_tiny.py": "# parts\n",
    "unrelated.py": "raise RuntimeError\n",
}
AUTO_MAP = {"AutoConfig": "configuration_tiny.TinyConfig", "AutoModel": "modeling_tiny.TinyModel"}
GENERATION = '{"steps": 512,\n   "eps": 0.001, "eos_token_id": 1, "temperature": 0.2, "alg": "origin"}'


def tokenizer() -> PreTrainedTokenizerFast:
    return tiny.train_tokenizer(["one two three", "four five six"] * 3, VOCAB)


def checkpoint(family: str, folder: Path, **fields: Any) -> Path:
    """A folder with weights, tokenizer, modelling code and settings, written as nobody's library would write them."""
    words = tokenizer()
    config = {
        **CONFIGS[family],
        "mask_token_id": words.mask_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
        "auto_map": AUTO_MAP,
        **fields,
    }
    klass: Any = _ADAPTERS[config["architectures"][0]]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        module = klass(klass.config_class.from_dict(dict(config)))
    module.save_pretrained(folder)
    words.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "generation_config.json").write_text(GENERATION)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()), indent=7) + "\n\n")
    (folder / "special_tokens_map.json").write_text('{"mask_token":   "<|mdm_mask|>"}')
    for name, text in CODE.items():
        (folder / name).write_text(text)
    return folder
