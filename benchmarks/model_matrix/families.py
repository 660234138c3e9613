"""Small random checkpoints of every family, in the official layout, with a tokenizer of their own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from vrpo.models.bidirectional import BidirectionalLlama, BidirectionalQwen2, BidirectionalQwen3
from vrpo.models.dream import Dream
from vrpo.models.illada import ILLaDA
from vrpo.models.llada import LLaDA
from vrpo.models.llada2 import LLaDA2
from vrpo.models.llada_moe import LLaDAMoE
from vrpo.models.load import adapt
from vrpo.models.sdar import SDAR, SDARMoe

_DENSE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
}
_GROUPED = {**_DENSE, "num_key_value_heads": 2}
_BLOCKS = {**_GROUPED, "head_dim": 16, "block_size": 4}


@dataclass(frozen=True)
class Family:
    """A module class and its configuration, in transformers' names, without the vocabulary and the special tokens."""

    module: Callable[[Any], Any]
    config: Mapping[str, Any]

    def build(self, tokenizer: PreTrainedTokenizerBase, folder: Path) -> int:
        """Write a model with random weights; how many parameters it has."""
        kind: Any = self.module
        config = kind.config_class(
            **self.config,
            vocab_size=-(-len(tokenizer) // 64) * 64,
            mask_token_id=tokenizer.mask_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            dtype=torch.float32,
            use_cache=False,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = kind(config).to(torch.float32).eval()
        adapt(module, tokenizer).save_pretrained(folder)
        return sum(parameter.numel() for parameter in module.parameters())


FAMILIES: dict[str, Family] = {
    "LLaDA": Family(LLaDA, _DENSE),
    "iLLaDA": Family(ILLaDA, {**_GROUPED, "tie_word_embeddings": True}),
    "LLaDA-MoE": Family(
        LLaDAMoE,
        {
            **{name: value for name, value in _DENSE.items() if name != "intermediate_size"},
            "num_key_value_heads": 4,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
        },
    ),
    "Dream": Family(Dream, _GROUPED),
    "SDAR": Family(SDAR, _BLOCKS),
    "SDAR with experts": Family(
        SDARMoe,
        {**_BLOCKS, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True},
    ),
    "LLaDA2": Family(
        LLaDA2,
        {
            **_BLOCKS,
            "rope_parameters": {"rope_type": "default", "rope_theta": 6e5, "partial_rotary_factor": 0.5},
            "n_routed_experts": 16,
            "num_experts_per_tok": 4,
            "n_shared_experts": 1,
            "moe_intermediate_size": 48,
            "n_group": 4,
            "topk_group": 2,
            "first_k_dense_replace": 1,
            "routed_scaling_factor": 2.5,
            "use_qk_norm": True,
            "num_mtp_layers": 0,
        },
    ),
    "Llama, both ways": Family(BidirectionalLlama, _GROUPED),
    "Qwen2, both ways": Family(BidirectionalQwen2, {**_GROUPED, "shift_logits": True}),
    "Qwen3, both ways": Family(BidirectionalQwen3, {**_GROUPED, "head_dim": 16}),
}
