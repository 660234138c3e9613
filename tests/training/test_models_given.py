"""What a trainer is given: names, modules, tokenizers, adapters, several evaluation sets; and what it refuses."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from tests.training.runs import pairs, sft_config, tiny, vrpo_config
from vrpo.models.adapter import with_adapter
from vrpo.models.load import load
from vrpo.training.preference import VRPOTrainer
from vrpo.training.sft import SFTTrainer

LORA = LoraConfig(r=2, lora_alpha=4)


def test_a_second_adapter_is_refused_and_merging_helps(tmp_path: Path) -> None:
    """Kills: a new adapter that replaces the trained one without a word."""
    first = with_adapter(tiny(), LORA, 0)
    for name, parameter in first.module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, 0.1)
    with pytest.raises(ValueError, match="carries an adapter already"):
        with_adapter(first, LORA, 0)
    ids = torch.arange(6)[None] + 10
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        before = first.logits(ids, everywhere, everywhere)
        merged = first.merged()
        torch.testing.assert_close(merged.logits(ids, everywhere, everywhere), before)
    merged.save_pretrained(tmp_path)
    again = with_adapter(load(tmp_path), LORA, 0)
    with torch.no_grad():
        torch.testing.assert_close(
            again.logits(ids, everywhere, everywhere), before, check_dtype=False, atol=1e-5, rtol=1e-5
        )
    with pytest.raises(ValueError, match="no adapter to merge"):
        merged.merged()


def test_the_caller_s_adapter_configuration_is_not_changed() -> None:
    wanted = LoraConfig(r=2)
    with_adapter(tiny(), wanted, 0)
    assert wanted.target_modules is None


def test_adapters_from_one_seed_are_equal_and_leave_the_global_generator_alone() -> None:
    """Kills: an initialisation that reseeds everything, or ignores the seed."""
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = (with_adapter(tiny(), LORA, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    weights = [dict(model.module.named_parameters()) for model in (one, same, other)]
    name = next(name for name in weights[0] if "lora_A" in name)
    assert torch.equal(weights[0][name], weights[1][name])
    assert not torch.equal(weights[0][name], weights[2][name])


def test_nothing_to_train_is_refused(tmp_path: Path) -> None:
    frozen = with_adapter(tiny(), LORA, 0)
    frozen.module.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        VRPOTrainer(frozen, args=vrpo_config(tmp_path), train_dataset=pairs(4))


def test_a_reference_by_name_is_loaded(tmp_path: Path) -> None:
    """Kills: ref_model taken as a denoiser whatever it is."""
    tiny().save_pretrained(tmp_path / "reference")
    trainer = VRPOTrainer(
        tiny(seed=1), ref_model=str(tmp_path / "reference"), args=vrpo_config(tmp_path), train_dataset=pairs(4)
    )
    assert trainer.ref_model is not None
    saved = load(tmp_path / "reference", dtype=torch.float32).module.state_dict()
    for name, value in trainer.ref_model.module.state_dict().items():
        assert torch.equal(value.float(), saved[name])


def test_a_given_tokenizer_replaces_the_model_s(tmp_path: Path) -> None:
    model = tiny()
    given = copy.deepcopy(model.tokenizer)
    trainer = VRPOTrainer(
        replace(model, tokenizer=None), args=vrpo_config(tmp_path), train_dataset=pairs(4), processing_class=given
    )
    assert trainer.denoiser.tokenizer is given


def test_several_evaluation_sets(tmp_path: Path) -> None:
    """Each under its own name, and each what it is alone."""
    parts = {"few": pairs(2), "many": pairs(5)}
    trainer = VRPOTrainer(tiny(seed=1), ref_model=tiny(), args=vrpo_config(tmp_path), eval_dataset=parts)
    metrics = trainer.evaluate()
    alone = trainer.evaluate(pairs(5))
    assert metrics["eval_many_rewards/margins"] == alone["eval_rewards/margins"]
    assert metrics["eval_few_rewards/margins"] != alone["eval_rewards/margins"]


def test_rows_of_text_can_be_evaluated(tmp_path: Path) -> None:

    rows = Dataset.from_list(
        [{"prompt": "a", "chosen": "b c", "rejected": "d"}, {"prompt": "e", "chosen": "f", "rejected": "g h"}]
    )
    trainer = VRPOTrainer(tiny(seed=1), ref_model=tiny(), args=vrpo_config(tmp_path))
    assert "eval_rewards/margins" in trainer.evaluate(rows)


def test_rows_that_spell_the_mask_token_are_dropped(tmp_path: Path) -> None:
    """By either trainer. Kills: the model's mask token not told to what reads the rows."""
    texts = ["blue sky", "blue<|mdm_mask|>"]
    rows = Dataset.from_dict({"prompt": ["what?", "what?"], "chosen": texts, "rejected": ["red", "red"]})
    preference = VRPOTrainer(tiny(), args=vrpo_config(tmp_path), train_dataset=rows)
    supervised = SFTTrainer(tiny(), args=sft_config(tmp_path), train_dataset=Dataset.from_dict({"text": texts}))
    assert all("mask token" in str(trainer.reports) for trainer in (preference, supervised))
    assert preference.train_dataset["example_id"][:] == supervised.train_dataset["example_id"][:] == [0]
