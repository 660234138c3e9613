"""A run that is not finite any more: it stops before it writes that, says where, and writes JSON to the end."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from tests.loops import each
from tests.training.runs import answers, lora, pairs, sft_config, tiny, train, vrpo_config
from vrpo.models.hf import HFDenoiser
from vrpo.training.checkpoints import problem_of
from vrpo.training.finite import finite
from vrpo.training.preference import VRPOTrainer
from vrpo.training.sft import SFTTrainer

SAVES: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
STOPS = (
    r"step 2: the loss is not finite \(rows \d, \d, \d, \d, by example_id\).*checkpoint-1\. Try a lower learning_rate"
)


class Diverges(TrainerCallback):
    """The first step goes much too far: its weights are finite, and nothing that they give is."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        with torch.no_grad():
            for parameter in kwargs["model"].parameters():
                parameter.mul_(1e200 if parameter.requires_grad else 1)


def broken(name: str = "q_proj") -> HFDenoiser:
    denoiser = tiny()
    weight = next(part for each, part in denoiser.module.named_parameters() if name in each)
    with torch.no_grad():
        weight[1, 1] = float("nan")
    return denoiser


def parsed(folder: Path) -> list[Any]:
    """Every line of JSON that training has written; NaN and Infinity are none."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    texts = [path.read_text() for path in folder.rglob("*.json")]
    texts += [line for path in folder.rglob("*.jsonl") for line in path.read_text().splitlines()]
    return [json.loads(text, parse_constant=refuse) for text in texts]


@each("adapter", [False, True], ids=["two passes", "one pass"])
def test_a_diverged_run_stops(tmp_path: Path, adapter: bool) -> None:
    """Kills: NaN weights saved; slopes that "differ", being NaN; a last good checkpoint removed."""
    options = {"peft_config": lora()} if adapter else {}
    with pytest.raises(ValueError, match=STOPS):
        train(VRPOTrainer, vrpo_config(tmp_path, **SAVES), pairs(8), callbacks=[Diverges()], **options)
    assert problem_of(tmp_path / "checkpoint-1") is None
    assert not (tmp_path / "checkpoint-2").exists()


def test_supervised_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=STOPS):
        train(SFTTrainer, sft_config(tmp_path, **SAVES), answers(8), callbacks=[Diverges()])


@each("adapter", [False, True], ids=["two passes", "one pass"])
def test_going_on_all_the_same(tmp_path: Path, adapter: bool) -> None:
    """What is not known is absent, in every file. Kills: bare NaN and Infinity; a best loss that is none."""
    options = {"peft_config": lora()} if adapter else {}
    fields = {"stop_at_non_finite": False, "eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    config = vrpo_config(tmp_path, **{**SAVES, **fields})
    trainer, _ = train(VRPOTrainer, config, pairs(8), eval_dataset=pairs(3), callbacks=[Diverges()], **options)
    trainer.save_state()
    trainer.save_metrics("all", trainer.evaluate())
    assert len(parsed(tmp_path)) > 5
    assert "loss" in trainer.state.log_history[0]
    assert "loss" not in trainer.state.log_history[-3]


def test_a_step_that_is_not_finite_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    """The rate explodes at the third step: the weights of the second save are finite and useless. Kills: the last good
    checkpoint removed for one that no step was made from."""
    trainer = VRPOTrainer(tiny(), args=vrpo_config(tmp_path, **{**SAVES, "learning_rate": 1.0}), train_dataset=pairs(8))
    trainer.lr_scheduler, trainer.optimizer = None, None
    trainer.create_optimizer()
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, lambda step: 1e-3 if step < 1 else 1e30)
    with pytest.raises(ValueError, match=r"checkpoint-1, .*checkpoint-2"):
        trainer.train()


@each("trained", [True, False])
def test_broken_weights_are_not_begun_with(tmp_path: Path, trained: bool) -> None:
    """Kills: a NaN in one weight, of the model or of its reference, found by nobody."""
    models = (broken(), tiny()) if trained else (tiny(), broken())
    with pytest.raises(ValueError, match=rf"the {'model' if trained else 'reference'}.* not finite: .*q_proj"):
        VRPOTrainer(*models, vrpo_config(tmp_path), train_dataset=pairs(2))


def test_an_evaluation_that_is_not_finite(tmp_path: Path) -> None:
    """Kills: an eval_loss of NaN that the run goes on with."""
    trainer = VRPOTrainer(tiny(), args=vrpo_config(tmp_path), train_dataset=pairs(2), eval_dataset=pairs(3))
    with torch.no_grad():
        next(trainer.model.parameters())[trainer.eval_dataset[1]["chosen_ids"][0]] = float("inf")
    with pytest.raises(ValueError, match=r"step 0: eval_loss is not finite \(rows .*1"):
        trainer.evaluate()


def test_what_json_cannot_hold() -> None:
    assert finite({"a": float("nan"), "b": float("-inf"), "c": 1.0, "d": "text", "e": None}) == {
        "c": 1.0,
        "d": "text",
        "e": None,
    }
