"""Runs that are written differently and must be the same run: parameter trajectories in float64, to 1e-9."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training.runs import Trajectory, distance, lora, moved, pairs, tiny, train, vrpo_config
from vrpo.data.collate import pairs_of
from vrpo.estimator import elbo
from vrpo.models.hf import HFDenoiser
from vrpo.preference import preference_loss
from vrpo.training import preference
from vrpo.training.preference import VRPOTrainer
from vrpo.training.references import frozen_copy

TOLERANCE = 1e-9


def run(folder: Path, count: int = 8, denoiser: HFDenoiser | None = None, **fields: Any) -> Trajectory:
    options = {name: fields.pop(name) for name in ("peft_config", "ref_model") if name in fields}
    _, trajectory = train(VRPOTrainer, vrpo_config(folder, **fields), pairs(count), denoiser=denoiser, **options)
    assert moved(trajectory) > 1e-3
    return trajectory


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("count", [8, 6], ids=["full_windows", "short_last_window"])
def test_accumulation_is_batching(tmp_path: Path, count: int, adapter: bool) -> None:
    """Kills: the mean over micro-batches instead of over pairs; dividing a short last window by the nominal number of
    accumulation steps; `accelerator.backward` dividing once more; a draw key that depends on the batch."""
    options = {"peft_config": lora()} if adapter else {}
    at_once = run(tmp_path / "a", count, per_device_train_batch_size=4, **options)
    options = {"peft_config": lora()} if adapter else {}
    one_by_one = run(tmp_path / "b", count, per_device_train_batch_size=1, gradient_accumulation_steps=4, **options)
    assert distance(at_once, one_by_one) < TOLERANCE


def test_accumulation_is_batching_under_the_default_plan(tmp_path: Path) -> None:
    """Kills: answers aligned with another pair's; counts, strata or slots that depend on the batch or its padding."""
    fields = {"plan": "balanced", "num_times": 4, "eval_num_times": 4}
    at_once = run(tmp_path / "a", 6, per_device_train_batch_size=3, **fields)
    one_by_one = run(tmp_path / "b", 6, per_device_train_batch_size=1, gradient_accumulation_steps=3, **fields)
    packed = run(tmp_path / "c", 6, per_device_train_batch_size=3, max_tokens_per_forward=30, **fields)
    assert distance(at_once, one_by_one) < TOLERANCE
    assert distance(at_once, packed) < TOLERANCE


def test_accumulated_batches_of_unequal_size(tmp_path: Path) -> None:
    """7 pairs at once against 4 + 3. Kills: micro-batches that weigh the same, where pairs should."""
    at_once = run(tmp_path / "a", 7, per_device_train_batch_size=7)
    in_parts = run(tmp_path / "b", 7, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert distance(at_once, in_parts) < TOLERANCE


def test_logged_loss_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    """Kills: the loss of a micro-batch logged unscaled, so that it grows with the number of accumulation steps."""
    losses = []
    for name, batch, steps in (("a", 4, 1), ("b", 1, 4)):
        fields = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps}
        trainer, _ = train(VRPOTrainer, vrpo_config(tmp_path / name, **fields), pairs(6))
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0][1] != pytest.approx(losses[0][0], rel=1e-3)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("fields", [{}, {"sft_coef": 0.1}, {"slope": "cross_fit"}], ids=["dpo", "sft", "cross_fit"])
def test_one_pass_is_two(tmp_path: Path, adapter: bool, fields: dict[str, Any]) -> None:
    """Also over micro-batches; to 1e-5, since transformers' RMSNorm computes in float32 and so does not scale exactly
    (tests/test_preference.py has 1e-12). Kills: the scale of a micro-batch left out; earlier gradients overwritten."""
    common = {"num_times": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, **fields}
    found = []
    for passes in ("one", "two"):
        options = {"peft_config": lora()} if adapter else {}
        found.append(run(tmp_path / passes, 6, gradient_passes=passes, **common, **options))
    assert distance(*found) < 1e-5


def spied(name: str, function: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return function(*args, **kwargs)

    return call


@pytest.mark.parametrize(
    ("adapter", "num_times", "limit", "once"),
    [
        (True, 2, None, True),
        (True, 1, None, False),
        (False, 2, None, False),
        (True, 2, 40, True),
        (True, 2, 4096, False),
    ],
)
def test_passes_are_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: bool, num_times: int, limit: int | None, once: bool
) -> None:
    """One pass for adapters whose step needs several packs; graphs that fit together are kept instead. Kills: a choice
    that forgets the budget; a buffer of a whole model."""
    calls: list[str] = []
    for name in ("OnePass", "backward_keeping_graphs"):
        monkeypatch.setattr(preference, name, spied(name, getattr(preference, name), calls))
    options = {"peft_config": lora()} if adapter else {}
    run(tmp_path, 4, num_times=num_times, max_tokens_per_forward=limit, **options)
    assert set(calls) == {"OnePass" if once else "backward_keeping_graphs"}


def test_adapter_off_is_a_frozen_copy(tmp_path: Path) -> None:
    """Kills: a reference that sees the adapter (the score would stay 0), and `disable_adapter` leaking into the
    policy's second pass (no gradient)."""
    adapter_off = run(tmp_path / "a", peft_config=lora())
    given = run(tmp_path / "b", peft_config=lora(), ref_model=frozen_copy(tiny()))
    assert distance(adapter_off, given) < TOLERANCE


def test_reference_is_the_initial_policy(tmp_path: Path) -> None:
    """Kills: a reference that shares parameters with the policy and so follows it."""
    implicit = run(tmp_path / "a")
    explicit = run(tmp_path / "b", ref_model=tiny())
    assert distance(implicit, explicit) < TOLERANCE


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_gradient_checkpointing_changes_nothing(tmp_path: Path, adapter: bool) -> None:
    """Kills: reentrant checkpointing, which loses the gradients of adapters on a frozen base."""
    options = [{"peft_config": lora()} if adapter else {} for _ in range(2)]
    plain = run(tmp_path / "a", **options[0])
    checkpointed = run(tmp_path / "b", gradient_checkpointing=True, **options[1])
    assert distance(plain, checkpointed) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_compiling_changes_nothing(tmp_path: Path, adapter: bool) -> None:
    """Blocks are really compiled, in policy and reference, and nothing is wrapped. Kills: a reference that is the
    policy itself, because a wrapper of torch.compile is no PeftModel (the loss stays at log 2)."""
    found = []
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for name, fields in (("a", {}), ("b", {"torch_compile": True, "torch_compile_backend": "eager"})):
        options: dict[str, Any] = {"peft_config": lora()} if adapter else {}
        found.append(
            run(tmp_path / name, 4, tiny(layers=1), max_steps=2, max_tokens_per_forward=400, **fields, **options)
        )
    assert distance(*found) < TOLERANCE
    stats = torch._dynamo.utils.counters["frames"]
    assert 2 <= stats["ok"] == stats["total"]


class Wrapped(nn.Module):
    """As of torch.compile: it can be called, and is no PeftModel."""

    def __init__(self, inner: Any):
        super().__init__()
        self._orig_mod = inner

    def forward(self, **inputs: Any) -> Any:
        return self._orig_mod(**inputs)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_a_wrapper_hides_no_reference(tmp_path: Path, adapter: bool) -> None:
    """Whatever the policy is called through. Kills: anything that looks for an adapter in what accelerate, or
    torch.compile, has made of the model."""
    options: dict[str, Any] = {"peft_config": lora()} if adapter else {}
    trainer, _ = train(VRPOTrainer, vrpo_config(tmp_path, max_steps=1), pairs(4), **options)
    tokens, structure = trainer._rows(list(pairs(4)), 0)
    draws = trainer.recipe.plan(tokens, structure)
    wrapped = Wrapped(trainer.model)
    expected, found = (trainer.reference(each)(tokens, draws, structure) for each in (trainer.model, wrapped))
    assert torch.equal(expected, found)
    assert not torch.allclose(found[:, 0], elbo(wrapped, tokens, draws).terms)


@pytest.mark.parametrize("tokens", [1, 40])
def test_packing_changes_nothing(tmp_path: Path, tokens: int) -> None:
    """Kills: an average over packs; a slope read at the wrong (row, draw); items lost at a pack's boundary."""
    default = run(tmp_path / "a", sft_coef=0.1)
    packed = run(tmp_path / "b", sft_coef=0.1, max_tokens_per_forward=tokens)
    assert distance(default, packed) < TOLERANCE


def test_draw_seed_alone_changes_the_draws(tmp_path: Path) -> None:
    """Kills: draws from `seed` (which also shuffles) where draw_seed is given, and draws that no seed reaches."""
    one, same, other = (run(tmp_path / str(i), draw_seed=seed) for i, seed in enumerate((7, None, 8)))
    assert distance(one, same) == 0
    assert distance(one, other) > 1e-4


def test_draws_differ_between_epochs(tmp_path: Path) -> None:
    """Kills: a constant epoch in the keys. One pair, no learning: only the draws can change the bound."""
    trainer, _ = train(VRPOTrainer, vrpo_config(tmp_path, learning_rate=0.0, num_train_epochs=3), pairs(1))
    bounds = [line["elbo/chosen"] for line in trainer.state.log_history if "loss" in line]
    assert len(set(bounds)) == 3


class AllGraphs(VRPOTrainer):
    """The same trainer with every graph alive at once."""

    def batch_backward(self, policy: Any, batch: Any, scale: float) -> Tensor:
        tokens, structure = self.tokens(batch, epoch=self.draw_epoch), pairs_of(batch)
        draws = self.args.make_recipe().plan(tokens, structure)
        step = preference_loss(policy, self.reference(policy), tokens, structure, draws, self.recipe.plain)
        (scale * step.loss).backward()
        return step.loss.detach()


def test_by_draw_is_all_graphs(tmp_path: Path) -> None:
    """Kills: a slope taken per draw instead of at the mean; a missing `scale`."""
    by_draw = run(tmp_path / "a", gradient_accumulation_steps=2, per_device_train_batch_size=2, sft_coef=0.1)
    fields = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "sft_coef": 0.1}
    _, all_graphs = train(AllGraphs, vrpo_config(tmp_path / "b", **fields), pairs(8))
    assert distance(by_draw, all_graphs) < TOLERANCE


def test_a_run_repeats_itself_bit_for_bit(tmp_path: Path) -> None:
    """Kills: randomness from the ambient generator, be it in the draws or in the adapter's initialisation."""
    torch.manual_seed(1)
    one = run(tmp_path / "a", peft_config=lora())
    torch.manual_seed(2)
    other = run(tmp_path / "b", peft_config=lora())
    assert distance(one, other) == 0
