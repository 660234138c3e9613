"""Types, devices and kinds of attention: the policy, and what is refused before anything is loaded."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.loops import each
from tests.models.folders import checkpoint
from tests.models.test_load import logp
from tests.training.runs import answers, pairs, sft_config, vrpo_config
from vrpo.cli import main
from vrpo.decoding.decode import generate
from vrpo.models import attention
from vrpo.models.load import load, mask_id_of
from vrpo.models.precision import compute_dtype, weights_dtype
from vrpo.training.arguments import ModelArguments
from vrpo.training.preference import VRPOTrainer
from vrpo.training.sft import SFTTrainer

SPREAD = {  # what accelerate makes where memory is short: the last block and the head are read when they are needed
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.norm": "cpu",
    "lm_head": "disk",
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return checkpoint("llada", tmp_path / "base")


# Types ----------------------------------------------------------------------------------------------------------------


def test_the_policy() -> None:
    """Kills: half-precision masters; a stored base cast to float32 under an adapter; noise measured with rounding's."""
    assert weights_dtype("training") == torch.float32
    assert weights_dtype("adapter") == "auto"
    assert weights_dtype("inference") == "auto"
    assert weights_dtype("measuring") == torch.float32
    assert weights_dtype("training", "bfloat16") == torch.bfloat16
    assert weights_dtype("inference", "torch.float16") == torch.float16
    assert ModelArguments().loading["dtype"] == torch.float32
    assert ModelArguments(use_peft=True).loading["dtype"] == "auto"
    assert [compute_dtype(bf16=a, fp16=b) for a, b in ((True, False), (False, True), (False, False))] == [
        torch.bfloat16,
        torch.float16,
        torch.float32,
    ]
    with pytest.raises(ValueError, match="bf16"):
        weights_dtype("training", "bf16")


def test_a_stored_type_is_kept_for_inference(tmp_path: Path) -> None:
    folder = checkpoint("dream", tmp_path / "half", torch_dtype="bfloat16")
    assert load(folder).module.dtype == torch.bfloat16
    trainer = SFTTrainer(str(folder), args=sft_config(tmp_path / "run"), train_dataset=answers(2))
    assert trainer.denoiser.module.dtype == torch.float32


# Devices --------------------------------------------------------------------------------------------------------------


def test_a_spread_model_says_the_same(base: Path) -> None:
    """Kills: the head's weights read where they are not; inputs sent to where a weight happens to be."""
    whole, spread = load(base), load(base, device_map=SPREAD)
    assert spread.module.lm_head.weight.device.type == "meta"
    assert spread.device == torch.device("cpu")
    assert torch.equal(logp(spread), logp(whole))
    prompts = [[30, 4, 50], [6, 7]]
    made = [generate(one, prompts, max_new_tokens=6, block_size=3) for one in (whole, spread)]
    assert [one.ids for one in made[0]] == [one.ids for one in made[1]]
    with pytest.raises(ValueError, match="device_map"):
        generate(spread, prompts, max_new_tokens=6, block_size=3, cache="dual")


def test_a_spread_model_is_not_trained(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="trains on one device"):
        SFTTrainer(load(base, device_map=SPREAD), args=sft_config(tmp_path), train_dataset=answers(2))
    with pytest.raises(ValueError, match="exclude each other"):
        load(base, device="cpu", device_map="auto")
    assert torch.equal(logp(load(base, device_map="auto")), logp(load(base)))


# Attention ------------------------------------------------------------------------------------------------------------


@each(("name", "says"), [("sdpaa", "is none of"), ("flash_attention_2", "flash_attn"), ("flash_attention_3", "needs")])
def test_attention_is_checked_first(name: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the model is looked for. Kills: an error after minutes of loading."""
    monkeypatch.setattr(attention, "find_spec", lambda package: None)
    with pytest.raises(ValueError, match=says):
        load("/no/such/model", attn_implementation=name)


def test_flex_attention_does_not_train_on_a_cpu(base: Path, tmp_path: Path) -> None:
    config: Any = vrpo_config(tmp_path)
    with pytest.raises(ValueError, match="no backward on a CPU"):
        VRPOTrainer(load(base, attn_implementation="flex_attention"), args=config, train_dataset=pairs(2))


# Mask token and alignment ---------------------------------------------------------------------------------------------


def test_what_a_folder_does_not_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A causal model, by the command line. Kills: a field that does not reach the loader."""
    folder = str(checkpoint("causal", tmp_path / "base", mask_token_id=None))
    assert mask_id_of(folder, 7) == 7
    arguments = ["generate", "--model_name_or_path", folder, "--prompt", "one", "--max_new_tokens", "4"]
    assert main([*arguments, "--mask_token_id", "999"]) == 2
    assert "999 is not in the vocabulary" in capsys.readouterr().err
    texts = []
    for given in ([], ["--mask_token_id", "300"], ["--mask_token_id", "300", "--shift_logits"]):
        assert main([*arguments, *given]) == 0
        texts.append(capsys.readouterr().out)
    assert len(set(texts)) == 3
    given = ModelArguments(mask_token_id=7, shift_logits=True).loading
    assert (load(folder, **given).mask_id, load(folder, **given).module.config.shift_logits) == (7, True)


def test_alignment_is_a_choice_for_causal_models_only(base: Path) -> None:
    """Kills: a model of the same position that is read one position off, and saved so that nobody sees it."""
    with pytest.raises(ValueError, match="position itself"):
        load(base, shift_logits=True)
    assert load(base, shift_logits=False).module.config.shift_logits is False


def test_an_unknown_architecture_says_what_is_needed(tmp_path: Path) -> None:
    folder = checkpoint("llada", tmp_path / "base")
    (folder / "config.json").write_text('{"architectures": ["BertForMaskedLM"]}')
    with pytest.raises(ValueError, match=r"(?s)BertForMaskedLM.*docs/models\.md.*mask token"):
        load(folder)
