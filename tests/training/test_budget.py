"""num_draws=auto: what it spends, and that a run with it is as reproducible as one without."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.runs import Trajectory, distance, log_lines, moved, pairs, tiny, train, vrpo_config
from tests.training.test_resume import FIELDS
from vrpo.models.hf import HFDenoiser
from vrpo.training.budget import GAIN, RATE, DrawBudget, auto_times
from vrpo.training.preference import VRPOTrainer

TOLERANCE = 1e-9
AUTO: dict[str, Any] = {"num_draws": "auto", "num_times": 2, "plan": "nested", "beta": 2.0}


def run(folder: Path, count: int = 8, **fields: Any) -> tuple[VRPOTrainer, Trajectory]:
    trainer, trajectory = train(VRPOTrainer, vrpo_config(folder, **{**AUTO, **fields}), pairs(count))
    assert moved(trajectory) > 1e-3
    return trainer, trajectory


def thresholds(folder: Path) -> list[float]:
    """Of the checkpoints of a run that have one, in their order."""
    paths = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda path: int(path.parent.name.split("-")[1]))
    states = [json.loads(path.read_text())["stateful_callbacks"] for path in paths]
    return [state["DrawBudget"]["args"]["threshold"] for state in states if "DrawBudget" in state]


def counted(denoiser: HFDenoiser) -> dict[bool, int]:
    """Rows that the denoiser will be called with, with and without a graph."""
    called, forward = {True: 0, False: 0}, denoiser.module.forward

    def counting(**arguments: Tensor) -> Tensor:
        called[torch.is_grad_enabled()] += len(arguments["input_ids"])
        return forward(**arguments)

    denoiser.module.forward = counting
    return called


# What is spent --------------------------------------------------------------------------------------------------------


def test_the_compute_is_that_of_the_ordinary_step() -> None:
    """2 values of 1.5 n draws and gradients of RATE of them, at 3 passes each, are 5 n. Kills: another rate."""
    for num_times in (2, 8):
        values = auto_times(num_times)
        assert 2 * values + 3 * RATE * values == pytest.approx(5 * num_times)
    with pytest.raises(ValueError, match="num_times must be even"):
        auto_times(5)


def test_values_and_gradients_are_counted(tmp_path: Path) -> None:
    """Logged are the draws that the model was called for: 1.5 n of each answer without a graph, fewer with one.

    Kills: draws/per_pair that counts dropped draws; values of n draws; a roulette that does nothing.
    """
    denoiser = tiny()
    fields = {**AUTO, "num_times": 8, "plan": "fixed_count", "learning_rate": 0.0, "num_train_epochs": 4}
    called = counted(denoiser)
    trainer, _ = train(VRPOTrainer, vrpo_config(tmp_path, **fields), pairs(8), denoiser=denoiser, ref_model=tiny())
    log = [line for line in trainer.state.log_history if "loss" in line]
    assert len(log) == 8
    assert all(line["draws/values_per_pair"] == 2 * 12 for line in log)
    assert called[False] == 8 * 4 * 2 * 12
    assert called[True] == 4 * sum(line["draws/per_pair"] for line in log)
    assert called[True] < called[False] * 0.7


def test_at_the_reference_every_pair_has_the_rate(tmp_path: Path) -> None:
    """Margin 0: |slope| = beta / 2, pi = RATE, and the threshold stays. Kills: a start that forgets beta."""
    _, trajectory = train(
        VRPOTrainer,
        vrpo_config(tmp_path, **AUTO, learning_rate=0.0, save_strategy="steps", save_steps=1),
        pairs(8),
    )
    assert len(thresholds(tmp_path)) == len(trajectory)
    assert thresholds(tmp_path) == pytest.approx([1 / RATE] * len(trajectory), rel=1e-12)


def test_the_average_goes_to_the_rate() -> None:
    """The sum of mean pi - RATE telescopes. Slopes that fall by a factor of 100 and a cap that bites: after 1000 steps
    the average is off by log(last / first) / GAIN / 1000.

    Kills: a multiple of the mean slope as threshold, which the cap makes fall short; a gain of the wrong sign.
    """
    budget, spent = DrawBudget(threshold=1.0), []
    for step in range(1000):
        slopes = torch.tensor([0.001, 0.01, 1.0, 1.0], dtype=torch.float64) / (1 if step < 500 else 100)
        probability = (slopes / budget.threshold).clamp(max=1)
        spent.append(float(probability.mean()))
        budget.add(probability)
        budget.step(lambda sums: sums)
    excess = sum(spent) - 1000 * RATE
    assert excess == pytest.approx(math.log(budget.threshold) / GAIN, abs=1e-9)
    assert abs(sum(spent) / 1000 - RATE) < 0.011
    assert spent[499] == pytest.approx(RATE, abs=1e-6)


# The same run ---------------------------------------------------------------------------------------------------------


def test_accumulation_is_batching(tmp_path: Path) -> None:
    """4 x 1 = 1 x 4, also where the last step is short.

    Kills: the threshold updated inside a step; the probabilities of the last micro-batch alone; a |slope| that depends
    on the size of the micro-batch.
    """
    fields = {"sft_coef": 0.1, "pair_coupling": "aligned", "num_train_epochs": 3, "learning_rate": 0.3}
    at_once, one = run(tmp_path / "a", 6, per_device_train_batch_size=4, **fields)
    in_parts, other = run(tmp_path / "b", 6, per_device_train_batch_size=1, gradient_accumulation_steps=4, **fields)
    assert distance(one, other) < TOLERANCE
    assert at_once.budget.threshold == pytest.approx(in_parts.budget.threshold, rel=1e-9)
    assert at_once.budget.threshold != pytest.approx(1 / RATE, rel=1e-3)


@pytest.mark.parametrize("restore", [False, True])
def test_resumed_is_uninterrupted(tmp_path: Path, restore: bool) -> None:
    """Bit for bit, whether or not transformers restores callbacks itself. Kills: a threshold that starts anew; one
    that is read from a callback that transformers has replaced."""
    fields = {**FIELDS, **AUTO, "eval_strategy": "no", "restore_callback_states_from_checkpoint": restore}
    _, whole = train(VRPOTrainer, vrpo_config(tmp_path, **fields), pairs(8))
    expected, values = log_lines(tmp_path), thresholds(tmp_path)
    assert len(set(values)) > 2
    trainer, rest = train(VRPOTrainer, vrpo_config(tmp_path, **fields), pairs(8), resume=str(tmp_path / "checkpoint-5"))
    assert distance(whole[5:], rest) == 0
    assert log_lines(tmp_path) == expected
    assert trainer.budget.threshold == values[-1]


def test_a_run_without_auto_can_go_on_with_it(tmp_path: Path) -> None:
    """Kills: a checkpoint without a threshold that breaks the saving of the next one."""
    fields = {**FIELDS, "eval_strategy": "no"}
    train(VRPOTrainer, vrpo_config(tmp_path, **fields), pairs(8))
    _, rest = train(
        VRPOTrainer,
        vrpo_config(tmp_path, **{**fields, **AUTO}, resume_with_changes=True),
        pairs(8),
        resume=str(tmp_path / "checkpoint-9"),
    )
    assert len(rest) == 3
    values = thresholds(tmp_path)
    assert len(values) == 3
    assert len({*values, 1 / RATE}) == 4


def test_a_step_without_gradients_is_a_step(tmp_path: Path) -> None:
    """One pair, one group: often everything is dropped. Momentum goes on moving the parameters, as it does in several
    processes, where an empty pack gives zeros. Kills: a step without a gradient, which optimizers skip."""
    fields = {"per_device_train_batch_size": 1, "optim": "adamw_torch", "learning_rate": 1e-2, "num_train_epochs": 2}
    trainer, trajectory = run(tmp_path, 6, **fields)
    log = [line for line in trainer.state.log_history if "loss" in line]
    empty = [step for step, line in enumerate(log) if line["draws/per_pair"] == 0 and step > 0]
    assert any(log[step - 1]["draws/per_pair"] for step in empty)
    for step in empty:
        assert distance(trajectory[step : step + 1], trajectory[step - 1 : step]) > 0
