"""Small models from a configuration, and byte-level BPE tokenizers to go with them: for teaching, tests and demos."""

from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from vrpo.models.hf import HFDenoiser
from vrpo.models.load import adapt, class_of
from vrpo.models.shape import check_sizes

SPECIAL_TOKENS = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|mdm_mask|>",
)
CHAT_TEMPLATE = (  # LLaDA's, except that the assistant header is appended only when a generation prompt is asked for
    "{% for message in messages %}{% if loop.index0 == 0 %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int = 4096) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `vocab_size` tokens with LLaDA's special tokens and chat template.

    Every string can be encoded (all 256 bytes are tokens). Deterministic in the texts.
    """
    if vocab_size < 256 + len(SPECIAL_TOKENS):
        raise ValueError(f"vocab_size must be at least {256 + len(SPECIAL_TOKENS)} (bytes and special tokens)")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        mask_token="<|mdm_mask|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def from_config(
    tokenizer: PreTrainedTokenizerBase,
    *,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    intermediate_size: int,
    num_kv_heads: int | None = None,
    max_length: int = 1024,
    tie_embeddings: bool = False,
    architecture: str = "LLaDAModelLM",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **fields: Any,
) -> HFDenoiser:
    """A model with random weights for this tokenizer, in the official layout of an architecture.

    Not to be confused with `load`: nothing is read. The vocabulary is rounded up to a multiple of 64, as hardware
    likes it.

    Args:
        num_kv_heads: of grouped queries; None: as many as heads.
        architecture: as `architectures[0]` of its config.json names it.
        fields: what this architecture needs besides, under transformers' names, such as `num_experts`.

    Raises:
        ValueError: sizes do not fit together, or there is no such architecture.
    """
    check_sizes(
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        intermediate_size=intermediate_size,
    )
    model: Any = class_of(architecture)
    config = model.config_class(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads if num_kv_heads is None else num_kv_heads,
        head_dim=hidden_size // num_heads,
        max_position_embeddings=max_length,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
        tie_word_embeddings=tie_embeddings,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        mask_token_id=tokenizer.mask_token_id,
        dtype=dtype,
        use_cache=False,
        **fields,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module: nn.Module = model(config)
    return adapt(module.to(dtype).eval(), tokenizer)
