"""A tiny model with a tokenizer, for the whole room."""

import pytest

from vrpo.models.hf import HFDenoiser
from vrpo.models.tiny import from_config, train_tokenizer


@pytest.fixture(scope="session")
def model() -> HFDenoiser:
    texts = ["Which is it? It is a cat, a dog, a bird or a whale.", "user assistant system yes no one two three"]
    tokenizer = train_tokenizer(texts, 340)
    return from_config(
        tokenizer, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32, max_length=256, seed=3
    )
