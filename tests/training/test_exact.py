"""plan=exact in the trainers: which models it takes, and runs that must be the same run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tests.causal import causal, tokenizer
from tests.loops import each
from tests.training.runs import (
    answers,
    distance,
    log_lines,
    lora,
    moved,
    pairs,
    sft_config,
    tiny,
    train,
    vrpo_config,
)
from vrpo.models.causal import CausalDenoiser, as_causal
from vrpo.models.hf import HFDenoiser
from vrpo.training.given import as_denoiser
from vrpo.training.preference import VRPOTrainer
from vrpo.training.references import frozen_copy
from vrpo.training.sft import SFTTrainer


def model() -> CausalDenoiser:
    return as_causal(causal(), tokenizer())


def test_a_model_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    """Kills: a diffusion model scored from left to right, a causal one whose masks nobody sees."""
    exact, masks = vrpo_config(tmp_path, plan="exact"), vrpo_config(tmp_path)
    with pytest.raises(ValueError, match="this is a diffusion model"):
        VRPOTrainer(tiny(), args=exact, train_dataset=pairs())
    with pytest.raises(ValueError, match="this is a diffusion model"):
        VRPOTrainer(tiny().module, args=exact, train_dataset=pairs(), processing_class=tokenizer())
    with pytest.raises(ValueError, match="this is a diffusion model"):
        VRPOTrainer(model(), ref_model=tiny(), args=exact, train_dataset=pairs())
    with pytest.raises(ValueError, match="no masks to draw: plan=exact"):
        VRPOTrainer(model(), args=masks, train_dataset=pairs())
    with pytest.raises(ValueError, match="no masks to draw: plan=exact"):
        SFTTrainer(model(), args=sft_config(tmp_path), train_dataset=answers())


def test_samples_of_a_causal_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sample_steps fills in masks"):
        vrpo_config(tmp_path, plan="exact", sample_steps=1)


def test_text_without_a_prompt_is_refused(tmp_path: Path) -> None:
    """Kills: an error at the first step, that of a row nobody can find."""
    rows = Dataset.from_list([{"text": "the sky"}])
    with pytest.raises(ValueError, match="rows of text have no prompt"):
        SFTTrainer(model(), args=sft_config(tmp_path, plan="exact"), train_dataset=rows)


def test_empty_prompts_are_refused_before_the_first_step(tmp_path: Path) -> None:
    """By the number of the row. Kills: a run that ends in the middle, with a row of a batch nobody can find; causal
    references and supervised runs that are not looked at."""
    rows = pairs(6).map(lambda row: {"prompt_ids": [] if row["example_id"] == 4 else row["prompt_ids"]})
    supervised = rows.rename_column("chosen_ids", "response_ids").add_column("chunk", [0] * 6)
    config = vrpo_config(tmp_path, plan="exact")
    for name in ("train_dataset", "eval_dataset"):
        with pytest.raises(ValueError, match="example 4 has an empty prompt"):
            VRPOTrainer(model(), args=config, **{"train_dataset": pairs(6), name: rows})
    with pytest.raises(ValueError, match="example 4 has an empty prompt"):
        SFTTrainer(model(), args=sft_config(tmp_path, plan="exact"), train_dataset=supervised)
    beside = as_causal(causal(vocab_size=320), None)
    with pytest.raises(ValueError, match="example 4 has an empty prompt"):
        VRPOTrainer(tiny(), args=vrpo_config(tmp_path), train_dataset=rows, causal_ref_model=beside)
    VRPOTrainer(tiny(), args=vrpo_config(tmp_path), train_dataset=rows)


@each("given", [causal, model], ids=["module", "denoiser"])
def test_a_tokenizer_replaces_the_model_s(given: Callable[[], Any]) -> None:
    """Kills: a causal model that becomes a diffusion model when it gets a tokenizer."""
    words = tokenizer()
    found = as_denoiser(given(), words, exact=True)
    assert type(found) is CausalDenoiser
    assert found.tokenizer is words


def run(folder: Path, denoiser: HFDenoiser, count: int = 8, **fields: Any) -> Any:
    options = {name: fields.pop(name) for name in ("peft_config", "ref_model") if name in fields}
    config = vrpo_config(folder, plan="exact", **fields)
    _, trajectory = train(VRPOTrainer, config, pairs(count), denoiser=denoiser, **options)
    assert moved(trajectory) > 1e-3
    return trajectory


def test_batches_packs_and_cached_references_are_the_same_run(tmp_path: Path) -> None:
    """Kills: a likelihood that depends on its neighbours' padding; a frozen reference that moves with the policy."""
    plain = run(tmp_path / "a", model())
    for name, fields in {
        "accumulated": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
        "packed": {"max_tokens_per_forward": 30},
        "cached": {"precompute_ref_log_probs": True},
        "given": {"ref_model": frozen_copy(model())},
        "times": {"num_times": 5},
    }.items():
        assert distance(plain, run(tmp_path / name, model(), **fields)) < 1e-7, name  # norms are float32


def test_an_adapter_that_is_off_is_a_frozen_copy(tmp_path: Path) -> None:
    """Kills: a reference whose adapter is on; a gradient of one pass that is not that of two."""
    off = run(tmp_path / "a", model(), peft_config=lora())
    copy = run(tmp_path / "b", model(), peft_config=lora(), ref_model=frozen_copy(model()))
    one = run(tmp_path / "c", model(), peft_config=lora(), gradient_passes="one", max_tokens_per_forward=30)
    assert distance(off, copy) < 1e-7
    assert distance(off, one) < 1e-5


def test_it_says_no_variance(tmp_path: Path) -> None:
    """Kills: a variance of 0 / 0, or of 0, where there is nothing to vary."""
    run(tmp_path, model())
    lines = log_lines(tmp_path)
    assert any("rewards/margins" in line for line in lines)
    assert not any("variance" in name or "relative_error" in name for line in lines for name in line)


def test_supervised(tmp_path: Path) -> None:
    """Kills: an SFT of a causal model that is not its likelihood per token."""
    made, trajectory = train(
        SFTTrainer, sft_config(tmp_path, plan="exact", num_train_epochs=5), answers(), denoiser=model()
    )
    assert moved(trajectory) > 1e-3
    losses = [line["loss"] for line in log_lines(tmp_path) if "loss" in line]
    assert losses[-1] < losses[0]
    assert made.method == "SFT"
