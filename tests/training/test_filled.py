"""Rows that only fill up a last batch: nothing is about them, on any process. test_distributed.py has whole runs."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Trainer

from tests.loops import each
from tests.objectives import of
from tests.training.runs import answers, labelled, pairs, ranked, settings, vrpo_config
from vrpo.data.collate import (
    LabelCollator,
    PreferenceCollator,
    RankingCollator,
    SFTCollator,
    counted,
    labels_of,
    pairs_of,
    rankings_of,
    rows_of,
    with_counted,
)
from vrpo.losses.pairwise import DPO
from vrpo.losses.setwise import KTO, SFT, PlackettLuce
from vrpo.losses.temperature import Constant
from vrpo.structures import Labels
from vrpo.training.preference import VRPOTrainer
from vrpo.training.preference_config import VRPOConfig
from vrpo.training.preference_data import PreferenceData


class Stub(VRPOTrainer):
    """A trainer without a model: only what it asks of accelerate."""

    def __init__(self, rank: int = 0, *, last: bool = True) -> None:
        self.args: Any = SimpleNamespace(world_size=2, process_index=rank, device=torch.device("cpu"))
        self.accelerator: Any = SimpleNamespace(gradient_state=SimpleNamespace(end_of_dataloader=last))
        self.preference_data: Any = SimpleNamespace(items_in=lambda batch: len(batch["chosen"]))


@each(
    ("examples", "batch", "count"),
    [(11, 1, (1, 0)), (11, 2, (2, 1)), (9, 4, (1, 0)), (12, 2, (2, 2)), (3, 4, (3, 0)), (13, 4, (4, 1))],
)
def test_what_counts_comes_first(examples: int, batch: int, count: tuple[int, int]) -> None:
    """On two processes. Kills: an example that counts twice, or on no process; a full last batch cut."""
    given = PreferenceCollator(0)(list(pairs(batch)))
    for rank, expected in enumerate(count):
        found = pairs_of(counted(Stub(rank)._filled(given, pairs(examples))))
        assert len(found.pairs.chosen) == expected
        earlier = counted(Stub(rank, last=False)._filled(given, pairs(examples)))
        assert len(pairs_of(earlier).pairs.chosen) == batch


KINDS: dict[str, Any] = {
    "pairs": (PreferenceCollator(0), pairs, DPO(1.0)),
    "ranked": (RankingCollator(0), ranked, DPO(1.0)),
    "plackett_luce": (RankingCollator(0), ranked, PlackettLuce(Constant(1.0))),
    "labels": (LabelCollator(0, False, None), labelled, KTO(Constant(1.0), baseline="batch_mean")),
    "labels of pairs": (LabelCollator(0, False, None), pairs, KTO(Constant(1.0), baseline="batch_mean")),
    "sft": (SFTCollator(0), answers, SFT()),
}


READ: dict[type, Any] = {
    LabelCollator: labels_of,
    PreferenceCollator: pairs_of,
    RankingCollator: rankings_of,
    SFTCollator: rows_of,
}


def others(sums: torch.Tensor) -> torch.Tensor:
    """Another process with two labels."""
    return sums + torch.tensor([-3.0, 2.0], dtype=sums.dtype)


@each("some", [0, 2, 3])
@each("kind", KINDS)
def test_no_loss_is_about_what_fills_up(kind: str, some: int) -> None:
    """It is that of the others alone, 0 if there are none, and still has a gradient for processes to add up. Kills: a
    mean over rows that do not count; the mean of nothing, which is no number."""
    collator, rows, objective = KINDS[kind]
    if isinstance(objective, KTO):
        objective = replace(objective, over_processes=others)
    examples = list(rows(5))
    whole = collator(examples)
    made = READ[type(collator)]
    structure = made(counted(with_counted(whole, 5, some)))
    terms = torch.linspace(-9, -1, len(whole["ids"]) * 2, dtype=torch.float64).view(-1, 2).requires_grad_()
    reference = torch.full((len(terms), 1, 2), -4.0, dtype=torch.float64)
    loss = objective(of(terms, reference), structure)
    (slope,) = torch.autograd.grad(loss, terms)
    if not some:
        assert loss == 0
        assert not slope.any()
        return
    alone = collator(examples[:some])
    place = [(e, s) for e, s in zip(whole["example_id"].tolist(), whole["side"].tolist(), strict=True)]
    mine = [place.index(each) for each in zip(alone["example_id"].tolist(), alone["side"].tolist(), strict=True)]
    expected = objective(of(terms[mine], reference[mine]), made(alone))
    torch.testing.assert_close(loss, expected)
    unasked = [row for row in range(len(terms)) if row not in mine]
    assert not slope[unasked].any()
    assert slope[mine].any()


def test_numbers_of_a_batch_stay_what_they_are() -> None:
    """Kills: rewards and weights in DeepSpeed's bfloat16 (7.03 becomes 7.03125)."""
    trainer: Any = Stub()
    trainer.is_deepspeed_enabled = True
    config = SimpleNamespace(dtype=lambda: torch.bfloat16)
    trainer.accelerator.state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(hf_ds_config=config))
    given = {"reward": torch.tensor([7.03, 7.01], dtype=torch.float64)}
    assert Trainer._prepare_input(trainer, given["reward"]).tolist() != given["reward"].tolist()
    assert torch.equal(trainer._prepare_inputs(given)["reward"], given["reward"])


# One label is compared with itself ------------------------------------------------------------------------------------

ALONE: list[tuple[dict[str, Any], int, int | None, int, str | None]] = [
    ({"per_device_train_batch_size": 1}, 4, None, 1, "train"),
    ({"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}, 8, None, 1, "train"),
    ({"per_device_train_batch_size": 1}, 4, None, 2, None),
    ({"per_device_train_batch_size": 1}, 5, None, 2, "train"),
    ({"per_device_train_batch_size": 2}, 5, None, 1, "train"),
    ({"per_device_train_batch_size": 2, "dataloader_drop_last": True}, 5, None, 1, None),
    ({"per_device_train_batch_size": 2}, 4, None, 1, None),
    ({"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}, 4, 3, 1, "eval"),
    ({"per_device_train_batch_size": 1, "loss_kwargs": {"baseline": "mismatched"}}, 4, None, 1, None),
]


@each(("fields", "count", "held_out", "processes", "refused"), ALONE, ids=str)
def test_one_label_is_no_batch(
    tmp_path: Any, fields: dict[str, Any], count: int, held_out: int | None, processes: int, refused: str | None
) -> None:
    """Kills: a loss of 0.5 for ever, of one label a micro-batch, or of the last one of an epoch."""
    given = {"loss_type": "kto", "loss_kwargs": {"baseline": "batch_mean"}, **fields}
    data = PreferenceData(VRPOConfig(**settings(tmp_path, **given)), "labels")
    rows = (labelled(count), None if held_out is None else {"one": labelled(held_out)})
    if refused is None:
        data.check_baseline(processes, *rows)
        return
    with pytest.raises(ValueError, match=f"a batch of {refused}_dataset has one label"):
        data.check_baseline(processes, *rows)


def test_a_pair_is_two_labels(tmp_path: Any) -> None:
    config = vrpo_config(
        tmp_path, loss_type="kto", loss_kwargs={"baseline": "batch_mean"}, per_device_train_batch_size=1
    )
    PreferenceData(config, "pairs").check_baseline(1, pairs(4), None)


def test_the_loss_itself_refuses_one_label() -> None:
    """Kills: a caller of the objective who is told nothing."""
    terms = torch.zeros(1, 2, dtype=torch.float64)
    labels = Labels(torch.arange(1), torch.tensor([True]), torch.arange(0), torch.tensor([3]))
    with pytest.raises(ValueError, match="batch_mean needs two labels"):
        KTO(Constant(1.0), baseline="batch_mean")(of(terms, terms[:, None]), labels)
