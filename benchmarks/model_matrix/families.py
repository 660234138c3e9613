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
from vrpo.models.load import adapt

_DENSE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
}
_GROUPED = {**_DENSE, "num_key_value_heads": 2}


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
    "Dream": Family(Dream, _GROUPED),
    "Llama, both ways": Family(BidirectionalLlama, _GROUPED),
    "Qwen2, both ways": Family(BidirectionalQwen2, {**_GROUPED, "shift_logits": True}),
    "Qwen3, both ways": Family(BidirectionalQwen3, {**_GROUPED, "head_dim": 16}),
}
