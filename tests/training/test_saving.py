"""What a run writes, and where: one run at a time, no secrets, and one line for what the file system refuses."""

import copy
import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.loops import each
from tests.test_store import HOLD
from tests.training.runs import answers, pairs, sft_config, tiny, train, vrpo_config
from vrpo import store
from vrpo.training.checkpoints import problem_of
from vrpo.training.preference import VRPOTrainer
from vrpo.training.run import run
from vrpo.training.sft import SFTTrainer

SAVED: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}


def test_no_secret_is_written(tmp_path: Path) -> None:
    """In checkpoints, card, logs and manifest; the run itself keeps it. Kills: the token of the hub in
    training_args.bin, which everybody may read."""
    config = vrpo_config(tmp_path, hub_token="hf_secret", **SAVED)
    run(VRPOTrainer(tiny(), args=config, train_dataset=pairs(4)))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"training_args.bin", "README.md", "manifest.json"} <= {path.name for path in files}
    assert not [path for path in files if b"hf_secret" in path.read_bytes()]
    assert config.hub_token == "hf_secret"
    again = pickle.loads(pickle.dumps(config))
    assert (again.hub_token, again.beta) == (None, config.beta)
    assert copy.copy(config).learning_rate == config.learning_rate


def test_one_run_at_a_time(tmp_path: Path) -> None:
    """Also from Python. Kills: two runs whose logs and checkpoints mix."""
    command = [sys.executable, "-c", HOLD, store.__file__, str(tmp_path)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    try:
        with pytest.raises(ValueError, match=rf"another run \(process {other.pid}\) is writing here"):
            train(SFTTrainer, sft_config(tmp_path), answers(4))
    finally:
        other.communicate()
    assert not list(tmp_path.glob("checkpoint-*"))


@each("refused", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError])
def test_a_full_disk_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Any) -> None:
    """Kills: a traceback of torch's writer; an earlier checkpoint that is gone by then."""
    save, refused = torch.save, refused if isinstance(refused, OSError) else refused("PytorchStreamWriter failed")

    def full(content: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        if "checkpoint-2" in str(path):
            raise refused
        save(content, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ValueError, match=r"checkpoint-2 cannot be saved: .*earlier checkpoints are whole"):
        train(SFTTrainer, sft_config(tmp_path, **SAVED, save_total_limit=1), answers(8))
    assert problem_of(tmp_path / "checkpoint-1") is None
    assert "manifest.json" in str(problem_of(tmp_path / "checkpoint-2"))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    trainer = SFTTrainer(tiny(), args=sft_config(tmp_path / "there"), train_dataset=answers(4))
    for folder in ("file", "file/below"):
        trainer.args.output_dir = str(tmp_path / folder)
        with pytest.raises(ValueError, match=f"output_dir: {tmp_path / folder} cannot be written: "):
            trainer.train()


def test_no_step_to_make(tmp_path: Path) -> None:
    """Kills: a model that was not trained, saved as one that was."""
    fields = {"dataloader_drop_last": True, "per_device_train_batch_size": 16}
    with pytest.raises(ValueError, match=r"fewer training rows than the 16 of a batch\. dataloader_drop_last"):
        train(SFTTrainer, sft_config(tmp_path, **fields), answers(8))


@each(
    ("fields", "said"),
    [
        ({"num_train_epochs": -1}, "num_train_epochs must be above 0, not -1"),
        ({"num_train_epochs": 0}, "num_train_epochs must be above 0"),
        ({"num_train_epochs": float("nan")}, "num_train_epochs must be a finite number"),
        ({"max_steps": 0}, "max_steps must be at least 1, not 0"),
        ({"max_steps": -7}, "max_steps must be at least 1, not -7"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be from 1"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be from 1"),
        ({"save_strategy": "steps", "save_steps": 0}, "save_steps must be above 0"),
        ({"learning_rate": -1.0}, "learning_rate must be from 0"),
        ({"report_to": "comet_ml"}, "report_to: comet_ml is not installed here"),
    ],
    ids=str,
)
def test_refused_before_anything_is_loaded(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        sft_config("folder", **fields)


CHILD = (
    "import os, runpy, sys, time\n"
    "if os.fork():\n"
    "    time.sleep(60)\n"
    "runpy.run_path(sys.argv[1])['end_with_launcher']()\n"
    "print(os.getpid(), flush=True)\n"
    "time.sleep(60)\n"
)


@pytest.mark.slow
def test_processes_end_with_their_launcher() -> None:
    """Kills: a rank that writes on when the launcher has been killed."""
    from vrpo.training import processes

    environment = {**os.environ, "TORCHELASTIC_RUN_ID": "none"}
    launcher = subprocess.Popen(
        [sys.executable, "-c", CHILD, processes.__file__], stdout=subprocess.PIPE, env=environment
    )
    assert launcher.stdout is not None
    assert int(launcher.stdout.readline()) != launcher.pid
    launcher.kill()
    assert launcher.communicate(timeout=30)[0] == b""  # its end comes when the last process that has it open ends


def test_the_best_checkpoint_alone(tmp_path: Path) -> None:
    """transformers then removes the last one. Kills: an error of a run that is done, before its model is saved."""
    best = {"load_best_model_at_end": True, "greater_is_better": True, "metric_for_best_model": "loss"}
    evaluated = {"eval_strategy": "steps", "eval_steps": 1, "save_total_limit": 1}
    trainer, _ = train(
        SFTTrainer, sft_config(tmp_path, **SAVED, **best, **evaluated), answers(8), eval_dataset=answers(4)
    )
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
