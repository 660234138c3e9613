"""The door: rows of token ids are held to what is asked of text, and both to what the model can read."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, List, Value

from tests.loops import each
from tests.training.runs import answers, labelled, pairs, ranked, sft_config, tiny, vrpo_config, with_numbers
from vrpo.training.preference import VRPOTrainer
from vrpo.training.sft import SFTTrainer

MASK = tiny().mask_id


def changed(rows: Dataset, row: int = 1, **columns: Any) -> Dataset:
    """Rows of which one has other values."""
    table = {**{name: rows[name][:] for name in rows.column_names}, **{}}
    for name, value in columns.items():
        table[name] = [value if at == row else old for at, old in enumerate(table[name])]
    return Dataset.from_dict(table)


def weighed(weight: float) -> Dataset:
    return with_numbers(pairs(4), weight=lambda row: weight if row == 1 else 1.0)


SHARED = {f"{side}_ids": [11, 12, 13, 14, last] for side, last in (("chosen", 15), ("rejected", 16))}
DROPPED: dict[str, tuple[Dataset, str]] = {
    "mask in an answer": (changed(pairs(4), chosen_ids=[11, MASK]), "mask token"),
    "mask in a prompt": (changed(pairs(4), prompt_ids=[MASK]), "mask token"),
    "mask in a list": (changed(ranked(4), completions_ids=[[11], [MASK], [12], [13]]), "mask token"),
    "mask in a label": (changed(labelled(4), completion_ids=[MASK]), "mask token"),
    "equal": (changed(pairs(4), chosen_ids=[11, 12], rejected_ids=[11, 12]), "equal answers"),
    "equal in a list": (changed(ranked(4), completions_ids=[[11], [12], [11], [13]]), "equal answers"),
    "empty": (changed(pairs(4), rejected_ids=[]), "empty answer"),
    "empty in a list": (changed(ranked(4), completions_ids=[[11], [], [12], [13]]), "empty answer"),
    "one answer": (changed(ranked(4), completions_ids=[[11]], places=[0]), "fewer than two answers"),
    "places": (changed(ranked(4), places=[0, 1]), "other number of places"),
    "null": (changed(pairs(4), prompt_ids=None), "missing field"),
    "repeated": (changed(pairs(4), prompt_ids=[11, 12, 13, 14], **SHARED), "repeated prompt"),
    "repeated in a list": (
        changed(ranked(4), prompt_ids=[11, 12, 13, 14], completions_ids=[[11, 12, 13, 14, last] for last in range(4)]),
        "repeated prompt",
    ),
    "null inside": (changed(pairs(4), chosen_ids=[11, None]), "missing number"),
    "no label": (changed(labelled(4), label=None), "missing field"),
    "tied": (changed(ranked(4, rewards=True), rewards=[1.0] * 4), "all answers tied"),
    "negative": (weighed(-1.0), "negative weight"),
    "not finite": (weighed(float("inf")), "number not finite"),
    "NaN": (weighed(float("nan")), "number not finite"),
}


@each("case", DROPPED)
def test_what_text_is_asked_for_is_asked_of_ids(case: str, tmp_path: Path) -> None:
    """Dropped and counted, or raised on request. Kills: each check left out; another row dropped."""
    rows, reason = DROPPED[case]
    loss = {"loss_type": "kto", "loss_kwargs": {"baseline": "batch_mean"}} if "label" in rows.column_names else {}
    with pytest.warns(UserWarning, match=rf"kept 3 of 4 rows; dropped 1: {reason} \(first: row 1\)"):
        trainer = VRPOTrainer(tiny(), args=vrpo_config(tmp_path, **loss), train_dataset=rows)
    assert trainer.train_dataset["example_id"][:] == [0, 2, 3]
    with pytest.raises(ValueError, match=f"^row 1: {reason}"):
        VRPOTrainer(tiny(), args=vrpo_config(tmp_path, on_bad_rows="error", **loss), train_dataset=rows)


@pytest.mark.parametrize("rows", [pairs(4), ranked(4), labelled(4)])
def test_tables_of_ids_without_a_prompt(rows: Dataset, tmp_path: Path) -> None:
    """As of text. Kills: answers trained without a question. Texts to learn have none."""
    empty = Dataset.from_dict({**{name: rows[name][:] for name in rows.column_names}, "prompt_ids": [[]] * 4})
    loss = {"loss_type": "kto", "loss_kwargs": {"baseline": "batch_mean"}} if "label" in rows.column_names else {}
    with pytest.raises(ValueError, match="prompt: it is empty in all 4 usable rows"):
        VRPOTrainer(tiny(), args=vrpo_config(tmp_path, **loss), train_dataset=empty)
    SFTTrainer(
        tiny(), args=sft_config(tmp_path), train_dataset=Dataset.from_dict({"prompt_ids": [[]], "response_ids": [[11]]})
    )


def test_answers_that_begin_with_a_short_prompt_of_ids(tmp_path: Path) -> None:
    short = changed(pairs(4), prompt_ids=[11], **SHARED)
    with pytest.warns(UserWarning, match="kept 4 of 4 rows; in 1 rows the answers begin with the short prompt"):
        VRPOTrainer(tiny(), args=vrpo_config(tmp_path), train_dataset=short)


def floats() -> Dataset:
    kinds = Features({**pairs(1).features, "chosen_ids": List(Value("float64"))})
    return Dataset.from_dict({name: pairs(4)[name][:] for name in kinds}, features=kinds)


REFUSED: dict[str, tuple[Dataset, str]] = {
    "beyond": (
        changed(pairs(4), rejected_ids=[11, 100_000]),
        "row 1: rejected_ids has the token id 100000",
    ),
    "negative id": (changed(pairs(4), prompt_ids=[11, -1]), "row 1: prompt_ids has the token id -1"),
    "beyond in a list": (changed(ranked(4), completions_ids=[[11], [12], [99_999], [13]]), "token id 99999"),
    "floats": (floats(), "column 'chosen_ids' holds .*double.*: cast it"),
    "label": (labelled(4).remove_columns("label").add_column("label", ["good"] * 4), "column 'label' holds string"),
    "weight": (pairs(4).add_column("weight", ["1"] * 4), "column 'weight' holds string"),
    "one column": (pairs(4).remove_columns("rejected_ids"), "need the columns .*'rejected_ids'.* missing"),
    "one reward": (with_numbers(pairs(4), chosen_reward=float), "rewards go with both answers or none"),
    "twice": (changed(pairs(4), example_id=0), "'example_id' repeats a number"),
    "too long": (
        changed(pairs(4), prompt_ids=[11] * 60),
        "example 1 has 6[0-9] tokens .* max_length is 50",
    ),
}


@each("case", REFUSED)
def test_what_no_tokenizer_writes_is_refused(case: str, tmp_path: Path) -> None:
    """Kills: an id that reads another row's embedding, or ends in an IndexError at some step."""
    rows, said = REFUSED[case]
    loss = {"loss_type": "kto", "loss_kwargs": {"baseline": "batch_mean"}} if "label" in rows.column_names else {}
    with pytest.raises(ValueError, match=said):
        VRPOTrainer(tiny(), args=vrpo_config(tmp_path, max_length=50, **loss), train_dataset=rows)
    if case == "beyond":
        with pytest.raises(ValueError, match=said):
            VRPOTrainer(tiny(), args=vrpo_config(tmp_path), eval_dataset={"a": rows})


def test_what_ids_carry_beside_is_named(tmp_path: Path) -> None:
    """Kills: a column of token ids that nothing reads, dropped in silence."""
    rows = with_numbers(pairs(4), weight=float).add_column("system", ["Be brief"] * 4)
    with pytest.warns(UserWarning, match=r"not read: system \(4 rows\)$") as caught:
        VRPOTrainer(tiny(), args=vrpo_config(tmp_path), train_dataset=rows)
    assert len([each for each in caught if "not read" in str(each.message)]) == 1


def test_an_evaluation_set_that_is_put_in_later(tmp_path: Path) -> None:
    """Kills: rows of text, or ids that nobody looked at, in `trainer.eval_dataset`."""
    trainer = VRPOTrainer(tiny(), args=vrpo_config(tmp_path), train_dataset=pairs(2), eval_dataset=pairs(2))
    trainer.eval_dataset = pairs(2).remove_columns("example_id")
    assert trainer.evaluate()["eval_loss"] > 0
    trainer.eval_dataset = changed(pairs(4), chosen_ids=[100_000])
    with pytest.raises(ValueError, match="token id 100000"):
        trainer.evaluate()


def test_longer_than_the_model(tmp_path: Path) -> None:
    """Of text, too, where max_length allows more than the model was made for."""
    rows = Dataset.from_dict({"prompt": ["x" * 1100], "completion": ["y"]})
    with pytest.raises(ValueError, match="json: max_position_embeddings is 1024"):
        SFTTrainer(tiny(), args=sft_config(tmp_path, max_length=4000), train_dataset=rows)


def test_supervised_ids(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="dropped 1: mask token"):
        trainer = SFTTrainer(tiny(), args=sft_config(tmp_path), train_dataset=changed(answers(4), response_ids=[MASK]))
    assert len(trainer.train_dataset) == 3


def test_ids_without_names_are_named_by_their_place(tmp_path: Path) -> None:
    """As rows of text are; answers of a list by where they stand."""
    rows = ranked(4).remove_columns(["example_id", "places"])
    trainer = VRPOTrainer(tiny(), args=vrpo_config(tmp_path), train_dataset=rows)
    assert trainer.train_dataset["example_id"][:] == [0, 1, 2, 3]
    assert trainer.train_dataset["places"][:] == ranked(4)["places"][:]
