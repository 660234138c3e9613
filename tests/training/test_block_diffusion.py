"""A block diffusion model through the trainers: its plan, a step of every kind, what is saved, what is refused."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset

from tests.models.test_block import FAMILIES, a_model
from tests.training.runs import answers, lora, moved, pairs, sft_config, tiny, train, vrpo_config
from vrpo.coupling import Paired
from vrpo.data.collate import PreferenceCollator, tokens_of
from vrpo.draws import FixedCount
from vrpo.estimator import elbo
from vrpo.evals.harness import VRPOLM
from vrpo.models.hf import HFDenoiser
from vrpo.models.load import load
from vrpo.planning.run import _shape_of
from vrpo.plans import BalancedMasks, PerBlock
from vrpo.training.arguments import ModelArguments
from vrpo.training.preference import VRPOTrainer
from vrpo.training.sft import SFTTrainer
from vrpo.variance.models import models_of


def small(rows: Dataset) -> Dataset:
    """With ids of a vocabulary of 160."""
    columns = [name for name in rows.column_names if name.endswith("_ids")]
    return rows.map(lambda row: {name: [token % 150 for token in row[name]] for name in columns})


def bounds(denoiser: HFDenoiser) -> torch.Tensor:
    tokens = tokens_of(PreferenceCollator(denoiser.pad_id)(list(small(pairs(4)))), seed=0, epoch=0)
    with torch.no_grad():
        return elbo(denoiser, tokens, PerBlock(FixedCount(2), 4)(tokens)).value


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_a_run_is_saved_and_loads(golden: Path, tmp_path: Path, family: str, adapter: bool) -> None:
    """Training moves the model and reloads bit for bit. Kills: a reference without the policy's blocks (the first
    score is 0 to the last bit); a save that only we can read."""
    base = tmp_path / "base"
    a_model(golden, family).save_pretrained(base)
    options: dict[str, Any] = {"peft_config": lora()} if adapter else {}
    trainer, path = train(VRPOTrainer, vrpo_config(tmp_path / "run"), small(pairs(4)), denoiser=load(base), **options)
    assert moved(path) > 0
    first = trainer.state.log_history[0]
    assert first["rewards/margins"] == 0
    trainer.save_model()
    saved = load(tmp_path / "run")
    assert (saved.block_size, saved.mask_id) == (4, 158)
    assert torch.equal(bounds(saved), bounds(trainer.denoiser))
    assert not torch.equal(bounds(saved), bounds(load(base)))
    if adapter:
        merged = load(tmp_path / "run").merged()
        torch.testing.assert_close(bounds(merged), bounds(saved), atol=1e-4, rtol=1e-4)


def test_plans_are_of_blocks(golden: Path, tmp_path: Path) -> None:
    """Of every trainer, in training, evaluation and likelihoods, and the card says so; of a model without blocks not.
    Kills: a plan of the whole answer for a block diffusion model, pairs inside blocks."""
    denoiser = a_model(golden, "sdar")
    fields = {"plan": "balanced", "eval_strategy": "steps", "eval_steps": 1, "max_steps": 1, "num_times": 4}
    trainer, _ = train(
        VRPOTrainer, vrpo_config(tmp_path / "a", **fields), small(pairs(4)), denoiser=denoiser,
        eval_dataset=small(pairs(2)),
    )  # fmt: skip
    for plan in (trainer.recipe.plan, trainer.recipe.eval_plan):
        assert isinstance(plan, Paired)
        assert isinstance(plan.plan, PerBlock)
        assert isinstance(plan.plan.plan, BalancedMasks)
        assert plan.plan.block_size == 4
    trainer.create_model_card()
    assert "PerBlock(" in (tmp_path / "a" / "README.md").read_text()
    supervised, path = train(SFTTrainer, sft_config(tmp_path / "b"), small(answers(4)), denoiser=denoiser)
    assert supervised.recipe.plan == PerBlock(FixedCount(2), 4)
    assert moved(path) > 0
    judged = [replace(each, tokenizer=tiny().tokenizer) for each in (denoiser, load(golden / "llada_dense"))]
    assert VRPOLM(judged[0], num_draws=8).plan == PerBlock(FixedCount(8), 4)
    assert VRPOLM(judged[1], num_draws=8).plan == FixedCount(8)


def test_reference_terms_belong_to_blocks(golden: Path, tmp_path: Path) -> None:
    """Precomputed terms give the run that a live reference gives. Kills: terms of another plan replayed."""
    paths = []
    for known in (False, True):
        fields = {"precompute_ref_log_probs": known, "num_train_epochs": 1, "per_device_train_batch_size": 2}
        denoiser = a_model(golden, "sdar", dtype=torch.float64)
        paths.append(
            train(VRPOTrainer, vrpo_config(tmp_path / str(known), **fields), small(pairs(4)), denoiser=denoiser)
        )
    for one, other in zip(paths[0][1], paths[1][1], strict=True):
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, atol=1e-9, rtol=0)
    settings = paths[1][0]._terms_settings(paths[1][0].recipe.plan)
    assert "PerBlock" in settings["plan"]


def test_what_is_not_offered_says_so(golden: Path, tmp_path: Path) -> None:
    """By name, before anything is computed."""
    denoiser, other = a_model(golden, "sdar"), load(golden / "sdar", block_size=8)
    with pytest.raises(ValueError, match="block_size of model: 4, of ref_model: 8"):
        VRPOTrainer(denoiser, other, args=vrpo_config(tmp_path), train_dataset=small(pairs(4)))
    wanted: Any = SimpleNamespace(
        model_name_or_path=str(golden / "sdar"),
        ref_model_name_or_path=None,
        trainable=None,
        device="cpu",
        dtype="auto",
        attn_implementation=None,
        experts_implementation=None,
        mask_token_id=None,
        shift_logits=None,
    )
    with pytest.raises(ValueError, match="variance of such draws is not measured"):
        models_of(wanted)
    with pytest.raises(ValueError, match="is not estimated yet"):
        _shape_of(ModelArguments(model_name_or_path=str(golden / "sdar")))
