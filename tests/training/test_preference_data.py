"""Runs on labelled answers, on ranked lists, and on pairs with rewards and weights: what must be the same run, and what
is refused before anything is loaded."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor

from tests.loops import each
from tests.training.runs import (
    distance,
    labelled,
    log_lines,
    moved,
    pairs,
    ranked,
    tiny,
    train,
    vrpo_config,
    with_numbers,
)
from vrpo.coupling import Paired
from vrpo.structures import Labels, Rankings
from vrpo.training import preference
from vrpo.training.preference import VRPOTrainer

TOLERANCE = 1e-9
REWARDS = {"chosen_reward": lambda at: 3 + at, "rejected_reward": lambda at: 2.0}
WEIGHT = {"weight": lambda at: at % 3 / 2}
SCALING = {"temperature": "reward_scaling", "temperature_kwargs": {"scale": 2.0}}
RUNS: dict[str, tuple[Dataset, dict[str, Any]]] = {
    "kto of pairs": (pairs(8), {"loss_type": "kto"}),
    "kto of labels": (labelled(8), {"loss_type": "kto"}),
    "kto, batch_mean": (
        with_numbers(labelled(8), **WEIGHT),
        {"loss_type": "kto", "loss_kwargs": {"baseline": "batch_mean"}},
    ),
    "plackett_luce": (with_numbers(ranked(8, rewards=True), **WEIGHT), {"loss_type": "plackett_luce"}),
    "sigmoid of lists": (with_numbers(ranked(8), **WEIGHT), {"loss_type": ["sigmoid", "sft"]}),
    "scaled lists": (ranked(8, rewards=True), SCALING),
    "weights": (with_numbers(pairs(8), **WEIGHT), {"sft_coef": 0.1}),
    "reward_scaling": (with_numbers(pairs(8), **REWARDS), SCALING),
}


@each("name", RUNS)
def test_each_kind_trains(name: str, tmp_path: Path) -> None:
    """Under the default plan and budget of tokens, with an evaluation, with adapters too where they are cheaper. Kills:
    answers of a list coupled as if they were a pair; a metric that is not a number; an evaluation of another kind."""
    rows, fields = RUNS[name]
    more = {"plan": "balanced", "num_times": 2, "max_tokens_per_forward": 200, "num_train_epochs": 1}
    config = vrpo_config(tmp_path, **{**more, **fields}, per_device_eval_batch_size=3)
    trainer, trajectory = train(VRPOTrainer, config, rows, eval_dataset=rows.select(range(5)))
    found = trainer.evaluate()
    assert moved(trajectory) > 1e-4
    numbers = [value for line in (found, *log_lines(tmp_path)) for value in line.values()]
    assert all(math.isfinite(float(value)) for value in numbers)
    assert {"eval_loss", "eval_rewards/accuracies", "eval_elbo/chosen_change"} < found.keys()
    structure = trainer.preference_data.read(trainer.data_collator(list(trainer.train_dataset)))
    assert isinstance(trainer.recipe.plan, Paired) == (not isinstance(structure, Labels | Rankings))


@each("name", [name for name in RUNS if "kto" not in name])
def test_accumulation_is_batching(name: str, tmp_path: Path) -> None:
    """Kills: a list that counts by its pairs; weights that are divided by those of the micro-batch; a mean of means."""
    rows, fields = RUNS[name]
    at_once = train(VRPOTrainer, vrpo_config(tmp_path / "a", **fields, per_device_train_batch_size=4), rows)[1]
    options = {**fields, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    in_parts = train(VRPOTrainer, vrpo_config(tmp_path / "b", **options), rows)[1]
    assert moved(at_once) > 1e-4
    assert distance(at_once, in_parts) < TOLERANCE


@each("fields", [{}, {"loss_type": "plackett_luce"}, SCALING])
def test_lists_of_two_are_pairs(fields: dict[str, Any], tmp_path: Path) -> None:
    """With their weights and rewards. Kills: draws, weights or rewards of a list that are not its pair's."""
    two = with_numbers(ranked(8, lists=(2,), rewards=True), **WEIGHT)
    best = {name: lambda at, place=place: two[at]["rewards"][place] for place, name in enumerate(REWARDS)}
    of_pairs = {name: value for name, value in fields.items() if value != "plackett_luce"}
    lists = train(VRPOTrainer, vrpo_config(tmp_path / "a", **fields), two)[1]
    paired = train(VRPOTrainer, vrpo_config(tmp_path / "b", **of_pairs), with_numbers(pairs(8), **WEIGHT, **best))[1]
    assert moved(lists) > 1e-4
    assert distance(lists, paired) < TOLERANCE


def test_weights_weigh_the_loss(tmp_path: Path) -> None:
    """2 for all pairs is twice the learning rate; 0 for half of them is half of it for the others alone. Kills: weights
    that are normalised, or not used."""

    def run(name: str, rows: Dataset, **fields: Any) -> Any:
        fixed = {"train_sampling_strategy": "sequential", "lr_scheduler_type": "constant", "num_train_epochs": 1}
        return train(VRPOTrainer, vrpo_config(tmp_path / name, **fixed, **fields), rows)[1]

    plain = run("a", pairs(8), learning_rate=0.2)
    assert distance(plain, run("b", with_numbers(pairs(8), weight=lambda at: 2), learning_rate=0.1)) < TOLERANCE
    half = run("c", with_numbers(pairs(8), weight=lambda at: at % 2), learning_rate=0.2)
    odd = run("d", pairs(8).select([1, 3, 5, 7]), learning_rate=0.1, per_device_train_batch_size=2)
    assert distance(half, odd) < TOLERANCE


def test_rewards_change_the_temperature_only_if_asked(tmp_path: Path) -> None:
    """Kills: reward_scaling without effect; rewards that matter to a constant beta."""
    rows = with_numbers(pairs(8), **REWARDS)
    constant = train(VRPOTrainer, vrpo_config(tmp_path / "a"), rows)[1]
    assert distance(constant, train(VRPOTrainer, vrpo_config(tmp_path / "b"), pairs(8))[1]) == 0
    scaled = train(VRPOTrainer, vrpo_config(tmp_path / "c", **SCALING), rows)[1]
    assert distance(constant, scaled) > 1e-4


def test_rows_of_text(tmp_path: Path) -> None:
    """Of each kind. Rewards that nobody asks for may be missing. Kills: rows tokenised as another kind."""
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "chosen": "b", "rejected": "c", "chosen_reward": 1.0, "rejected_reward": 0.0},
        {"prompt": "d", "chosen": "e", "rejected": "f", "chosen_reward": None, "rejected_reward": 0.0},
    ]
    of = Dataset.from_list(rows)
    assert len(VRPOTrainer(tiny(), args=vrpo_config(tmp_path), train_dataset=of).train_dataset) == 2
    assert len(VRPOTrainer(tiny(), args=vrpo_config(tmp_path, loss_type="kto"), train_dataset=of).train_dataset) == 2
    scaled = VRPOTrainer(tiny(), args=vrpo_config(tmp_path, **SCALING), train_dataset=of)
    assert list(scaled.reports[0].dropped) == ["missing number"]
    assert scaled.train_dataset["chosen_reward"][:] == [1.0]
    tied = Dataset.from_list([{"prompt": "a", "completions": ["b", "c", "d"], "rewards": [1, 2, r]} for r in (1, 3)])
    assert len(VRPOTrainer(tiny(), args=vrpo_config(tmp_path), train_dataset=tied).train_dataset) == 2
    ordered = VRPOTrainer(tiny(), args=vrpo_config(tmp_path, loss_type="plackett_luce"), train_dataset=tied)
    assert list(ordered.reports[0].dropped) == ["tied answers"]
    one = Dataset.from_list([{"prompt": "a", "completion": "b", "label": True}] * 2)
    with pytest.raises(ValueError, match="all rows have the same prompt"):
        VRPOTrainer(tiny(), args=vrpo_config(tmp_path, loss_type="kto"), train_dataset=one)


REFUSED: list[tuple[dict[str, Any], Dataset, str]] = [
    ({}, labelled(2), "sigmoid does not take single labelled answers .*: .* set loss_type to kto"),
    ({"loss_type": "kto"}, ranked(2), "kto does not take ranked lists"),
    ({"loss_type": "plackett_luce"}, pairs(2), "plackett_luce does not take pairs .* loss_type sigmoid"),
    ({"loss_type": "plackett_luce"}, labelled(2), "plackett_luce does not take single labelled answers"),
    (SCALING, pairs(2), "no chosen_reward and no rejected_reward"),
    (SCALING, with_numbers(pairs(2), chosen_reward=float), "the rows have no rejected_reward:"),
    (SCALING, ranked(2), "the rows have no rewards:"),
    ({"pair_coupling": "quantile"}, ranked(2), "pair_coupling=quantile couples the two answers"),
    (
        {"ref_pool": "harmonic", "ref_pool_kwargs": {"weights": "arwc"}},
        ranked(2),
        "weights arwc compares the two answers",
    ),
    ({}, Dataset.from_list([{"prompt": "a", "completion": "b"}]), "preference rows need"),
]


@each(("fields", "rows", "message"), REFUSED)
def test_refused_before_a_model_is_loaded(
    fields: dict[str, Any], rows: Dataset, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kills: an hour of loading before a loss says that it cannot use the rows."""
    monkeypatch.setattr(preference, "policy_of", lambda *given: pytest.fail("a model was loaded"))
    config = vrpo_config(tmp_path, **fields)
    given = {"ref_model": ["another", "a third"]} if "ref_pool" in fields else {}
    with pytest.raises(ValueError, match=message):
        VRPOTrainer("a/model", args=config, train_dataset=rows, **given)
    with pytest.raises(ValueError, match=message):
        VRPOTrainer("a/model", args=config, eval_dataset={"held out": rows}, **given)


def test_rows_of_two_kinds(tmp_path: Path) -> None:
    """Kills: evaluation rows read as if they were of the kind of the training rows."""
    with pytest.raises(ValueError, match="of one kind, not pairs and rankings"):
        VRPOTrainer("a/model", args=vrpo_config(tmp_path), train_dataset=pairs(2), eval_dataset=ranked(2))


def with_rewards(rewards: list[Any] | None) -> Dataset:
    """Lists of two, four and three answers, with such rewards of the second."""
    rows = ranked(3, rewards=True)
    first, _, last = rows["rewards"]
    return rows.remove_columns("rewards").add_column("rewards", [first, rewards, last])


@each("rewards", [[3.0, 3.0, 2.0, 1.0], [3.0, 2.0, 4.0, 1.0]])
def test_lists_of_token_ids_need_an_order_too(rewards: list[float], tmp_path: Path) -> None:
    """Kills: ties, or another order, of rows that were tokenised elsewhere, learnt as if they were the order given."""
    config = vrpo_config(tmp_path, loss_type="plackett_luce")
    VRPOTrainer(tiny(), args=config, train_dataset=ranked(3, rewards=True))
    with pytest.raises(ValueError, match="row 1: field 'rewards' must fall from answer to answer"):
        VRPOTrainer(tiny(), args=config, train_dataset=with_rewards(rewards))
    VRPOTrainer(tiny(), args=vrpo_config(tmp_path), train_dataset=with_rewards(rewards))  # a loss of pairs takes both


@pytest.mark.parametrize("rewards", [[3.0, 2.0, 1.0], [3.0, 2.0, float("nan"), 1.0], [3.0, 2.0, 1.0, None], None])
def test_lists_of_token_ids_need_a_reward_for_each_answer(rewards: list[Any] | None, tmp_path: Path) -> None:
    """Kills: rewards that slip to the next row's answers; a number that is none, which is no tie and falls nowhere."""
    with pytest.warns(UserWarning, match="kept 2 of 3 rows; dropped 1: .*first: row 1"):
        trainer = VRPOTrainer(tiny(), args=vrpo_config(tmp_path), train_dataset=with_rewards(rewards))
    assert trainer.train_dataset["example_id"][:] == [0, 2]


def test_evaluation_of_labels_is_by_label(tmp_path: Path) -> None:
    """Means and errors over the desirable answers and over the others, in batches that hold one label only or both.
    Kills: means over batches; a column that is left out where a batch lacks a label; zeros that count."""
    rows = labelled(8, desirable=(True, True, True, False))
    fields = {"loss_type": "kto", "loss_kwargs": {"baseline": "batch_mean"}, "num_train_epochs": 1}
    trainer, _ = train(VRPOTrainer, vrpo_config(tmp_path, **fields, per_device_eval_batch_size=2), labelled(4))
    whole = trainer.evaluate(rows)
    assert "eval_rewards/rejected" not in trainer.evaluate(rows.select([0, 1]))
    for name, label, beside in (("chosen", True, 3), ("rejected", False, 0)):
        alone = [trainer.evaluate(rows.select([at, beside])) for at in range(8) if rows[at]["label"] == label]
        for metric in ("rewards/{}", "elbo/{}", "elbo/{}_change"):
            key = f"eval_{metric.format(name)}"
            values = torch.tensor([each[key] for each in alone], dtype=torch.float64)
            error = float(values.std(correction=1)) / len(values) ** 0.5
            assert whole[key] == pytest.approx(float(values.mean()), rel=1e-12)
            assert whole[f"{key}_stderr"] == pytest.approx(error, rel=1e-9)


def test_evaluation_of_pairs_taken_apart_counts_every_pair(tmp_path: Path) -> None:
    """5 pairs in batches of 2. Kills: answers cut off where the last batch is short."""
    fields = {"loss_type": "kto", "num_train_epochs": 1, "per_device_eval_batch_size": 2}
    trainer, _ = train(VRPOTrainer, vrpo_config(tmp_path, **fields), pairs(4))
    singles = [trainer.evaluate(pairs(6).select([at, 5])) for at in range(5)]
    alone = trainer.evaluate(pairs(6).select([5, 0]))["eval_elbo/chosen"]
    assert alone == pytest.approx(singles[0]["eval_elbo/chosen"])
    whole, last = trainer.evaluate(pairs(6)), trainer.evaluate(pairs(5))
    assert last["eval_elbo/chosen"] != pytest.approx(whole["eval_elbo/chosen"])
    assert sum(each["eval_elbo/chosen"] for each in singles) * 2 == pytest.approx(
        5 * last["eval_elbo/chosen"] + 5 * (6 * whole["eval_elbo/chosen"] - 5 * last["eval_elbo/chosen"])
    )


def test_kto_does_not_depend_on_neighbours_but_for_the_baseline(tmp_path: Path) -> None:
    """The rows of an example, answers to other prompts among them, are the same in any batch. Kills: answers to other
    prompts that come from the batch."""
    trainer = VRPOTrainer(tiny(), args=vrpo_config(tmp_path, loss_type="kto"), train_dataset=labelled(5))
    examples = list(trainer.train_dataset)
    whole = trainer.tokens(trainer.data_collator(examples), epoch=0)
    for at, example in enumerate(examples):
        own = trainer.tokens(trainer.data_collator([example]), epoch=0)
        for row, place in enumerate((at, 5 + at)):
            keep = own.attention[row]
            assert own.ids[row][keep].tolist() == whole.ids[place][whole.attention[place]].tolist()
            assert own.key[row] == whole.key[place]


@each("name", ["kto of pairs", "plackett_luce"])
def test_resumed_is_uninterrupted(name: str, tmp_path: Path) -> None:
    """Kills: answers to other prompts, or an order of rows, that a resumed run does not find again."""
    rows, fields = RUNS[name]
    saving = {"save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 2, "num_train_epochs": 1}
    whole = train(VRPOTrainer, vrpo_config(tmp_path, **fields, **saving), rows)[1]
    config = vrpo_config(tmp_path, **fields, **saving)
    rest = train(VRPOTrainer, config, rows, resume=str(tmp_path / "checkpoint-2"))[1]
    assert moved(rest) > 1e-4
    assert distance(whole[2:], rest) == 0


def test_tokens_that_are_balanced(tmp_path: Path) -> None:
    """What the model reads: each answer with its prompt. Kills: a prompt that counts once for a list; answers to other
    prompts that cost nothing."""
    for name, rows in (("kto", pairs(5)), ("kto", labelled(5)), ("plackett_luce", ranked(5)), ("sigmoid", ranked(5))):
        trainer = VRPOTrainer(tiny(), args=vrpo_config(tmp_path, loss_type=name), train_dataset=rows)
        sizes = trainer.token_counts(trainer.train_dataset)
        batches = [trainer.data_collator([example]) for example in trainer.train_dataset]
        assert sizes == [int(batch["attention"].sum()) for batch in batches]


def test_samples_of_every_kind(tmp_path: Path) -> None:
    for name, rows in (("kto", labelled(3)), ("plackett_luce", ranked(3))):
        config = vrpo_config(
            tmp_path / name, loss_type=name, sample_steps=1, num_samples=1, sample_max_new_tokens=4, max_steps=1
        )
        train(VRPOTrainer, config, rows, eval_dataset=rows)
        assert len((tmp_path / name / "samples.jsonl").read_text().splitlines()) == 2


@each("name", ["kto of pairs", "kto of labels", "scaled lists"])
def test_precomputed_reference_terms(name: str, tmp_path: Path) -> None:
    """Of every kind, answers to other prompts among them. Kills: terms of one row at another."""
    rows, fields = RUNS[name]
    live = train(VRPOTrainer, vrpo_config(tmp_path / "a", **fields, num_train_epochs=1), rows)[1]
    config = vrpo_config(tmp_path / "b", **fields, num_train_epochs=1, precompute_ref_log_probs=True)
    kept = train(VRPOTrainer, config, rows)[1]
    assert moved(live) > 1e-4
    assert distance(live, kept) < TOLERANCE


def surer_lists(lists: Rankings) -> Tensor:
    """A temperature of somebody's own, of lists: it knows nothing of pairs."""
    return 0.2 * (lists.order >= 0).sum(-1).double()


def test_a_temperature_of_lists(tmp_path: Path) -> None:
    """Rewards in the log are those of the loss. Kills: metrics that ask for the betas of pairs, where the loss asks for
    those of lists."""
    own = {"temperature": surer_lists, "beta": 0.2}
    logs = []
    for name, fields in (("own", own), ("constant", {"beta": 0.6})):
        three = ranked(4, lists=(3,))
        config = vrpo_config(tmp_path / name, loss_type="plackett_luce", **fields, num_train_epochs=2)
        assert moved(train(VRPOTrainer, config, three)[1]) > 1e-4
        logs.append(log_lines(tmp_path / name))
    for one, other in zip(*logs, strict=True):
        assert one == pytest.approx(other, rel=1e-9)
    assert any(line.get("rewards/margins") for line in logs[0])
