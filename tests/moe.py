"""Small mixtures of experts to test with."""

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from vrpo.models.hf import HFDenoiser
from vrpo.models.llada_moe import LLaDAMoE, LLaDAMoEConfig
from vrpo.models.load import adapt


def tiny_moe(
    dtype: torch.dtype = torch.float64,
    *,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **fields: Any,
) -> HFDenoiser:
    """Two layers of six experts, two of them for each token, with weights large enough for routing to differ."""
    size = {"hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 8, "vocab_size": 320}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    routing = {"num_experts": 6, "num_experts_per_tok": 2, "norm_topk_prob": False}
    ids = {"mask_token_id": 5, "eos_token_id": 1, "pad_token_id": 1, "bos_token_id": None}
    angles = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e4}, "rms_norm_eps": 1e-5}
    config = LLaDAMoEConfig(**(size | heads | routing | ids | angles | fields))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = LLaDAMoE(config).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(40 if "gate.weight" in name else 10)
    module.config.dtype = dtype
    return adapt(module, tokenizer)
