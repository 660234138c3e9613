"""What can be loaded, with which special tokens and dtype, and the errors of what cannot; tiny models.

What every family keeps of its files is in test_contract_training.py.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from vrpo.models import tiny
from vrpo.models.hf import HFDenoiser
from vrpo.models.load import load


@pytest.fixture
def folder(golden: Path, tmp_path: Path) -> Path:
    """A copy of the golden checkpoint that a test may edit."""
    copy = tmp_path / "llada"
    copy.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(golden / "llada_dense" / name, copy)
    return copy


def edit(folder: Path, **fields: object) -> None:
    """Change fields of config.json; the value `...` removes one."""
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps({name: v for name, v in config.items() if v is not ...}))


def logp(denoiser: HFDenoiser, seed: int = 0) -> torch.Tensor:
    ids = torch.randint(0, 190, (2, 9), generator=torch.Generator().manual_seed(seed))
    masked = torch.zeros_like(ids, dtype=torch.bool)
    masked[:, 4:] = True
    with torch.no_grad():
        return denoiser(input_ids=ids, attention_mask=torch.ones_like(masked), masked=masked, scored=masked)


def test_unknown_fields_survive(folder: Path, tmp_path: Path) -> None:
    edit(folder, somebody_elses_field=[1, 2])
    load(folder).save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["somebody_elses_field"] == [1, 2]


def test_special_tokens_come_from_the_configuration(golden: Path) -> None:
    denoiser = load(golden / "llada_dense")
    assert (denoiser.mask_id, denoiser.eos_id, denoiser.pad_id, denoiser.eot_id) == (198, 196, 196, None)
    assert denoiser.tokenizer is None
    assert not denoiser.module.training


def test_dtype_as_stored_or_as_asked(folder: Path) -> None:
    assert load(folder).module.dtype == torch.float32
    assert load(folder, dtype=torch.bfloat16).module.dtype == torch.bfloat16
    edit(folder, torch_dtype="bfloat16")
    assert load(folder).module.dtype == torch.bfloat16


@pytest.mark.parametrize("architectures", [["GPT2LMHeadModel"], [], ...])
def test_an_unknown_architecture_is_named(folder: Path, architectures: object) -> None:
    edit(folder, architectures=architectures)
    with pytest.raises(ValueError, match="has no adapter"):
        load(folder)


@pytest.mark.parametrize("field", ["mask_token_id", "n_layers", "rope_theta"])
@pytest.mark.parametrize("value", [..., None])
def test_a_missing_field_is_named(folder: Path, field: str, value: object) -> None:
    """Kills: a missing number replaced by a default (a mask token, a RoPE base)."""
    edit(folder, **{field: value})
    with pytest.raises(ValueError, match=field):
        load(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [("activation_type", "gelu"), ("alibi", True), ("include_qkv_bias", True), ("scale_logits", True), ("rope", False)],
)
def test_an_unsupported_value_is_named(folder: Path, field: str, value: object) -> None:
    edit(folder, **{field: value})
    with pytest.raises(ValueError, match=field):
        load(folder)


def test_a_checkpoint_without_a_tensor_is_not_loaded_in_silence(folder: Path) -> None:
    """Kills: a renamed or missing tensor replaced by random numbers."""
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.transformer.blocks.1.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises((ValueError, RuntimeError), match="up_proj"):
        load(folder)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json"):
        load(tmp_path)


# Tiny models ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> HFDenoiser:
    tokenizer = tiny.train_tokenizer(["one two three", "four five six"] * 3, vocab_size=300)
    return tiny.from_config(tokenizer, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=48, seed=3)


def test_a_tiny_model_survives_save_and_load(small: HFDenoiser, tmp_path: Path) -> None:
    """Weights, special tokens, tokenizer: a model made here is a checkpoint in the official layout."""
    small.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LLaDAModelLM"]
    assert config["d_model"] == 32
    assert "hidden_size" not in config
    loaded = load(tmp_path)
    assert (loaded.mask_id, loaded.eos_id, loaded.pad_id, loaded.eot_id) == (
        small.mask_id,
        small.eos_id,
        small.pad_id,
        small.eot_id,
    )
    assert loaded.eot_id is not None
    assert loaded.tokenizer.encode("one four") == small.tokenizer.encode("one four")
    assert torch.equal(logp(loaded), logp(small))
    ours, theirs = small.module.state_dict(), loaded.module.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_tiny_model_is_bidirectional(small: HFDenoiser) -> None:
    """Kills: causal attention where no official configuration has been read."""
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]])
    masked = torch.zeros_like(ids, dtype=torch.bool)
    masked[:, 1] = True
    with torch.no_grad():
        first, second = small(input_ids=ids, attention_mask=torch.ones_like(masked), masked=masked, scored=masked)
    assert first != second


def test_tied_embeddings_survive_save_and_load(small: HFDenoiser, tmp_path: Path) -> None:
    tied = tiny.from_config(
        small.tokenizer, hidden_size=32, num_layers=1, num_heads=2, intermediate_size=48, tie_embeddings=True
    )
    tied.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.module.lm_head.weight is loaded.module.model.embed_tokens.weight
    assert torch.equal(logp(loaded), logp(tied))


def test_tiny_models_are_seeded_and_leave_the_global_generator_alone(
    small: HFDenoiser, no_global_randomness: None
) -> None:
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 48}
    again, other = (tiny.from_config(small.tokenizer, **shape, seed=seed) for seed in (3, 4))
    assert torch.equal(logp(again), logp(small))
    assert not torch.equal(logp(other), logp(small))


@pytest.mark.parametrize(
    ("architecture", "more", "shift"),
    [
        ("DreamModel", {"num_kv_heads": 1}, True),
        ("ILLaDAForCausalLM", {"tie_embeddings": True}, False),
        ("LLaDAMoEModelLM", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}, False),
        ("Qwen3ForCausalLM", {"shift_logits": True}, True),
    ],
)
def test_tiny_models_of_other_layouts(
    small: HFDenoiser, tmp_path: Path, architecture: str, more: dict[str, Any], shift: bool
) -> None:
    """Kills: always LLaDA's layout; sizes that the architecture takes from its defaults (128 numbers a head)."""
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 48}
    made = tiny.from_config(small.tokenizer, architecture=architecture, **shape, **more)
    assert sum(parameter.numel() for parameter in made.module.parameters()) < 60_000
    made.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [architecture]
    loaded = load(tmp_path)
    assert loaded.module.config.shift_logits is shift
    assert torch.equal(logp(loaded), logp(made))
    with pytest.raises(ValueError, match="architecture Nothing has no adapter"):
        tiny.from_config(small.tokenizer, architecture="Nothing", **shape)


def test_pickled_weights_are_refused(golden: Path, tmp_path: Path) -> None:
    """As docs/models.md says. Kills: weights of a format that can run code, read in silence."""
    (tmp_path / "config.json").write_bytes((golden / "llada_dense" / "config.json").read_bytes())
    torch.save(load_file(golden / "llada_dense" / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no weights in safetensors"):
        load(tmp_path)
