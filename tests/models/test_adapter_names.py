"""Adapters under the official module names, both ways (models/adapter_names.py)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from tests.models.folders import checkpoint
from tests.models.test_load import logp
from vrpo.models.adapter import with_adapter
from vrpo.models.adapter_names import export_adapter, official_name, own_name
from vrpo.models.dream import Dream
from vrpo.models.hf import HFDenoiser
from vrpo.models.llada import LLaDA
from vrpo.models.llada2 import LLaDA2
from vrpo.models.load import load

OFFICIAL = {  # written by hand, from the published modelling code: module of a block -> ours
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}
LORA: dict[str, Any] = {"init_lora_weights": False, "r": 3, "lora_alpha": 5}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return checkpoint("llada", tmp_path / "base")


def adapted(base: Path, **fields: Any) -> HFDenoiser:
    return with_adapter(load(base), LoraConfig(**{**LORA, **fields}), seed=3)


class Block(nn.Module):
    def __init__(self, hidden: int, wide: int):
        super().__init__()
        for name in OFFICIAL:
            rows, columns = {"ff_proj": (wide, hidden), "up_proj": (wide, hidden), "ff_out": (hidden, wide)}.get(
                name, (hidden, hidden)
            )
            self.add_module(name, nn.Linear(columns, rows, bias=False))


class OfficialNames(nn.Module):
    """LLaDA's linear layers where the published code has them; the head shares the down projection's short name."""

    def __init__(self, weights: dict[str, torch.Tensor], layers: int, hidden: int, wide: int):
        super().__init__()
        self.model = nn.Module()
        self.model.transformer = nn.Module()
        self.model.transformer.blocks = nn.ModuleList(Block(hidden, wide) for _ in range(layers))
        self.model.transformer.ff_out = nn.Linear(hidden, len(weights["model.transformer.ff_out.weight"]), bias=False)
        self.load_state_dict({name: weights[name] for name in self.state_dict()})

    def forward(self) -> None:
        raise NotImplementedError


def run_official(base: Path, adapter: Path) -> tuple[torch.Tensor, PeftModel]:
    """Log-probabilities with every linear layer as plain peft makes it of official modules and the saved adapter."""
    official = OfficialNames(load_file(base / "model.safetensors"), 2, 64, 128)
    wrapped = PeftModel.from_pretrained(official, str(adapter))
    denoiser, tree = load(base), wrapped.get_base_model()
    for layer in range(2):
        for theirs, ours in OFFICIAL.items():
            module = tree.get_submodule(f"model.transformer.blocks.{layer}.{theirs}")
            denoiser.module.set_submodule(f"model.layers.{layer}.{ours}", module)
    denoiser.module.set_submodule("lm_head", tree.get_submodule("model.transformer.ff_out"))
    return logp(denoiser), wrapped


@pytest.mark.parametrize("fields", [{}, {"target_modules": ["down_proj", "o_proj"]}, {"use_dora": True}])
def test_an_exported_adapter_loads_with_plain_peft(base: Path, tmp_path: Path, fields: dict[str, Any]) -> None:
    """Kills: gate and up exchanged; `ff_out` without its block, which is the head too."""
    denoiser = adapted(base, **fields)
    denoiser.save_pretrained(tmp_path / "adapter")
    export_adapter(str(tmp_path / "adapter"), LLaDA, tmp_path / "official")
    found, wrapped = run_official(base, tmp_path / "official")
    torch.testing.assert_close(found, logp(denoiser), atol=1e-6, rtol=0)
    assert (found - logp(load(base))).abs().max() > 1e-3
    assert not isinstance(wrapped.get_submodule("base_model.model.model.transformer.ff_out"), type(
        wrapped.get_submodule("base_model.model.model.transformer.blocks.0.ff_out")
    ))  # fmt: skip


def test_the_configuration_names_the_base_and_no_class_of_ours(base: Path, tmp_path: Path) -> None:
    adapted(base).save_pretrained(tmp_path / "adapter")
    export_adapter(str(tmp_path / "adapter"), LLaDA, tmp_path / "official")
    fields = json.loads((tmp_path / "official" / "adapter_config.json").read_text())
    assert fields["base_model_name_or_path"] == str(base)
    assert fields["auto_mapping"] is None
    assert set(fields["target_modules"]) == {
        f"model.transformer.blocks.{layer}.{name}" for layer in range(2) for name in OFFICIAL
    }
    names = load_file(tmp_path / "official" / "adapter_model.safetensors")
    assert "base_model.model.model.transformer.blocks.1.attn_out.lora_A.weight" in names
    assert not [name for name in names if "self_attn" in name or "mlp" in name]


def test_ranks_and_scales_of_single_modules(base: Path, tmp_path: Path) -> None:
    """Kills: patterns under names that match nothing, so that shapes or scales are others."""
    patterns = {"rank_pattern": {"down_proj": 5, "layers.1.self_attn.o_proj": 2}, "alpha_pattern": {"o_proj": 40}}
    denoiser = adapted(base, **patterns)
    denoiser.save_pretrained(tmp_path / "adapter")
    export_adapter(str(tmp_path / "adapter"), LLaDA, tmp_path / "official")
    torch.testing.assert_close(run_official(base, tmp_path / "official")[0], logp(denoiser), atol=1e-6, rtol=0)
    torch.testing.assert_close(logp(load(tmp_path / "official")), logp(denoiser), atol=1e-6, rtol=0)


def test_a_trained_head_is_converted(base: Path, tmp_path: Path) -> None:
    denoiser = adapted(base, modules_to_save=["lm_head"], target_modules=["q_proj"])
    with torch.no_grad():
        denoiser.module.base_model.model.lm_head.modules_to_save["default"].weight.add_(0.1)
    denoiser.save_pretrained(tmp_path / "adapter")
    export_adapter(str(tmp_path / "adapter"), LLaDA, tmp_path / "official")
    assert "base_model.model.model.transformer.ff_out.weight" in load_file(
        tmp_path / "official" / "adapter_model.safetensors"
    )
    torch.testing.assert_close(run_official(base, tmp_path / "official")[0], logp(denoiser), atol=1e-6, rtol=0)
    torch.testing.assert_close(logp(load(tmp_path / "official")), logp(denoiser), atol=1e-6, rtol=0)


def test_an_adapter_with_official_names_loads(base: Path, tmp_path: Path) -> None:
    """As other people's tools leave it, with short names. Kills: names that match nothing, an adapter without effect;
    trainable parameters."""
    official = OfficialNames(load_file(base / "model.safetensors"), 2, 64, 128)
    config = LoraConfig(**LORA, target_modules=["q_proj", "attn_out", "ff_proj", "up_proj"])
    torch.manual_seed(1)
    get_peft_model(official, config).save_pretrained(str(tmp_path / "theirs"))
    expected, _ = run_official(base, tmp_path / "theirs")
    loaded = load(base, adapter=tmp_path / "theirs")
    torch.testing.assert_close(logp(loaded), expected, atol=1e-6, rtol=0)
    assert not [
        name for name, parameter in loaded.module.named_parameters() if "lora_" in name and parameter.requires_grad
    ]
    loaded.save_pretrained(tmp_path / "ours")
    torch.testing.assert_close(logp(load(base, adapter=tmp_path / "ours")), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(logp(loaded.merged()), expected, atol=1e-5, rtol=0)


def test_an_adapter_of_another_model_is_refused(base: Path, tmp_path: Path) -> None:
    """Kills: peft's warning, and a base without an adapter in place of the adapted model."""
    torch.manual_seed(1)
    three = OfficialNames(
        load_file(checkpoint("llada", tmp_path / "three", n_layers=3) / "model.safetensors"), 3, 64, 128
    )
    get_peft_model(three, LoraConfig(**LORA, target_modules=["attn_out"])).save_pretrained(str(tmp_path / "theirs"))
    with pytest.raises(ValueError, match="adapter"):
        load(base, adapter=tmp_path / "theirs")
    other = checkpoint("dream", tmp_path / "dream")
    adapted(base, target_modules=["o_proj"]).save_pretrained(tmp_path / "ours")
    fields = json.loads((tmp_path / "ours" / "adapter_config.json").read_text()) | {"target_modules": ["gate_proj"]}
    (tmp_path / "ours" / "adapter_config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="no adapter of this model"):
        load(other, adapter=tmp_path / "ours")


@pytest.mark.parametrize("family", ["dream", "llada_moe"])
def test_an_adapter_of_another_shape_or_with_more_modules_is_refused(base: Path, tmp_path: Path, family: str) -> None:
    """Dream's keys are smaller, LLaDA-MoE has no linear layers in its MLP. Kills: a traceback; an adapter of which
    what fits is put on, and the rest left out without a word."""
    adapted(base).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="no adapter of this model"):
        load(checkpoint(family, tmp_path / "other"), adapter=tmp_path / "adapter")


def test_modules_that_are_officially_one_are_not_renamed(tmp_path: Path) -> None:
    """LLaDA2's queries, keys and values. Kills: an "official" adapter of which the official code ignores a part."""
    parts = {name: f"model.layers.0.self_attn.{name}" for name in ("q_proj", "o_proj")}
    for name, module in parts.items():
        (tmp_path / name).mkdir()
        LoraConfig(r=2, target_modules=[name]).save_pretrained(str(tmp_path / name))
        state = {f"base_model.model.{module}.lora_{side}.weight": torch.zeros(2, 2) for side in "AB"}
        save_file(state, tmp_path / name / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="parts of one module: merge it"):
        export_adapter(str(tmp_path / "q_proj"), LLaDA2, tmp_path / "q")
    export_adapter(str(tmp_path / "o_proj"), LLaDA2, tmp_path / "o")
    assert all(".attention.dense." in name for name in load_file(tmp_path / "o" / "adapter_model.safetensors"))


def test_what_has_no_module_is_refused(base: Path, tmp_path: Path) -> None:
    adapted(base).save_pretrained(tmp_path / "adapter")
    fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(fields | {"target_parameters": ["x.y"]}))
    with pytest.raises(ValueError, match="target_parameters"):
        export_adapter(str(tmp_path / "adapter"), LLaDA, tmp_path / "official")


def test_names_go_both_ways() -> None:
    """Every tensor of LLaDA; Dream's are transformers' own."""
    for theirs, ours in OFFICIAL.items():
        assert official_name(LLaDA, f"model.layers.12.{ours}") == f"model.transformer.blocks.12.{theirs}"
        assert own_name(LLaDA, f"model.transformer.blocks.12.{theirs}") == f"model.layers.12.{ours}"
        assert official_name(Dream, f"model.layers.12.{ours}") == f"model.layers.12.{ours}"
    assert official_name(LLaDA, "lm_head") == "model.transformer.ff_out"
    assert own_name(LLaDA, "model.transformer.ff_out") == "lm_head"
    assert own_name(LLaDA, "model.layers.3.mlp.up_proj") == "model.layers.3.mlp.up_proj"
