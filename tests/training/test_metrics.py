"""What a run says about itself, against a direct computation from the terms."""

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.loops import each
from tests.training.runs import Recorder, answers, lora, pairs, sft_config, tiny, train, vrpo_config
from vrpo.data.collate import PreferenceCollator, SFTCollator, pairs_of, rows_of, tokens_of
from vrpo.draws import FixedCount, rekeyed
from vrpo.estimator import elbo
from vrpo.losses.pairwise import DPO
from vrpo.models.hf import HFDenoiser
from vrpo.preference import Step
from vrpo.structures import Rankings
from vrpo.training.base import EVAL_EPOCH
from vrpo.training.metrics import GradientNoise, Window, mean_and_error, pair_metrics, per_list, relative_error
from vrpo.training.preference import VRPOTrainer
from vrpo.training.references import frozen_copy
from vrpo.training.sft import SFTTrainer
from vrpo.types import Draws, Pairs, Terms, Tokens

TRL = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "loss")
OURS = ("elbo/chosen", "elbo/rejected", "elbo/chosen_change", "elbo/rejected_change", "score/saturated")
BETA, DRAWS = 0.5, 3


def all_pairs(count: int, num_times: int, denoiser: HFDenoiser, epoch: int = 0) -> tuple[Tokens, Pairs, Draws]:
    """The whole of `pairs(count)` as one batch, with its draws of an epoch."""
    batch = PreferenceCollator(denoiser.pad_id)(list(pairs(count)))
    tokens = tokens_of(batch, seed=7, epoch=epoch)
    return tokens, pairs_of(batch), FixedCount(num_times)(tokens)


def expected(policy: HFDenoiser, reference: HFDenoiser, count: int, num_times: int, epoch: int = 0) -> dict[str, float]:
    """Means over the pairs of every metric, computed from the definitions, not from `pair_metrics`."""
    tokens, structure, draws = all_pairs(count, num_times, policy, epoch)
    with torch.no_grad():
        terms = [elbo(model, tokens, draws).terms for model in (policy, reference)]
    bound, change = terms[0].sum(-1), (terms[0] - terms[1]).sum(-1)
    chosen, rejected = structure.chosen, structure.rejected
    score = BETA * (change[chosen] - change[rejected])
    columns: dict[str, Tensor] = {
        "rewards/chosen": BETA * change[chosen],
        "rewards/rejected": BETA * change[rejected],
        "rewards/accuracies": (score > 0).double(),
        "rewards/margins": score,
        "elbo/chosen": bound[chosen],
        "elbo/rejected": bound[rejected],
        "elbo/chosen_change": change[chosen],
        "elbo/rejected_change": change[rejected],
        "score/square": score.square(),
        "score/saturated": (score.abs() > 4).double(),
        "draws/per_pair": torch.full_like(score, 2 * num_times),
        "draws/values_per_pair": torch.full_like(score, 2 * num_times),
        "loss": torch.log1p(torch.exp(-score)),
    }
    if num_times > 1:
        per_draw = terms[0] - terms[1]
        noise = (per_draw[chosen] - per_draw[rejected]).var(-1, correction=1)
        columns["score/variance"] = BETA**2 * num_times * noise  # a sum of `num_times` independent terms
    means = {name: float(values.mean()) for name, values in columns.items()}
    if num_times > 1:
        means["score/relative_error"] = math.sqrt(means["score/variance"]) / float(score.square().mean().sqrt())
    return means


def standing(
    folder: Path, policy: HFDenoiser, count: int = 6, **fields: Any
) -> tuple[VRPOTrainer, list[dict[str, Any]]]:
    """A run that learns nothing (learning rate 0) against another model; its training log."""
    fields = {"learning_rate": 0.0, "num_train_epochs": 1, "num_times": DRAWS, "beta": BETA, **fields}
    trainer, _ = train(
        VRPOTrainer,
        vrpo_config(folder, **fields),
        pairs(count),
        denoiser=policy,
        ref_model=tiny(),
        eval_dataset=pairs(5),
    )
    return trainer, [line for line in trainer.state.log_history if "loss" in line]


@each(("batch", "steps", "logged"), [(6, 1, 1), (2, 3, 1), (1, 6, 1), (4, 2, 1), (2, 1, 3), (1, 1, 6)])
def test_values(tmp_path: Path, batch: int, steps: int, logged: int) -> None:
    """One window over all pairs, batched and accumulated in any way. Kills: the last micro-batch alone; means of means
    over batches of unequal size (4 + 2); rewards without beta; a variance that forgets the number of draws; draws
    counted with padding; draws that depend on the step instead of the epoch."""
    policy = tiny(seed=1)
    fields = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps, "logging_steps": logged}
    _, log = standing(tmp_path, policy, **fields)
    wanted = expected(policy, tiny(), 6, DRAWS)
    assert len(log) == 1
    assert {*TRL, *OURS, "score/variance", "draws/per_pair"} <= log[0].keys()
    for name, value in wanted.items():
        assert log[0][name] == pytest.approx(value, rel=1e-6 if name == "loss" else 1e-9), name
    assert 0 < wanted["rewards/accuracies"] < 1
    assert wanted["score/variance"] > 0


def test_a_window_spans_logging_steps(tmp_path: Path) -> None:
    """Kills: a window that is not emptied, or that holds the last step only."""
    policy = tiny(seed=1)
    _, log = standing(tmp_path / "a", policy, per_device_train_batch_size=1, logging_steps=3)
    _, each = standing(tmp_path / "b", policy, per_device_train_batch_size=1, logging_steps=1)
    assert (len(log), len(each)) == (2, 6)
    for index, window in enumerate(log):
        part = each[3 * index : 3 * index + 3]
        for name in (*TRL, *OURS, "score/variance"):
            mean = sum(line[name] for line in part) / 3
            assert window[name] == pytest.approx(mean, rel=1e-6, abs=1e-12), name


def test_variance_is_absent_where_it_cannot_be_estimated(tmp_path: Path) -> None:
    """Kills: a variance of 0 (or NaN) reported for a single draw, or from masks drawn at one common time."""
    for name, fields in (("a", {"num_times": 1}), ("b", {"num_times": 1, "plan_kwargs": {"num_masks": 3}})):
        _, log = standing(tmp_path / name, tiny(seed=1), **fields)
        assert not {"score/variance", "score/relative_error"} & log[0].keys()
        assert log[0]["draws/per_pair"] <= 2 * fields.get("plan_kwargs", {}).get("num_masks", 1)


def test_variance_of_independent_draws(tmp_path: Path) -> None:
    """share_draws=False: the noises of policy and reference add. Kills: the variance of paired differences there."""
    policy, reference = tiny(seed=1), tiny()
    _, log = standing(tmp_path, policy, share_draws=False, per_device_train_batch_size=6)
    tokens, structure, draws = all_pairs(6, DRAWS, policy)
    own = FixedCount(DRAWS)(rekeyed(tokens))
    with torch.no_grad():
        terms = [elbo(policy, tokens, draws).terms, elbo(reference, tokens, own).terms]
    chosen, rejected = structure.chosen, structure.rejected
    noise = sum((part[chosen] - part[rejected]).var(-1, correction=1) for part in terms)
    assert log[0]["score/variance"] == pytest.approx(float(BETA**2 * DRAWS * noise.mean()), rel=1e-9)
    score = BETA * sum(
        sign * (part[chosen] - part[rejected]).sum(-1) for sign, part in zip((1, -1), terms, strict=True)
    )
    assert log[0]["rewards/margins"] == pytest.approx(float(score.mean()), rel=1e-9)


def test_evaluation(tmp_path: Path) -> None:
    """Values by definition; the same twice; unchanged by the size of batches and packs. Kills: fresh draws at every
    evaluation; training draws (num_times) in evaluation; cached reference terms of another batch size."""
    policy = tiny(seed=1)
    trainer, _ = standing(tmp_path, policy, eval_num_times=2, per_device_eval_batch_size=2, draw_seed=7)
    first, second = trainer.evaluate(), trainer.evaluate()
    assert first == second
    for name, value in expected(policy, tiny(), 5, 2, EVAL_EPOCH).items():
        assert first[f"eval_{name}"] == pytest.approx(value, rel=1e-9), name
    fields = {"per_device_eval_batch_size": 5, "max_tokens_per_forward": 20}
    other, _ = standing(tmp_path, policy, eval_num_times=2, draw_seed=7, **fields)
    assert other.evaluate() == pytest.approx(first, rel=1e-9)


def test_evaluation_of_another_dataset(tmp_path: Path) -> None:
    """Kills: reference terms cached for the trainer's evaluation set and used for rows given later."""
    policy = tiny(seed=1)
    trainer, _ = standing(tmp_path, policy, eval_num_times=2, per_device_eval_batch_size=5)
    own = trainer.evaluate()
    rows = pairs(10).select(range(5, 10))
    rows = rows.remove_columns("example_id").add_column("example_id", list(range(5)))
    given = trainer.evaluate(rows)
    fresh, _ = train(VRPOTrainer, trainer.args, pairs(1), denoiser=policy, ref_model=tiny(), eval_dataset=rows)
    assert given == fresh.evaluate()
    assert trainer.evaluate() == own


def test_standard_error(tmp_path: Path) -> None:
    """s / sqrt(n) over pairs. Kills: the standard deviation; division by n instead of n - 1."""
    policy, reference = tiny(seed=1), tiny()
    trainer, _ = standing(tmp_path, policy, eval_num_times=2)
    tokens, structure, draws = all_pairs(5, 2, policy, EVAL_EPOCH)
    with torch.no_grad():
        bound = elbo(policy, tokens, draws).value[structure.chosen]
    assert trainer.evaluate()["eval_elbo/chosen_stderr"] == pytest.approx(float(bound.std()) / math.sqrt(5), rel=1e-9)
    assert reference is not policy


def test_the_error_of_one_item_is_unknown() -> None:
    """Kills: a standard error of 0 from a single pair, at which every fall is significant."""
    window = Window()
    window.add({"a": torch.tensor([2.0], dtype=torch.float64)})
    mean, error = mean_and_error(window.sums(torch.device("cpu")))
    assert float(mean[0]) == 2.0
    assert math.isnan(float(error[0]))


@each("size", [2, 3, 4, 8])
def test_relative_error_of_noise_is_1(size: int) -> None:
    """Of lists, too, of terms without any signal; by chance within a tenth. Kills: the square of a list's mean, in
    which the noise of its pairs averages out (1.5, 1.9 and 3.0)."""
    lists, draws = 300, 4
    rows = lists * size
    generator = torch.Generator().manual_seed(0)
    terms = torch.randn(rows, draws, dtype=torch.float64, generator=generator)
    length = torch.ones(rows, dtype=torch.int64)
    group = torch.arange(draws).expand(rows, draws)
    made = Draws(torch.ones(rows, draws, 1, dtype=torch.bool), torch.ones(rows, draws, 1, dtype=torch.float64), group)
    nothing = torch.zeros(rows, 1, draws, dtype=torch.float64)
    step = Step(terms.sum(), Terms(terms, nothing, group), made.in_use)
    structure = Rankings(torch.arange(rows).view(lists, size), length)
    columns = per_list(pair_metrics(step, structure, made, DPO(1.0), common=True), structure.pairs)
    window = Window()
    window.add(columns)
    found = relative_error(window.total, window.sums(torch.device("cpu")))
    assert found["score/relative_error"] == pytest.approx(1, abs=0.1)


def test_relative_error_where_there_is_no_score(tmp_path: Path) -> None:
    """At the reference all scores are exactly 0. Kills: 0 / 0 logged as NaN, or as no error."""
    trainer, _ = train(VRPOTrainer, vrpo_config(tmp_path, learning_rate=0.0), pairs(4), denoiser=tiny())
    log = [line for line in trainer.state.log_history if "loss" in line]
    assert all(line["score/variance"] == 0 and "score/relative_error" not in line for line in log)


@each("plan", ["balanced", "stratified"])
@each("coupling", ["none", "quantile", "aligned"])
def test_variance_over_groups(tmp_path: Path, plan: str, coupling: str) -> None:
    """Four coupled draws in two groups, of coupled rows: the variance of two group sums of the pair's difference.

    Kills: draws of a group counted as independent; the variances of the two rows added where they are coupled.
    """
    policy, reference = tiny(seed=1), tiny()
    fields = {"plan": plan, "pair_coupling": coupling, "num_times": 4, "per_device_train_batch_size": 6}
    trainer, log = standing(tmp_path, policy, **fields)
    tokens, structure, _ = all_pairs(6, 4, policy)
    draws = trainer.recipe.plan(tokens, structure)
    with torch.no_grad():
        change = elbo(policy, tokens, draws).terms - elbo(reference, tokens, draws).terms
    half = (change[structure.chosen] - change[structure.rejected]).unflatten(1, (2, 2)).sum(-1)
    expected_variance = BETA**2 * (half[:, 0] - half[:, 1]).square()  # 2 * the sample variance of two numbers
    assert log[0]["score/variance"] == pytest.approx(float(expected_variance.mean()), rel=1e-9)
    _, log = standing(tmp_path / "one", policy, **{**fields, "plan_kwargs": {"num_groups": 1}})
    assert "score/variance" not in log[0]


# The noise of the gradient --------------------------------------------------------------------------------------------


def noise_of(gradients: list[Tensor]) -> dict[str, float]:
    noise = GradientNoise()
    for gradient in gradients:
        noise.add([gradient[:2], None, gradient[2:]])
    return noise.metrics()


def test_snr_is_signal_over_noise() -> None:
    """Of 4 gradients, against sums over all couples; a sketch of few elements is exact. Kills: couples of a step with
    itself; noise that includes the signal; the ratio upside down; a root."""
    generator = torch.Generator().manual_seed(1)
    gradients = list(torch.randn(4, 5, generator=generator, dtype=torch.float64) + 1)
    couples = [float(a @ b) for i, a in enumerate(gradients) for j, b in enumerate(gradients) if i != j]
    signal = sum(couples) / len(couples)
    noise = sum(float(a @ a) for a in gradients) / 4 - signal
    assert noise_of(gradients)["gradient/snr"] == pytest.approx(signal / noise, rel=1e-12)
    opposite = [gradients[0], -gradients[0]]
    assert noise_of(opposite)["gradient/snr"] == pytest.approx(-0.5, rel=1e-12)


def test_snr_is_absent_where_it_is_not_defined() -> None:
    """Kills: one step called noiseless; 0 / 0."""
    one = torch.ones(5, dtype=torch.float64)
    assert noise_of([one]) == noise_of([]) == noise_of([one, one]) == noise_of([0 * one, 0 * one]) == {}


class Gradients(Recorder):
    """Also keeps the gradients that the optimizer is about to use."""

    def __init__(self) -> None:
        super().__init__()
        self.gradients: list[list[Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.gradients.append([p.grad.clone() for p in kwargs["model"].parameters() if p.requires_grad])


@each("adapter", [False, True], ids=["full", "lora"])
def test_snr_is_of_the_steps_of_a_window(tmp_path: Path, adapter: bool) -> None:
    """Two windows of 3 steps, two micro-batches each.

    Kills: gradients of a micro-batch; a window that is not emptied; a switch without effect.
    """
    fields = {"logging_steps": 3, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    options = {"peft_config": lora()} if adapter else {}
    seen = Gradients()
    config = vrpo_config(tmp_path, num_train_epochs=1, **fields)
    trainer, _ = train(VRPOTrainer, config, pairs(12), callbacks=[seen], **options)
    log = [line for line in trainer.state.log_history if "loss" in line]
    assert len(log) == 2
    for window, line in enumerate(log):
        noise = GradientNoise()
        for gradient in seen.gradients[3 * window : 3 * window + 3]:
            noise.add(gradient)
        assert line["gradient/snr"] == pytest.approx(noise.metrics()["gradient/snr"], rel=1e-12)
    options = {"peft_config": lora()} if adapter else {}
    silent = vrpo_config(tmp_path / "off", num_train_epochs=1, log_gradient_snr=False, **fields)
    trainer, _ = train(VRPOTrainer, silent, pairs(12), **options)
    assert not [line for line in trainer.state.log_history if "gradient/snr" in line]


def test_snr_is_of_gradients_before_clipping(tmp_path: Path) -> None:
    """Kills: the sketch of a clipped gradient, whose norm is the limit whatever the noise."""
    values = []
    for name, limit in (("a", 0.0), ("b", 1e-3)):
        fields = {"logging_steps": 4, "max_grad_norm": limit, "learning_rate": 0.0, "num_train_epochs": 2}
        trainer, _ = train(SFTTrainer, sft_config(tmp_path / name, **fields), answers(8))
        values.append([line["gradient/snr"] for line in trainer.state.log_history if "gradient/snr" in line])
    assert len(values[0]) == 1
    assert values[0] == pytest.approx(values[1], rel=1e-12)


def displacement_warnings(folder: Path, policy: HFDenoiser, reference: HFDenoiser, **fields: Any) -> int:
    """How many warnings 4 windows of a run that stands still give."""
    fields = {"warn_displacement": True, "learning_rate": 0.0, **fields}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(VRPOTrainer, vrpo_config(folder, **fields), pairs(8), denoiser=policy, ref_model=reference)
    return sum("likelihood displacement" in str(warning.message) for warning in caught)


def test_displacement_warns_once(tmp_path: Path) -> None:
    """A policy that is worse at the chosen answers than its reference, which has imitated them. Kills: no warning, one
    at every window, one when bounds rise, and one where nothing is known (a window of one pair)."""
    imitator = tiny()
    train(SFTTrainer, sft_config(tmp_path, learning_rate=0.3, num_train_epochs=10), answers(8), denoiser=imitator)
    assert displacement_warnings(tmp_path, tiny(), imitator) == 1
    assert displacement_warnings(tmp_path, tiny(), imitator, warn_displacement=False) == 0
    assert displacement_warnings(tmp_path, imitator, tiny()) == 0
    assert displacement_warnings(tmp_path, tiny(), frozen_copy(tiny())) == 0
    assert displacement_warnings(tmp_path, tiny(), imitator, per_device_train_batch_size=1) == 0


def test_sft_values(tmp_path: Path) -> None:
    """Loss = minus the bound per token, mean over rows. Kills: a mean over tokens of the batch."""
    policy = tiny()
    config = sft_config(tmp_path, learning_rate=0.0, num_train_epochs=1, per_device_train_batch_size=6)
    trainer, _ = train(SFTTrainer, config, answers(6), denoiser=policy, eval_dataset=answers(5))
    batch = SFTCollator(policy.pad_id)(list(answers(6)))
    tokens, rows = tokens_of(batch, seed=7, epoch=0), rows_of(batch)
    with torch.no_grad():
        per_token = elbo(policy, tokens, FixedCount(2)(tokens)).value / rows.length
    log = trainer.state.log_history[0]
    assert log["loss"] == pytest.approx(-float(per_token.mean()), rel=1e-6)
    assert log["elbo/per_token"] == pytest.approx(float(per_token.mean()), rel=1e-9)
    tokens = tokens_of(batch, seed=7, epoch=EVAL_EPOCH)  # not the masks of any training epoch
    with torch.no_grad():
        per_token = elbo(policy, tokens, FixedCount(2)(tokens)).value / rows.length
    assert trainer.evaluate()["eval_loss"] == pytest.approx(-float(per_token[:5].mean()), rel=1e-9)
