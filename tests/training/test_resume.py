"""A resumed run is the uninterrupted one, bit for bit; its checkpoint has the official layout."""

import json
import os
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
from vrpo.commands.train import run
from vrpo.models.load import load
from vrpo.training.checkpoints import checkpoint_of, clear_halves, last_checkpoint
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


def interrupted(
    folder: Path, step: int, adapter: bool, dtype: torch.dtype, architecture: str = "LLaDAModelLM"
) -> tuple[Trajectory, Trajectory, Path]:
    """Trajectories of a run and of one resumed after `step` steps, from that step on, and the checkpoint."""
    options = {"peft_config": lora()} if adapter else {}
    whole = train(
        VRPOTrainer,
        vrpo_config(folder, **FIELDS),
        pairs(8),
        denoiser=tiny(dtype, architecture=architecture),
        eval_dataset=pairs(3),
        **options,
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
        denoiser=tiny(dtype, architecture=architecture),
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


def test_a_shifted_model_resumes(tmp_path: Path) -> None:
    """Dream. Kills: a checkpoint that forgets the alignment of its logits."""
    whole, rest, checkpoint = interrupted(tmp_path, 3, False, torch.float32, "DreamModel")
    assert distance(whole, rest) == 0
    assert json.loads((checkpoint / "config.json").read_text())["architectures"] == ["DreamModel"]


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


def command(folder: Path, steps: int = 6, **fields: Any) -> list[str]:
    """What `vrpo sft` does with its trainer, in a folder; log.jsonl but for its last line, and the card."""
    given = {"save_strategy": "steps", "save_steps": 2, "max_steps": steps, "learning_rate": 1e-2, **fields}
    given |= {"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True, "resume_from_checkpoint": "auto"}
    run(SFTTrainer(tiny(), args=sft_config(folder, **given), train_dataset=answers(16), eval_dataset=answers(3)))
    return [*(folder / "log.jsonl").read_text().split("\n")[:-2], (folder / "README.md").read_text()]


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_one_command_begins_and_goes_on(tmp_path: Path) -> None:
    """auto, in the middle of the second epoch: from no checkpoint, from one that is half there, from the last. Kills: a
    checkpoint without its state taken for one; an evaluation "on start" in the middle; one step too many for a run
    that was killed after its last checkpoint; samples that begin a second time in the same file;
    fields in another order."""
    sampled = {"sample_steps": 2, "num_samples": 2, "sample_max_new_tokens": 4}
    expected = command(tmp_path, **sampled)
    files = {name: (tmp_path / name).read_bytes() for name in ("model.safetensors", "samples.jsonl")}
    everything = names(tmp_path)
    for broken in (2, 6, 0):
        (tmp_path / "model.safetensors").unlink()
        for step in (2, 4, 6):
            state = tmp_path / f"checkpoint-{step}" / "trainer_state.json"
            if broken and step >= broken:
                state.write_bytes(state.read_bytes()[:100])
                (state.parent / "scheduler.pt").unlink()
        with (tmp_path / "samples.jsonl").open("a") as file:
            file.write('{"step": 6, "prom')
        assert command(tmp_path, **sampled) == expected
        assert {name: (tmp_path / name).read_bytes() for name in files} == files
        assert names(tmp_path) == everything


def test_a_rotation_is_finished(tmp_path: Path) -> None:
    """Killed while old checkpoints were removed. Kills: half a checkpoint in the place of a whole one."""
    command(tmp_path, save_total_limit=2)
    everything = names(tmp_path)
    half = tmp_path / "checkpoint-2"
    half.mkdir()
    (half / "scheduler.pt").write_text("left")
    os.utime(half, (2**31, 2**31))  # newer than all others
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-6"
    command(tmp_path, save_total_limit=2)
    assert names(tmp_path) == everything


def test_which_checkpoint(tmp_path: Path) -> None:
    """Kills: checkpoints in the order of their names; `true` that begins anew."""
    for step in (2, 10, 9):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-new").mkdir()
    assert checkpoint_of(sft_config(tmp_path)) is None
    assert checkpoint_of(sft_config(tmp_path, resume_from_checkpoint="auto")) is None
    with pytest.raises(ValueError, match="holds no checkpoint that is whole; auto begins without one"):
        checkpoint_of(sft_config(tmp_path, resume_from_checkpoint="true"))
    for step, content in ((2, "{}"), (9, "{}"), (10, '{"half": ')):
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(content)
    for word in ("auto", "true"):
        assert checkpoint_of(sft_config(tmp_path, resume_from_checkpoint=word)) == str(tmp_path / "checkpoint-9")
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text("{}")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert checkpoint_of(sft_config(tmp_path, resume_from_checkpoint="elsewhere")) == "elsewhere"


@pytest.mark.parametrize("last", [None, 4])
def test_halves_are_cleared(tmp_path: Path, last: int | None) -> None:
    """Only what comes after the checkpoint that the run goes on from. Kills: peft adds to half a card."""
    for number in (2, 4, 6):
        (tmp_path / f"checkpoint-{number}").mkdir()
        (tmp_path / f"checkpoint-{number}" / "README.md").touch()
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text("{}")
    config = sft_config(tmp_path)
    clear_halves(config, None if last is None else tmp_path / f"checkpoint-{last}")
    left = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert left == {"checkpoint-4", *([] if last is None else ["checkpoint-2"])}
