"""A resumed run is the uninterrupted one, bit for bit; its checkpoint has the official layout."""

import json
import os
import re
import shutil
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
from vrpo.training.checkpoints import checkpoint_of, last_checkpoint, manifest_of, problem_of, seal
from vrpo.training.preference import VRPOTrainer
from vrpo.training.run import run
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
    checkpoint without its state taken for one, or what is left of it kept; an evaluation "on start" in the middle; one
    step too many for a run that was killed after its last checkpoint; samples that begin a second time in the same
    file; fields in another order."""
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
                (state.parent / "left").touch()
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


def made(folder: Path, step: int, **files: str) -> Path:
    """A whole checkpoint of a few bytes."""
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    for name, text in {"rng_state.pth": "numbers", "trainer_state.json": "{}", **files}.items():
        (checkpoint / name).write_text(text)
    seal(checkpoint, {}, [])
    return checkpoint


def test_which_checkpoint(tmp_path: Path) -> None:
    """Kills: checkpoints in the order of their names; `true` that begins anew; one without a manifest taken for one."""
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-new").mkdir()
    assert checkpoint_of(None, tmp_path) is checkpoint_of("auto", tmp_path) is checkpoint_of(False, tmp_path) is None
    with pytest.raises(ValueError, match="holds no checkpoint that is whole; auto begins without one"):
        checkpoint_of("true", tmp_path)
    made(tmp_path, 9)
    for word in ("auto", "true", True):
        assert checkpoint_of(word, tmp_path) == tmp_path / "checkpoint-9"
    made(tmp_path, 11)
    assert last_checkpoint(tmp_path) == checkpoint_of(str(tmp_path / "checkpoint-11"), tmp_path / "elsewhere")
    for name, said in (("nowhere", "no such folder"), ("checkpoint-10", "it has no manifest.json")):
        with pytest.raises(ValueError, match=f"--resume_from_checkpoint {tmp_path / name}: {said}"):
            checkpoint_of(str(tmp_path / name), tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]), " has [0-9]+ bytes of [0-9]+"),
        (lambda file: file.write_bytes(bytes(file.stat().st_size)), " has other bytes than were written"),
        (lambda file: file.unlink(), " is missing"),
    ],
    ids=["halved", "zeroed", "gone"],
)
def test_no_file_of_a_checkpoint_is_taken_as_it_comes(tmp_path: Path, change: Any, said: str) -> None:
    """Kills: a file that the manifest does not know; sizes without digests."""
    written = dict.fromkeys(("optimizer.pt", "model.safetensors", "reference.safetensors"), "0123456789")
    for name in ("rng_state.pth", "trainer_state.json", *written):
        shutil.rmtree(tmp_path, ignore_errors=True)
        tmp_path.mkdir()
        first, last = made(tmp_path, 2), made(tmp_path, 4, **written)
        change(last / name)
        assert re.match(name + said, str(problem_of(last)))
        assert last_checkpoint(tmp_path) == first
    for text in ("", "{", "[]", '{"files": []}', '{"files": {"a": 1}}'):
        (last / "manifest.json").write_text(text)
        assert "manifest.json cannot be read" in str(problem_of(last))


def test_every_file_of_a_run_is_in_its_manifest(tmp_path: Path) -> None:
    """A reference that moves and an adapter among them. Kills: what is written after the manifest; a file that only its
    owner can read, beside others that all can."""
    fields = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    moved = {"sync_ref_model": True, "ref_model_sync_steps": 1}
    train(VRPOTrainer, vrpo_config(tmp_path / "a", **fields, **moved), pairs(8))
    train(VRPOTrainer, vrpo_config(tmp_path / "b", **fields), pairs(8), peft_config=lora())
    for name, expected in (("a", {"model.safetensors", "reference.safetensors"}), ("b", {"adapter_model.safetensors"})):
        checkpoint = tmp_path / name / "checkpoint-2"
        files = set(manifest_of(checkpoint)["files"])
        state = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "training_args.bin"}
        assert expected | state <= files == {path.name for path in checkpoint.iterdir()} - {"manifest.json"}
        assert problem_of(checkpoint) is None
        modes = {path.stat().st_mode for path in (tmp_path / name).rglob("*") if path.is_file()}
        assert len(modes) == 1


def test_a_checkpoint_without_an_optimizer_is_none_to_go_on_from(tmp_path: Path) -> None:
    fields = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2, "save_only_model": True}
    train(SFTTrainer, sft_config(tmp_path, **fields), answers(8))
    with pytest.raises(ValueError, match="it has no state of the optimizer"):
        train(SFTTrainer, sft_config(tmp_path, **fields), answers(8), resume=str(tmp_path / "checkpoint-2"))


# Another run ----------------------------------------------------------------------------------------------------------

ONE_STEP = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("begun")
    train(VRPOTrainer, vrpo_config(folder, **ONE_STEP), pairs(8), eval_dataset=pairs(3))
    return folder / "checkpoint-1"


def going_on(checkpoint: Path, folder: Path, change: str, **fields: Any) -> Any:
    given = {
        "rows": pairs(8).select(range(4)) if change == "half" else pairs(8),
        "denoiser": tiny(layers=1) if change == "layers" else tiny(),
        "ref_model": tiny(seed=3) if change == "reference" else None,
        "peft_config": lora() if change == "adapter" else None,
        "eval_dataset": pairs(4) if change == "evaluation" else pairs(3),
    }
    if change == "order":
        given["rows"] = pairs(8).select([1, 0, *range(2, 8)])
    if change == "a token":
        given["rows"] = pairs(8).map(lambda row: {"chosen_ids": [11, *row["chosen_ids"][1:]]})
    config = vrpo_config(folder, **{**ONE_STEP, **fields})
    return train(VRPOTrainer, config, given.pop("rows"), resume=str(checkpoint), **given)[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("half", "training rows was '8 rows"),
        ("order", "training rows was '8 rows"),
        ("a token", "training rows was '8 rows"),
        ("evaluation", "evaluation rows was '3 rows"),
        ("layers", "layout was"),
        ("reference", "is of a run that began with other models: references was"),
        ("adapter", "frozen weights was None"),
        ({"seed": 8}, "seed was 7 and is 8; draw_seed was 7"),
        ({"beta": 0.5}, "beta was 1.0 and is 0.5"),
        ({"loss_type": ["ipo"]}, "loss_type was"),
        ({"num_times": 3}, "num_times was 2 and is 3"),
        ({"gradient_accumulation_steps": 2}, "examples in a step was 4 and is 8"),
        ({"learning_rate": 0.2}, "learning_rate was 0.1 and is 0.2"),
        ({"max_steps": 3}, "max_steps was 2 and is 3"),
    ],
    ids=str,
)
def test_another_run_is_refused(begun: Path, tmp_path: Path, change: Any, said: str) -> None:
    """Kills: a run that goes on as another one without a word; a traceback for weights of another shape."""
    fields = change if isinstance(change, dict) else {}
    with pytest.raises(ValueError, match=re.escape(said)):
        going_on(begun, tmp_path, "" if fields else change, **fields)


def test_what_a_run_may_change(begun: Path, tmp_path: Path) -> None:
    """What is learnt does not depend on it: another folder, other packs and micro-batches, fewer logs."""
    fields = {"max_tokens_per_forward": 40, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    going_on(begun, tmp_path, "", logging_steps=2, save_strategy="no", **fields)


def test_changes_that_are_asked_for(begun: Path, tmp_path: Path) -> None:
    """They are on the card, and in the checkpoints that follow; another anchor is refused all the same."""
    changed = {"learning_rate": 0.2, "resume_with_changes": True}
    trainer = going_on(begun, tmp_path, "half", **changed)
    trainer.create_model_card()
    assert "Gone on from checkpoint-1: learning_rate was 0.1 and is 0.2." in (tmp_path / "README.md").read_text()
    last = manifest_of(tmp_path / "checkpoint-2")
    assert any("training rows" in change for change in last["changes"])
    assert last["run"]["learning_rate"] == 0.2
    with pytest.raises(ValueError, match="began with other models"):
        going_on(begun, tmp_path, "reference", **changed)
