"""What the run begins with is the reference, whatever is trained, and what is trained gets gradients and is saved."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import GradientState
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from torch import nn

from tests.loops import each
from tests.training.runs import answers, lora, pairs, settings, sft_config, tiny, train, vrpo_config
from vrpo.draws import FixedCount
from vrpo.models.adapter import with_adapter
from vrpo.models.hf import HFDenoiser
from vrpo.training import base, initial
from vrpo.training.initial import Before, adapter_off, check_begins_at, initially
from vrpo.training.preference import VRPOTrainer
from vrpo.training.preference_config import VRPOConfig
from vrpo.training.references import frozen_copy
from vrpo.training.sft import SFTTrainer

OFF, KEPT = False, True
ADAPTERS: dict[str, tuple[dict[str, Any], bool]] = {
    "plain": ({}, OFF),
    "dora": ({"use_dora": True}, OFF),
    "head": ({"modules_to_save": ["lm_head"]}, OFF),
    "tokens": ({"trainable_token_indices": [20, 21]}, OFF),
    "lora_bias": ({"lora_bias": True}, OFF),
    "embedding": ({"target_modules": ["embed_tokens", "q_proj"]}, OFF),
    "bias": ({"bias": "all"}, KEPT),
    "bias of its own": ({"bias": "lora_only"}, KEPT),
    "pissa": ({"init_lora_weights": "pissa"}, KEPT),
    "olora": ({"init_lora_weights": "olora"}, KEPT),
    "random": ({"init_lora_weights": False}, KEPT),
}


def adapter(**fields: Any) -> LoraConfig:
    return LoraConfig(**{"r": 2, "lora_alpha": 4, "lora_dropout": 0.0, **fields})


def on_dream(config: LoraConfig) -> HFDenoiser:
    """Dream's queries, keys and values have biases."""
    return with_adapter(tiny(torch.float32, layers=1, architecture="DreamModel"), config, 0)


def values(denoiser: HFDenoiser, context: Callable[[], AbstractContextManager[Any]]) -> torch.Tensor:
    ids = torch.arange(20, 28)[None]
    there = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad(), context():
        return denoiser(input_ids=ids, attention_mask=there, masked=ids > 23, scored=ids > 23)


def scrambled(module: nn.Module) -> None:
    """As after training: everything that is trained is something else."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.linspace(0.1, 1, parameter.numel()).view_as(parameter))


@each("name", ADAPTERS)
def test_the_reference_is_the_policy_that_the_run_begins_with(name: str) -> None:
    """However its adapter begins, and whatever is trained beside it. Kills: "adapter off" taken for it; initial values
    that are trained along, or that stay in the policy."""
    fields, kept = ADAPTERS[name]
    denoiser = on_dream(adapter(**fields))
    begins = values(denoiser, torch.enable_grad)
    trained = [each for each, part in denoiser.module.named_parameters() if part.requires_grad]
    frozen = initially(denoiser, FixedCount(), whole=True)
    assert isinstance(frozen, Before) is kept
    scrambled(denoiser.module)
    now = values(denoiser, torch.enable_grad)
    assert torch.equal(values(denoiser, frozen), begins)
    assert torch.equal(values(denoiser, torch.enable_grad), now)
    assert not torch.allclose(now, begins)
    assert [each for each, part in denoiser.module.named_parameters() if part.requires_grad] == trained


def test_an_adapter_that_is_trained_further_begins_as_it_is() -> None:
    """TRL's rule. Kills: the base as its reference."""
    denoiser = on_dream(adapter())
    scrambled(denoiser.module)
    begins = values(denoiser, torch.enable_grad)
    frozen = initially(denoiser, FixedCount(), whole=True)
    scrambled(denoiser.module)
    assert torch.equal(values(denoiser, frozen), begins)


def test_turning_an_adapter_off_trains_nothing_more() -> None:
    """Kills: peft's `disable_adapter`, after which a half that was frozen by hand is trained."""
    denoiser = on_dream(adapter())
    for name, parameter in denoiser.module.named_parameters():
        parameter.requires_grad_("lora_B" in name)
    with adapter_off(denoiser.module):
        pass
    assert {name.split(".")[-3] for name, p in denoiser.module.named_parameters() if p.requires_grad} == {"lora_B"}


def test_sharded_weights_keep_no_second_values() -> None:
    """Kills: the adapter turned off where biases are trained, under FSDP and DeepSpeed."""
    with pytest.raises(ValueError, match=r"bias is trained beside the adapter.*FSDP and DeepSpeed"):
        initially(on_dream(adapter(bias="all")), FixedCount(), whole=False)
    assert not isinstance(initially(on_dream(adapter()), FixedCount(), whole=False), Before)


def test_a_run_stays_at_its_reference_at_rate_0(tmp_path: Path) -> None:
    """And evaluates what has been learnt, in bfloat16. Kills: initial values that an autocast keeps for the policy."""
    for rate in (0.0, 0.1):
        config = vrpo_config(tmp_path, learning_rate=rate, bf16=True, max_steps=2)
        denoiser = tiny(torch.float32, architecture="DreamModel")
        given = {"peft_config": adapter(bias="all"), "denoiser": denoiser, "eval_dataset": pairs(4)}
        trainer, _ = train(VRPOTrainer, config, pairs(4), **given)
        assert (trainer.evaluate()["eval_rewards/margins"] != 0) is (rate > 0)


def test_another_reference_at_the_first_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kills: an adapter that is off, and nobody looked whether that is the policy."""
    monkeypatch.setattr(initial, "_does_nothing", lambda *given: True)
    denoiser = tiny(torch.float32, architecture="DreamModel")
    given: dict[str, Any] = {"denoiser": denoiser, "peft_config": adapter(init_lora_weights=False)}
    with pytest.raises(ValueError, match="the reference is not the policy that the run begins with"):
        train(VRPOTrainer, vrpo_config(tmp_path), pairs(4), **given)


@each(
    ("dtype", "computed", "shift", "same"),
    [
        (torch.float32, None, 1e-5, True),
        (torch.float32, None, 0.01, False),
        (torch.float32, torch.bfloat16, 0.01, True),
        (torch.float32, torch.bfloat16, 1.0, False),
        (torch.bfloat16, None, 0.01, True),
    ],
)
def test_up_to_rounding(dtype: torch.dtype, computed: torch.dtype | None, shift: float, same: bool) -> None:
    terms = torch.tensor([[-3.0, -5.0]], dtype=torch.float64)
    module = nn.Linear(1, 1, dtype=dtype)
    if same:
        check_begins_at(terms, terms + shift, module, computed)
    else:
        with pytest.raises(ValueError, match="of the first batch differs by"):
            check_begins_at(terms, terms + shift, module, computed)


# What is trained gets a gradient, and is saved ------------------------------------------------------------------------


def test_reentrant_checkpointing_takes_two_passes(tmp_path: Path) -> None:
    """Kills: gradients of 0 at every step, taken for what cannot be computed; options without use_reentrant that mean
    it."""
    reentrant = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    config = vrpo_config(tmp_path, max_steps=2, **reentrant)
    trainer, _ = train(VRPOTrainer, config, pairs(4), peft_config=lora())
    norms = [line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line]
    assert len(norms) == 2
    assert min(norms) > 0
    with pytest.raises(ValueError, match="gradient_passes=one gets no gradients from gradient_checkpointing_kwargs"):
        VRPOConfig(**settings(tmp_path, gradient_passes="one", **reentrant))
    options = {"preserve_rng_state": False}
    given = vrpo_config(tmp_path, gradient_checkpointing=True, gradient_checkpointing_kwargs=options)
    assert given.gradient_checkpointing_kwargs == {"use_reentrant": False, **options}
    assert not given.reentrant


@each("passes", ["one", "two"])
def test_what_is_trained_gets_a_gradient(tmp_path: Path, passes: str) -> None:
    """Kills: `allow_unused`, which makes a zero of whatever autograd did not reach."""
    denoiser = tiny()
    denoiser.module.register_parameter("spare", nn.Parameter(torch.zeros(1)))
    config = vrpo_config(tmp_path / "a", gradient_passes=passes)
    with pytest.raises(ValueError, match="spare is trained and got no gradient, like 1 of 22 trained parameters"):
        train(VRPOTrainer, config, pairs(4), denoiser=denoiser, ref_model=tiny())
    with pytest.raises(ValueError, match="spare is trained and got no gradient"):
        train(SFTTrainer, sft_config(tmp_path / "b"), answers(4), denoiser=denoiser)


@each("kind", ["preference", "supervised"])
def test_gradients_are_looked_for_when_they_are_whole(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a step: before its last backward FSDP keeps them where no parameter tells of them. Kills: a run of several
    micro-batches that is refused under FSDP."""
    whole: list[bool] = []
    state = GradientState()
    monkeypatch.setattr(base, "check_reached", lambda module: whole.append(state.sync_gradients))
    several: dict[str, Any] = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "max_steps": 2}
    if kind == "preference":
        train(VRPOTrainer, vrpo_config(tmp_path, **several, gradient_passes="two"), pairs(8))
    else:
        train(SFTTrainer, sft_config(tmp_path, **several), answers(8))
    assert whole == [True, True]


def test_what_is_trained_is_saved(tmp_path: Path) -> None:
    """Kills: a weight of the base that is trained, and lost when the adapter is saved."""
    denoiser = with_adapter(tiny(), lora(), 0)
    denoiser.module.base_model.model.model.norm.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"norm\.weight is trained beside the adapter, with which it is not saved"):
        VRPOTrainer(denoiser, args=vrpo_config(tmp_path), train_dataset=pairs(4))


def test_what_hides_a_model_is_refused(tmp_path: Path) -> None:
    """Kills: a wrapper that is no PeftModel, whose adapter is not found."""
    compiled = torch.compile(get_peft_model(tiny().module, adapter(target_modules=["q_proj"])), backend="eager")
    inside = tiny()
    inside.module.add_adapter(adapter(target_modules=["q_proj"]))
    for module, words in (
        (compiled, "model is wrapped in OptimizedModule"),
        (inside.module, "there is an adapter inside"),
    ):
        with pytest.raises(ValueError, match=words):
            VRPOTrainer(replace(tiny(), module=module), args=vrpo_config(tmp_path), train_dataset=pairs(4))
    with pytest.raises(ValueError, match="PrefixTuningConfig puts tokens of its own before a text"):
        with_adapter(tiny(), PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"), 0)


def test_a_copy_is_the_policy_too(tmp_path: Path) -> None:
    """Of a whole model the first batch is compared, too; a reference that is given may be any model. Kills: a copy that
    is not one."""
    trainer = VRPOTrainer(tiny(), args=vrpo_config(tmp_path), train_dataset=pairs(4))
    scrambled(trainer.denoiser.module)
    with pytest.raises(ValueError, match="the reference is not the policy that the run begins with"):
        trainer.train()
    train(VRPOTrainer, vrpo_config(tmp_path, max_steps=1), pairs(4), ref_model=frozen_copy(tiny(seed=5)))
