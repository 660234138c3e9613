"""router_aux_loss_coef and the statistics of routers, through whole training runs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.loops import each
from tests.moe import tiny_moe
from tests.training.runs import (
    Trajectory,
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
from vrpo.models.routing import Routers, Routing, balance_loss
from vrpo.training.preference import VRPOTrainer
from vrpo.training.sft import SFTTrainer

COEF = 0.5
ROUTER = {"router/load_max", "router/load_min", "router/unused", "router/entropy", "router/aux_loss"}


def run(trainer: Any, config: Any, rows: Any, **kwargs: Any) -> Trajectory:
    return train(trainer, config, rows, denoiser=tiny_moe(), **kwargs)[1]


def step_of_gates(trajectory: Trajectory) -> Tensor:
    """The first step of the routers' weights: all but -0.1 times their gradient."""
    first = dict(tiny_moe().module.named_parameters())
    return torch.cat([(p - first[n]).flatten() for n, p in trajectory[0].items() if "gate.weight" in n])


def test_the_loss_of_a_step_is_coef_times_the_mean_over_tokens(tmp_path: Path) -> None:
    """Supervised, all in one pack: against a forward with hooks. Kills: a sum over draws, layers or micro-batches."""
    options: dict[str, Any] = {"max_steps": 1, "per_device_train_batch_size": 8, "num_times": 1}
    with_loss = run(SFTTrainer, sft_config(tmp_path / "a", router_aux_loss_coef=COEF, **options), answers())
    without = run(SFTTrainer, sft_config(tmp_path / "b", **options), answers())
    trainer = SFTTrainer(tiny_moe(), args=sft_config(tmp_path / "c", **options), train_dataset=answers())
    heard: list[Routing] = []
    module: Any = trainer.denoiser.module
    for layer in module.model.layers:
        layer.mlp.gate.register_forward_hook(lambda gate, given, found: heard.append(Routing(found[0], found[2])))
    batch = next(iter(trainer.get_train_dataloader()))
    tokens = trainer.tokens(batch, epoch=0)
    draws = trainer.recipe.plan(tokens, None)
    masked = draws.masked[:, 0]
    module(input_ids=tokens.ids, attention_mask=tokens.attention, masked=masked, scored=masked)
    loss = torch.stack([balance_loss(one, tokens.attention.flatten()) for one in heard]).mean()
    weights = [layer.mlp.gate.weight for layer in module.model.layers]
    expected = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(COEF * loss, weights)])
    assert expected.abs().max() > 1e-3
    found = (step_of_gates(without) - step_of_gates(with_loss)) / 0.1
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


SAME = {  # runs whose packs hold one row each, so that the loss, which is not linear in a pack's tokens, is the same
    "accumulated": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "balance_batches": False},
    "checkpointed": {"gradient_checkpointing": True},
    "two passes, asked for": {"gradient_passes": "two"},
}


@each("name", SAME)
def test_preference_runs_that_are_the_same_run(tmp_path: Path, name: str) -> None:
    """Kills: the rate of another micro-batch, a loss that is counted once per pass of a checkpointed layer."""
    common: dict[str, Any] = {"router_aux_loss_coef": COEF, "max_steps": 2, "max_tokens_per_forward": 1, "num_times": 1}
    common |= {"learning_rate": 0.01, "per_device_train_batch_size": 2}
    rows = pairs(2, lengths=(5,))  # of one length: each micro-batch is a mean over its own tokens
    one = run(VRPOTrainer, vrpo_config(tmp_path / "a", **common), rows)
    assert distance(one, run(VRPOTrainer, vrpo_config(tmp_path / "b", **common | SAME[name]), rows)) < 1e-7
    assert moved(one) > 1e-3


UNEVEN: dict[str, dict[str, Any]] = {  # runs in which some passes have no gradient
    "mismatched rows": {"loss_type": "kto"},
    "all in one call": {"loss_type": "kto", "max_tokens_per_forward": 4096},
}


@each("name", UNEVEN)
def test_the_mean_is_over_the_passes_that_were_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Kills: the rate of all draws, which the rows that learn beside those of a baseline fall short of;
    a call that holds both, in which the routers of both are moved."""
    weights: list[float] = []
    seen: list[int] = []
    attached = Routers.attached

    def watched(self: Routers, output: Tensor, heard: list[Routing], real: Tensor) -> Tensor:
        if output.requires_grad:
            weights.append(self.rate * int(real.sum()))
            seen.append(int(real.sum()))
        return attached(self, output, heard, real)

    monkeypatch.setattr(Routers, "attached", watched)
    fields = {"router_aux_loss_coef": COEF, "max_steps": 1, "max_tokens_per_forward": 1, **UNEVEN[name]}
    rows = pairs(4)
    config = vrpo_config(tmp_path, **fields)
    train(VRPOTrainer, config, rows, denoiser=tiny_moe())
    assert sum(weights) == pytest.approx(COEF)
    sizes = [len(row["prompt_ids"]) + len(row[each]) for row in rows for each in ("chosen_ids", "rejected_ids")]
    assert sum(seen) == config.num_times * sum(sizes)


def test_statistics_are_logged(tmp_path: Path) -> None:
    """With and without the loss; of passes with a graph only. Kills: names lost, a dense model that logs them."""
    run(VRPOTrainer, vrpo_config(tmp_path / "moe", max_steps=2, logging_steps=1), pairs(4))
    for line in log_lines(tmp_path / "moe")[:2]:
        assert line.keys() >= ROUTER
        assert 1 <= line["router/load_max"] <= 3
        assert 0 <= line["router/load_min"] <= 1
        assert 0 < line["router/entropy"] < 1.8
        assert line["router/aux_loss"] >= 1.5
    train(VRPOTrainer, vrpo_config(tmp_path / "dense", max_steps=1), pairs(4))
    assert not ROUTER & json.loads((tmp_path / "dense" / "log.jsonl").read_text().splitlines()[0]).keys()


def test_balancing_balances(tmp_path: Path) -> None:
    """Ten steps with a large coefficient lower the loss that is logged. Kills: the sign."""
    options: dict[str, Any] = {"max_steps": 10, "router_aux_loss_coef": 5.0, "learning_rate": 0.02}
    run(SFTTrainer, sft_config(tmp_path, **options), answers())
    lines = [line for line in log_lines(tmp_path) if "router/aux_loss" in line]
    assert lines[-1]["router/aux_loss"] < lines[0]["router/aux_loss"] - 0.05


def test_adapters_use_two_passes_and_leave_routers_alone(tmp_path: Path) -> None:
    """One pass would multiply the loss by slopes. Kills: gradient_passes=auto that does not know; a trained router."""
    config = vrpo_config(tmp_path, router_aux_loss_coef=COEF, max_steps=1)
    assert not config.one_pass(small=True)
    assert vrpo_config(tmp_path).one_pass(small=True)
    trajectory = run(VRPOTrainer, config, pairs(4), peft_config=lora())
    assert all("lora_" in name and "self_attn" in name for name in trajectory[0])


@each(
    ("fields", "message"),
    [
        ({"router_aux_loss_coef": -1.0}, "negative"),
        ({"router_aux_loss_coef": 0.1, "gradient_passes": "one"}, "gradient_passes=one"),
    ],
)
def test_settings_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vrpo_config(tmp_path, **fields)


def test_a_dense_model_has_no_routers(tmp_path: Path) -> None:
    """Kills: a coefficient that is silently of no effect."""
    with pytest.raises(ValueError, match="router_aux_loss_coef: the model has no routers"):
        SFTTrainer(tiny(), args=sft_config(tmp_path, router_aux_loss_coef=0.1), train_dataset=answers())
