"""LLaDA-MoE against the golden outputs of its reference code, and its layout both ways (tests/golden/llada_moe)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor

from tests.moe import tiny_moe
from vrpo.models.adapter import with_adapter
from vrpo.models.llada_moe import LLaDAMoEConfig
from vrpo.models.load import load

LOGITS = {"atol": 1e-5, "rtol": 1e-5}
MASK_ID = 198
EVERYWHERE = torch.ones(3, 24, dtype=torch.bool)


@pytest.fixture(scope="module")
def logits(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "llada_moe" / "golden.safetensors")


def official(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "llada_moe" / "config.json").read_text())


@pytest.mark.parametrize("experts", ["auto", "eager", "batched_mm", "grouped_mm"])
def test_logits(golden: Path, logits: dict[str, Tensor], experts: str) -> None:
    """Kills: renormalised weights (0.25 off), RoPE base (0.20), no head norms (0.63), causal attention (1.9)."""
    denoiser = load(golden / "llada_moe", mask_token_id=MASK_ID, experts_implementation=experts)
    assert denoiser.module.config._experts_implementation == experts
    with torch.no_grad():
        actual = denoiser.logits(logits["input_ids"], EVERYWHERE, EVERYWHERE)
    torch.testing.assert_close(actual.view(3, 24, -1), logits["logits"], **LOGITS)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padded_logits(golden: Path, logits: dict[str, Tensor], attention: str) -> None:
    """At real positions. Kills: padding attended, as by the original code, whose logits are 0.89 away."""
    denoiser = load(golden / "llada_moe", mask_token_id=MASK_ID, attn_implementation=attention)
    real = logits["left_attention_mask"].bool()
    with torch.no_grad():
        actual = denoiser.logits(logits["left_input_ids"], real, real)
    torch.testing.assert_close(actual, logits["left_logits_mask_honoured"][real], **LOGITS)
    assert (actual - logits["left_logits"][real]).abs().max() > 0.1  # the test can fail


def test_saved_as_it_was(golden: Path, tmp_path: Path) -> None:
    """Kills: stacked experts saved as they are, gate and up projections swapped on the way back, a lost field."""
    denoiser = load(golden / "llada_moe", mask_token_id=MASK_ID)
    denoiser.save_pretrained(tmp_path, max_shard_size="200KB")
    shards = [load_file(path) for path in tmp_path.glob("*.safetensors")]
    assert len(shards) > 1
    saved = {name: tensor for shard in shards for name, tensor in shard.items()}
    original = load_file(golden / "llada_moe" / "model.safetensors")
    assert saved.keys() == original.keys()
    assert all(torch.equal(saved[name], original[name]) for name in original)
    assert json.loads((tmp_path / "config.json").read_text()) == official(golden) | {"mask_token_id": MASK_ID}
    again = load(tmp_path)
    assert again.mask_id == MASK_ID
    for name, tensor in denoiser.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], tensor), name


def test_bias_and_dense_layers_keep_their_official_names(tmp_path: Path) -> None:
    """Kills: the buffer under transformers' name or not saved; moe_layer_freq lost or inverted."""
    denoiser = tiny_moe(torch.float32, moe_router_enable_expert_bias=True, mlp_only_layers=[1])
    denoiser.module.model.layers[0].mlp.gate.expert_bias.copy_(torch.arange(6) / 10)
    denoiser.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert torch.equal(saved["model.layers.0.mlp.expert_bias"], torch.arange(6) / 10)
    assert saved["model.layers.0.mlp.experts.5.gate_proj.weight"].shape == (8, 16)
    assert saved["model.layers.1.mlp.gate_proj.weight"].shape == (24, 16)
    assert json.loads((tmp_path / "config.json").read_text())["moe_layer_freq"] == [1, 0]
    again = load(tmp_path).module.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in denoiser.module.state_dict().items())


def test_bias_selects_and_weighs() -> None:
    """By the definition, one token at a time. Kills: a bias that only selects (LLaDA2's), or enters the softmax."""
    layer = tiny_moe(moe_router_enable_expert_bias=True).module.model.layers[0].mlp
    layer.gate.expert_bias.copy_(torch.tensor([0.4, 0.0, -0.3, 0.2, 0.1, 0.0]))
    hidden = torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        actual = layer(hidden)[0]
        for token, found in zip(hidden[0], actual, strict=True):
            value = (layer.gate.weight @ token).softmax(0) + layer.gate.expert_bias
            expected = torch.zeros_like(token)
            for expert in value.argsort(descending=True)[:2]:
                gate, up = (layer.experts.gate_up_proj[expert] @ token).chunk(2)
                inner = torch.nn.functional.silu(gate) * up
                expected += value[expert] * (layer.experts.down_proj[expert] @ inner)
            torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("clip_qkv", 8.0),
        ("partial_rotary_factor", 0.5),
        ("qk_layernorm", False),
        ("rope_scaling", {"type": "linear", "factor": 2}),
        ("shared_expert_intermediate_size", 64),
        ("moe_layer_freq", [1, 1]),
        ("moe_layer_freq", 1),
    ],
)
def test_what_is_not_implemented_is_refused(golden: Path, field: str, value: Any) -> None:
    """Kills: a model that is loaded and is another one than its authors'."""
    with pytest.raises(ValueError, match=field):
        LLaDAMoEConfig.from_dict(official(golden) | {field: value})


def test_weights_are_never_renormalised(golden: Path) -> None:
    """Whatever config.json says, as in the official code."""
    assert LLaDAMoEConfig.from_dict(official(golden) | {"norm_topk_prob": True}).norm_topk_prob is False


def test_experts_implementation_is_checked(golden: Path) -> None:
    """Kills: a name that is silently another one; a choice where there is none."""
    with pytest.raises(ValueError, match="auto, eager, batched_mm, grouped_mm"):
        load(golden / "llada_moe", mask_token_id=MASK_ID, experts_implementation="fast")
    with pytest.raises(ValueError, match="is not LLaDA-MoE"):
        load(golden / "llada_dense", experts_implementation="eager")


def test_new_models_have_initialised_routers() -> None:
    """Kills: routers put in after the weights were initialised, all 0."""
    for layer in tiny_moe().module.model.layers:
        assert layer.mlp.gate.weight.std() > 0.1


def test_default_adapter_is_on_attention_only(golden: Path) -> None:
    """Kills: a trained router; targets that do not exist in experts."""
    denoiser = load(golden / "llada_moe", mask_token_id=MASK_ID)
    module = with_adapter(denoiser, LoraConfig(r=2), seed=0).module
    trained = {name.split(".lora_")[0].rsplit(".", 1)[1] for name, p in module.named_parameters() if p.requires_grad}
    assert trained == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_adapter_on_experts(golden: Path, logits: dict[str, Tensor], tmp_path: Path) -> None:
    """peft's target_parameters on stacked experts: trained, saved, loaded, merged into the official layout."""
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = LoraConfig(r=2, lora_alpha=4, target_modules=[], target_parameters=targets, lora_dropout=0.0)
    denoiser = with_adapter(load(golden / "llada_moe", mask_token_id=MASK_ID), config, seed=0)
    trained = [p for p in denoiser.module.parameters() if p.requires_grad]
    assert trained
    ids = logits["input_ids"]
    denoiser(input_ids=ids, attention_mask=EVERYWHERE, masked=EVERYWHERE, scored=EVERYWHERE).sum().backward()
    with torch.no_grad():
        for parameter in trained:
            assert parameter.grad is not None
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
        before = denoiser.logits(ids, EVERYWHERE, EVERYWHERE)
        denoiser.save_pretrained(tmp_path / "adapter")
        again = load(tmp_path / "adapter", mask_token_id=MASK_ID)
        torch.testing.assert_close(again.logits(ids, EVERYWHERE, EVERYWHERE), before, atol=0, rtol=0)
        assert (before.view(3, 24, -1) - logits["logits"]).abs().max() > 0.01
        denoiser.merged().save_pretrained(tmp_path / "merged")
        merged = load(tmp_path / "merged").logits(ids, EVERYWHERE, EVERYWHERE)
        torch.testing.assert_close(merged, before, **LOGITS)
