"""Score exactly 0 at the start, whatever the precision; what mixed precision may and may not change."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.runs import distance, lora, pairs, sft_config, tiny, train, vrpo_config
from vrpo.losses.objective import Objective
from vrpo.training import preference
from vrpo.training.preference import VRPOTrainer
from vrpo.training.sft import SFTTrainer
from vrpo.types import Terms


def first_step(
    folder: Path, *, adapter: bool = False, base: torch.dtype = torch.float32, **fields: Any
) -> dict[str, Any]:
    options = {"peft_config": lora()} if adapter else {}
    config = vrpo_config(folder, max_steps=1, num_times=3, **fields)
    trainer, _ = train(VRPOTrainer, config, pairs(4), denoiser=tiny(base), eval_dataset=pairs(3), **options)
    return trainer.state.log_history[0]


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_score_is_exactly_zero(tmp_path: Path, adapter: bool, bf16: bool, checkpointing: bool) -> None:
    """Bit for bit, with other packs for the gradient too. Kills: a reference outside of autocast; draws that are not
    shared; another packing, or another mode, for the reference."""
    fields = {"bf16": bf16, "gradient_checkpointing": checkpointing, "max_tokens_per_forward": 40}
    log = first_step(tmp_path, adapter=adapter, **fields)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "elbo/chosen_change", "score/variance"):
        assert log[name] == 0.0, name
    assert log["rewards/accuracies"] == 0.5
    assert log["loss"] == pytest.approx(0.6931471805599453, abs=1e-7)
    assert log["grad_norm"] > 0.1


def test_score_of_a_bfloat16_base(tmp_path: Path) -> None:
    """An adapter on a base stored in bfloat16: float32 masters for the adapter, score still exactly 0."""
    log = first_step(tmp_path, adapter=True, base=torch.bfloat16, bf16=True)
    assert log["rewards/margins"] == 0.0
    assert log["grad_norm"] > 0.1


def test_independent_draws_give_a_noisy_score(tmp_path: Path) -> None:
    """Kills: share_draws=False that shares all the same."""
    log = first_step(tmp_path, share_draws=False)
    assert abs(log["rewards/margins"]) > 0.1
    assert log["score/variance"] > 0.1
    assert log["rewards/accuracies"] != 0.5 or log["rewards/chosen"] != 0


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("trainer", [VRPOTrainer, SFTTrainer])
def test_bf16_gradients(tmp_path: Path, trainer: Any, adapter: bool) -> None:
    """Close to float32's, and not equal. Kills: autocast that is configured but not entered, and gradients lost to a
    cache of weights cast under no_grad."""
    trajectories = []
    for bf16 in (False, True):
        make = vrpo_config if trainer is VRPOTrainer else sft_config
        rows = pairs(4) if trainer is VRPOTrainer else pairs(4).rename_column("chosen_ids", "response_ids")
        options = {"peft_config": lora()} if adapter else {}
        config = make(tmp_path / str(bf16), bf16=bf16, max_steps=1, learning_rate=1.0)
        trajectories.append(train(trainer, config, rows, denoiser=tiny(torch.float32), **options)[1][0])
    start = dict(tiny(torch.float32).module.named_parameters())
    for name, exact in trajectories[0].items():
        if "lora_A" in name:  # the gradient is 0 as long as B is 0
            continue
        origin = torch.zeros_like(exact) if "lora_B" in name else start[name].detach()
        step, rounded = exact - origin, trajectories[1][name] - origin
        assert 0 < float((step - rounded).norm()) < 0.2 * float(step.norm()), name
    assert all(value.dtype == torch.float32 for value in trajectories[1].values())


def test_no_autocast_around_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call of a model enters an autocast of its own. Kills: one autocast around values and gradients, whose cache
    of weights, cast without a graph, loses the gradients before torch 2.10 (and would round objectives)."""
    inside: list[bool] = []
    original = preference.backward_keeping_graphs

    def spy(*args: Any, **kwargs: Any) -> Any:
        objective: Objective = args[5]

        def watched(terms: Terms, structure: Any) -> Tensor:
            inside.append(torch.is_autocast_enabled("cpu"))
            assert terms.policy.dtype == torch.float64
            return objective(terms, structure)

        return original(*args[:5], watched, *args[6:], **kwargs)

    monkeypatch.setattr(preference, "backward_keeping_graphs", spy)
    first_step(tmp_path, bf16=True)
    assert inside == [False]


def test_evaluation_in_bf16(tmp_path: Path) -> None:
    """Policy = reference: every evaluated reward is exactly 0, before and after training has wrapped the model. Kills:
    autocast for one of the two only."""
    for steps in (0, 1):
        config = vrpo_config(tmp_path / str(steps), bf16=True, max_steps=1, learning_rate=0.0)
        trainer = VRPOTrainer(tiny(torch.float32), args=config, train_dataset=pairs(4), eval_dataset=pairs(3))
        if steps:
            trainer.train()
        metrics = trainer.evaluate()
        assert metrics["eval_rewards/margins"] == 0.0
        assert metrics["eval_loss"] == pytest.approx(0.6931471805599453, abs=1e-12)


def test_score_moves_after_the_first_step(tmp_path: Path) -> None:
    """Kills: a score that is 0 because policy and reference are one model."""
    for adapter in (False, True):
        options = {"peft_config": lora()} if adapter else {}
        trainer, path = train(VRPOTrainer, vrpo_config(tmp_path / str(adapter), max_steps=2), pairs(4), **options)
        assert trainer.state.log_history[1]["rewards/margins"] != 0.0
        assert distance(path[:1], path[1:]) > 0
