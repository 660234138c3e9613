"""A resumed run is the uninterrupted one, bit for bit; its checkpoint has the official layout."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.runs import (
    Trajectory,
    answers,
    distance,
    log_lines,
    lora,
    pairs,
    sft_config,
    tiny,
    train,
    vrpo_config,
)
from vrpo.models.load import load
from vrpo.training.preference import VRPOTrainer
from vrpo.training.sft import SFTTrainer

EPOCH = 4  # optimizer steps of an epoch: 8 pairs in batches of 2
FIELDS: dict[str, Any] = {
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "save_strategy": "steps",
    "save_steps": 1,
    "logging_steps": 1,
    "num_train_epochs": 3,
    "optim": "adamw_torch",
    "learning_rate": 1e-2,
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 3,
}


def interrupted(folder: Path, step: int, adapter: bool, dtype: torch.dtype) -> tuple[Trajectory, Trajectory, Path]:
    """Trajectories of a run and of one resumed after `step` steps, from that step on, and the checkpoint."""
    options = {"peft_config": lora()} if adapter else {}
    whole = train(
        VRPOTrainer, vrpo_config(folder, **FIELDS), pairs(8), denoiser=tiny(dtype), eval_dataset=pairs(3), **options
    )[1]
    expected = log_lines(folder)
    checkpoint = folder / f"checkpoint-{step}"
    (folder / "log.jsonl").write_text("a broken line of an interrupted run\n")
    options = {"peft_config": lora()} if adapter else {}
    torch.manual_seed(step)  # whatever state the resuming process is in
    rest = train(
        VRPOTrainer,
        vrpo_config(folder, **FIELDS),
        pairs(8),
        denoiser=tiny(dtype),
        eval_dataset=pairs(3),
        resume=str(checkpoint),
        **options,
    )[1]
    assert log_lines(folder) == expected
    return whole[step:], rest, checkpoint


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("step", [EPOCH + 1, EPOCH], ids=["mid_epoch", "epoch_boundary"])
def test_resumed_is_uninterrupted(tmp_path: Path, step: int, adapter: bool) -> None:
    """Kills: optimizer or schedule not restored; a reference copied after the checkpoint was loaded; draws from a
    generator's state; the epoch in the keys counted from the resumption; a log that starts anew."""
    whole, rest, _ = interrupted(tmp_path, step, adapter, torch.float32)
    assert distance(whole, rest) == 0
    assert distance(whole[:-1], rest[1:]) > 0


def test_checkpoint_has_official_names(tmp_path: Path) -> None:
    """Kills: `state_dict()` written as it is, under transformers' Llama names; and resuming by load_state_dict(...,
    strict=False) from it, which would silently leave the initial weights."""
    _, _, checkpoint = interrupted(tmp_path, 1, False, torch.float32)
    names = set(load_file(checkpoint / "model.safetensors"))
    assert "model.transformer.blocks.0.ff_out.weight" in names
    assert not [name for name in names if "layers" in name or "lm_head" in name]
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["architectures"] == ["LLaDAModelLM"]
    assert config["d_model"] == 16
    load(checkpoint)


def test_resume_in_float64(tmp_path: Path) -> None:
    """Kills: a checkpoint or a load that goes through float32."""
    whole, rest, checkpoint = interrupted(tmp_path, 2, False, torch.float64)
    assert distance(whole, rest) == 0
    assert load_file(checkpoint / "model.safetensors")["model.transformer.wte.weight"].dtype == torch.float64


def test_sft_resumes(tmp_path: Path) -> None:
    _, whole = train(SFTTrainer, sft_config(tmp_path, **{**FIELDS, "eval_strategy": "no"}), answers(8))
    expected = log_lines(tmp_path)
    _, rest = train(
        SFTTrainer,
        sft_config(tmp_path, **{**FIELDS, "eval_strategy": "no"}),
        answers(8),
        resume=str(tmp_path / "checkpoint-5"),
    )
    assert distance(whole[5:], rest) == 0
    assert log_lines(tmp_path) == expected
