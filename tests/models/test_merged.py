"""A merged model is the model with its adapter, also where head and embedding are one tensor, and can be trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tests.loops import each
from tests.models.folders import tokenizer
from vrpo.cli import main
from vrpo.models.adapter import with_adapter
from vrpo.models.causal import load_causal
from vrpo.models.hf import HFDenoiser
from vrpo.models.load import load
from vrpo.models.tiny import from_config
from vrpo.training.given import check_trainable

ON_TIED: dict[str, dict[str, Any]] = {
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "both": {"target_modules": ["lm_head", "embed_tokens"]},
    "whole head": {"modules_to_save": ["lm_head"]},
    "whole embedding": {"modules_to_save": ["embed_tokens"]},
    "tokens": {"trainable_token_indices": [1, 2]},
    "tokens of the head": {"trainable_token_indices": {"lm_head": [1, 2]}},
    "kept tied": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    "whole, kept tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "directions of the head": {"target_modules": ["lm_head"], "use_dora": True},
    "directions of both": {"target_modules": ["lm_head", "embed_tokens"], "use_dora": True},
    "blocks": {},
}


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("tied"), "LLaDAModelLM")


def saved(folder: Path, architecture: str) -> Path:
    sizes = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "intermediate_size": 48}
    from_config(tokenizer(), **sizes, tie_embeddings=True, architecture=architecture).save_pretrained(folder)
    return folder


def adapted(base: HFDenoiser, **fields: Any) -> HFDenoiser:
    found = with_adapter(base, LoraConfig(r=2, init_lora_weights=False, **fields), 1)
    generator = torch.Generator().manual_seed(3)
    for parameter in found.module.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    found.module.eval()
    return found


@torch.no_grad()
def said(denoiser: HFDenoiser) -> Tensor:
    ids = torch.arange(20, 50)[None]
    here = torch.ones_like(ids, dtype=torch.bool)
    return denoiser(input_ids=ids, attention_mask=here, masked=torch.zeros_like(here), scored=here)


@pytest.mark.parametrize("on", ON_TIED)
def test_an_adapter_on_tied_weights_is_merged(tied: Path, tmp_path: Path, on: str) -> None:
    """By hand, and by export. Kills: what an adapter adds to the head, added to the embedding; a saved model that other
    tools would tie again; an adapter on the blocks that unties."""
    given = adapted(load(tied), **ON_TIED[on])
    expected = said(given)
    given.save_pretrained(tmp_path / "adapter")
    merged = load(tmp_path / "adapter").merged()
    assert merged.module.config.tie_word_embeddings is (on == "blocks")
    out = ["--output_dir", str(tmp_path / "out")]
    assert main(["export", "--model_name_or_path", str(tmp_path / "adapter"), *out]) == 0
    for found in (merged, load(tmp_path / "out")):
        torch.testing.assert_close(said(found), expected, rtol=1e-4, atol=1e-4)
        assert found.module.config.tie_word_embeddings is (on == "blocks")


@each("architecture", ["Qwen2ForCausalLM", "DreamModel", "ILLaDAForCausalLM"])
def test_in_other_families(tmp_path: Path, architecture: str) -> None:
    given = adapted(load(saved(tmp_path / "base", architecture)), target_modules=["lm_head"])
    expected = said(given)
    given.merged().save_pretrained(tmp_path / "out")
    found = load(tmp_path / "out")
    torch.testing.assert_close(said(found), expected, rtol=1e-4, atol=1e-4)
    assert not found.module.config.tie_word_embeddings


def test_in_causal_models(tmp_path: Path) -> None:
    ids = torch.arange(20, 50)[None]
    scored = torch.ones_like(ids, dtype=torch.bool).triu(1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "scored": scored}
    sizes = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 48}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=True)).save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    given = adapted(load_causal(tmp_path / "base"), target_modules=["lm_head"])
    expected = given.module(**inputs).detach()
    given.merged().save_pretrained(tmp_path / "out")
    torch.testing.assert_close(load_causal(tmp_path / "out").module(**inputs), expected, rtol=1e-4, atol=1e-4)


def test_merged_weights_can_be_trained(tied: Path, tmp_path: Path) -> None:
    """As the error about a frozen adapter says. Kills: the same error again."""
    adapted(load(tied)).save_pretrained(tmp_path / "adapter")
    frozen = load(tmp_path / "adapter")
    with pytest.raises(ValueError, match="Merge it"):
        check_trainable(frozen.module)
    merged = frozen.merged()
    check_trainable(merged.module)
    assert all(parameter.requires_grad for parameter in merged.module.parameters())
