"""A tiny byte-level tokenizer with LLaDA's special tokens and its official chat template."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.data.data_rows import TEMPLATE

SPECIAL = ["<|endoftext|>", "<|startoftext|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["the sky is blue", "what colour is the sky?", "user assistant system\n\n"], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TEMPLATE
    return fast


@pytest.fixture
def with_template(tokenizer: PreTrainedTokenizerFast) -> Any:
    """Sets another chat template for one test."""

    def set_to(template: str | None) -> PreTrainedTokenizerFast:
        tokenizer.chat_template = template
        return tokenizer

    yield set_to
    tokenizer.chat_template = TEMPLATE


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes rows (objects, or raw text for a broken line) as JSONL and returns the path."""

    def to(*rows: Any, name: str = "train.jsonl") -> str:
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        data = "\n".join(lines).encode() + b"\n"
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return str(path)

    return to
