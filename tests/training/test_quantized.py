"""A quantised base under an adapter: what is quantised, what is trained, what is refused. Runs on a CPU, in float32."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig

from tests.training.runs import distance, lora, moved, pairs, tiny, train, vrpo_config
from vrpo.models import load as loading
from vrpo.models.adapter import with_adapter
from vrpo.models.fingerprint import frozen_weights, weights_fingerprint
from vrpo.models.hf import HFDenoiser
from vrpo.models.load import load
from vrpo.models.tiny import from_config, train_tokenizer
from vrpo.training import run as command
from vrpo.training.arguments import ModelArguments
from vrpo.training.preference import VRPOTrainer

needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason='bitsandbytes is not installed: pip install "vrpo[quant]"'
)
BLOCK = "model.transformer.blocks.1"  # official names
OURS = {
    "q_proj": "self_attn.q_proj",
    "attn_out": "self_attn.o_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}


def four_bits(**fields: Any) -> BitsAndBytesConfig:
    given = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32, **fields}
    return BitsAndBytesConfig(load_in_4bit=True, **given)


def eight_bits() -> BitsAndBytesConfig:
    return BitsAndBytesConfig(load_in_8bit=True)


def checkpoint(folder: Path, factor: float = 1) -> Path:
    """A folder with a model of 64 columns, for bitsandbytes' kernels for CPUs are wrong if a row is no whole number of
    blocks; projections times `factor`."""
    denoiser = from_config(
        train_tokenizer(["what colour is the sky? blue"], 300),
        hidden_size=64,
        num_layers=2,
        num_heads=2,
        intermediate_size=128,
    )
    with torch.no_grad():
        for name, parameter in denoiser.module.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(5 * factor if "_proj" in name else 5)
    denoiser.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny checkpoint in the official layout."""
    return checkpoint(tmp_path / "model")


def logp(denoiser: HFDenoiser) -> torch.Tensor:
    ids = torch.arange(10, 30).reshape(2, 10)
    masked = torch.zeros_like(ids, dtype=torch.bool)
    masked[:, 4:] = True
    with torch.no_grad():
        return denoiser(input_ids=ids, attention_mask=torch.ones_like(masked), masked=masked, scored=masked)


# Without bitsandbytes -------------------------------------------------------------------------------------------------


def test_loading_names_the_extra(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda package: None)
    with pytest.raises(ValueError, match=r"vrpo\[quant\]"):
        load(folder, quantization_config=eight_bits())


def test_plain_weights_keep_their_fingerprint() -> None:
    """Reference terms on disk stay valid. Kills: buffers, or the adapter, in the fingerprint of a plain model."""
    module = tiny().module
    assert weights_fingerprint(frozen_weights(module)) == weights_fingerprint(module.named_parameters())


# With it --------------------------------------------------------------------------------------------------------------


@needs_bitsandbytes
@pytest.mark.parametrize(
    ("fields", "precision", "dtype"), [({"bf16": True}, "bf16", torch.bfloat16), ({}, "none", torch.float32)]
)
def test_arguments_become_a_configuration(
    tmp_path: Path, fields: dict[str, Any], precision: str, dtype: torch.dtype
) -> None:
    """Kills: transformers' defaults (fp4, products in float32 under bf16) in place of TRL's."""
    config = vrpo_config(tmp_path, **fields)
    four = command.quantization(ModelArguments(use_peft=True, load_in_4bit=True, use_bnb_nested_quant=True), config)
    assert four is not None
    assert (four.load_in_4bit, four.bnb_4bit_quant_type, four.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert four.bnb_4bit_compute_dtype == dtype
    eight = command.quantization(ModelArguments(use_peft=True, load_in_8bit=True), config)
    assert eight is not None
    assert (eight.load_in_4bit, eight.load_in_8bit) == (False, True)
    assert command.quantization(ModelArguments(use_peft=True), config) is None


@needs_bitsandbytes
def test_blocks_are_quantised_and_the_head_is_not(folder: Path) -> None:
    """Official names, quantised while they are read. Kills: a name converted to another layer's; a quantised head,
    which `models/head.py` would compute twice; a quantised embedding."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    module, saved = load(folder, quantization_config=four_bits()).module, load_file(folder / "model.safetensors")
    for official, ours in OURS.items():
        layer = module.get_submodule(f"model.layers.1.{ours}")
        assert isinstance(layer, Linear4bit)
        expected = saved[f"{BLOCK}.{official}.weight"]
        found = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        assert (found - expected).abs().max() < 0.2 * expected.abs().max()  # NF4's widest gap is 0.3 of the largest
    assert type(module.lm_head) is torch.nn.Linear
    assert torch.equal(module.lm_head.weight, saved["model.transformer.ff_out.weight"])
    assert torch.equal(module.model.embed_tokens.weight, saved["model.transformer.wte.weight"])


@needs_bitsandbytes
@pytest.mark.parametrize("passes", ["one", "two"])
@pytest.mark.parametrize("bits", [four_bits, eight_bits], ids=["4bit", "8bit"])
def test_an_adapter_trains_on_a_quantised_base(folder: Path, tmp_path: Path, bits: Any, passes: str) -> None:
    """Score exactly 0 at step 0, the reference being the same kernels with the adapter off; then it moves, the base
    does not, and what is saved is the adapter. Kills: low-precision adapter weights; a base that is trained."""
    start = with_adapter(load(folder, quantization_config=bits()), lora(), seed=7)
    before = weights_fingerprint(frozen_weights(start.module))
    fields = {"max_steps": 2, "num_times": 2, "learning_rate": 0.5, "gradient_passes": passes}
    trainer, trajectory = train(VRPOTrainer, vrpo_config(tmp_path / "run", **fields), pairs(8), denoiser=start)
    margins = [line["rewards/margins"] for line in trainer.state.log_history if "loss" in line]
    assert margins[0] == 0.0 != margins[1]
    assert all("lora_" in name and each.dtype == torch.float32 for name, each in trajectory[0].items())
    assert moved(trajectory) > 1e-4
    assert weights_fingerprint(frozen_weights(start.module)) == before
    trainer.save_model(str(tmp_path / "adapter"))
    assert not list((tmp_path / "adapter").glob("model*.safetensors"))
    trained = trainer.denoiser
    trained.module.eval()
    assert torch.equal(logp(load(tmp_path / "adapter", quantization_config=bits())), logp(trained))
    assert not torch.equal(logp(load(folder, quantization_config=bits())), logp(trained))


@needs_bitsandbytes
def test_gradients_are_those_of_the_dequantised_base(folder: Path, tmp_path: Path) -> None:
    """The run on a base in 4 bits is the run on a float32 base of the same values. Kills: a product without a gradient,
    which leaves the lower layers' adapters untrained; a compute type other than the configured one."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    packed, plain = load(folder, quantization_config=four_bits()), load(folder)
    with torch.no_grad():
        for name, layer in packed.module.named_modules():
            if isinstance(layer, Linear4bit):
                weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
                assert not torch.equal(plain.module.get_submodule(name).weight, weight)
                plain.module.get_submodule(name).weight.copy_(weight)
    found = []
    for name, base in (("packed", packed), ("plain", plain)):
        config = vrpo_config(tmp_path / name, max_steps=3, gradient_checkpointing=True)
        found.append(train(VRPOTrainer, config, pairs(8), denoiser=base, peft_config=lora())[1])
    assert moved(found[0]) > 1e-2
    assert distance(*found) < 1e-4


@needs_bitsandbytes
def test_evaluations_do_not_touch_the_gradient(folder: Path, tmp_path: Path) -> None:
    """Kills: weights that bitsandbytes repacks in an evaluation, through which no gradient passes (on CPUs with
    AVX512-BF16; elsewhere this cannot fail)."""
    found = []
    for name, when in (("with", {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}), ("without", {})):
        config, base = vrpo_config(tmp_path / name, max_steps=3, **when), load(folder, quantization_config=four_bits())
        options = {"denoiser": base, "peft_config": lora(), "eval_dataset": pairs(3)}
        found.append(train(VRPOTrainer, config, pairs(8), **options)[1])
    assert distance(*found) == 0


@needs_bitsandbytes
def test_precomputed_reference_terms_on_a_quantised_base(folder: Path, tmp_path: Path) -> None:
    """The same run as with the reference in every step, also from what another run has left. Kills: a fingerprint
    that fails on packed weights, or that no second load can repeat."""
    found = []
    for name, kept in (("live", False), ("first", True), ("again", True)):
        fields = {"max_steps": 2, "precompute_ref_log_probs": kept}
        fields |= {"ref_terms_dir": str(tmp_path / "terms")} if kept else {}
        config, base = vrpo_config(tmp_path / name, **fields), load(folder, quantization_config=four_bits())
        found.append(train(VRPOTrainer, config, pairs(8), denoiser=base, peft_config=lora())[1])
    assert distance(found[1], found[2]) == 0
    assert distance(found[0], found[1]) < 1e-4  # float32; packs of terms are not those of the step


@needs_bitsandbytes
@pytest.mark.parametrize("bits", [four_bits, eight_bits, lambda: four_bits(bnb_4bit_use_double_quant=True)])
def test_scales_are_in_the_fingerprint(folder: Path, tmp_path: Path, bits: Any) -> None:
    """Twice the weights are the same codes under twice the scales. Kills: parameters alone, which are the codes."""
    twice = checkpoint(tmp_path / "twice", 2)
    modules = [load(place, quantization_config=bits()).module for place in (folder, folder, twice)]
    codes = [weights_fingerprint(module.named_parameters()) for module in modules]
    whole = [weights_fingerprint(frozen_weights(module)) for module in modules]
    assert codes[0] == codes[1] == codes[2]
    assert whole[0] == whole[1] != whole[2]


@needs_bitsandbytes
def test_quantised_weights_are_not_trained_and_not_saved(folder: Path, tmp_path: Path) -> None:
    """Kills: transformers' error, or a folder of packed bytes under official names that loads as nothing."""
    denoiser = load(folder, quantization_config=four_bits())
    with pytest.raises(ValueError, match="train an adapter"):
        VRPOTrainer(denoiser, args=vrpo_config(tmp_path), train_dataset=pairs(2))
    with pytest.raises(ValueError, match="no official layout"):
        denoiser.save_pretrained(tmp_path / "saved")
