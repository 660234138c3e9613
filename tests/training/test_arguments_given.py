"""What Python callers give a trainer that is no argument of it: refused by name, with what to do instead."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDatasetDict
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback, TrainingArguments

from tests.loops import each
from tests.training.runs import answers, lora, pairs, sft_config, tiny, vrpo_config
from vrpo.fields.not_offered import MOVED, NOT_OFFERED, PAGE
from vrpo.models.adapter import with_adapter
from vrpo.training.config import SFTConfig
from vrpo.training.preference import VRPOTrainer
from vrpo.training.preference_config import VRPOConfig
from vrpo.training.sft import SFTTrainer

ROWS = pairs(4)
FIELDS = {  # of TRL's configurations, and a word of what is said
    "activation_offloading": "gradient_checkpointing",
    "f_divergence_type": "reverse KL",
    "model_init_kwargs": "set dtype",
    "pad_token": "never read",
    "tools": "into the prompt",
    "betta": "did you mean beta",
}


@each("field", FIELDS)
def test_fields_that_do_not_exist(field: str, tmp_path: Path) -> None:
    """Kills: Python's TypeError, which says nothing of what to do."""
    with pytest.raises(ValueError, match=rf"VRPOConfig: .*'{field}'.*{FIELDS[field]}"):
        VRPOConfig(output_dir=str(tmp_path), **{field: 1})


def test_every_field_of_trl_is_known(tmp_path: Path) -> None:
    """Offered, or named with a remedy. Kills: a new field of TRL's that gets the closest name as an answer."""
    trl = pytest.importorskip("trl")
    for theirs, ours in ((trl.DPOConfig, VRPOConfig), (trl.KTOConfig, VRPOConfig), (trl.SFTConfig, SFTConfig)):
        missing = theirs.__dataclass_fields__.keys() - ours.__dataclass_fields__.keys()
        assert len(missing) > 5
        for name in sorted(missing):
            with pytest.raises(ValueError, match=f"TRL's field '{name}' is not offered"):
                ours(output_dir=str(tmp_path), **{name: None})


def test_the_page_about_trl_is_the_table(tmp_path: Path) -> None:
    """docs/coming_from_trl.md. Kills: a remedy that changed; a field that moved and is only unknown."""
    page = (Path(__file__).parents[2] / PAGE).read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \|$", page.split("## Fields that are not offered")[1], re.MULTILINE)
    assert {name: said[0].lower() + said[1:] for name, said in rows} == {
        name: said[0].lower() + said[1:] for name, said in NOT_OFFERED.items()
    }
    same = page.split("## Fields that are the same")[1].split("##")[0].split("The losses")[0]
    assert set(re.findall(r"`(\w+)`", same)) <= set(VRPOConfig.__dataclass_fields__)
    assert {"num_masks", "rounds"} <= MOVED.keys()
    for name, instead in MOVED.items():
        with pytest.raises(ValueError, match=re.escape(f"unknown field '{name}': write {instead}")):
            VRPOConfig(output_dir=str(tmp_path), **{name: None})


def test_the_routers_loss_may_be_none(tmp_path: Path) -> None:
    VRPOTrainer(tiny(), args=vrpo_config(tmp_path, router_aux_loss_coef=None), train_dataset=ROWS)


GIVEN: dict[str, Callable[[], Any]] = {  # rows of another kind; a word of what to do
    "from_generator": lambda: ROWS.to_iterable_dataset(),
    "one of its splits": lambda: DatasetDict(train=ROWS),
    "without streaming": lambda: IterableDatasetDict({"train": ROWS.to_iterable_dataset()}),
    r"from_list\(rows\)": lambda: list(ROWS),
    "load_rows": lambda: "rows.jsonl",
    "from_pandas": lambda: ROWS.to_pandas(),
    r"from_list\(list": lambda: (row for row in ROWS),
    "a datasets.Dataset": lambda: torch.utils.data.TensorDataset(torch.zeros(3)),
}


@each("remedy", GIVEN)
def test_rows_of_another_kind(remedy: str, tmp_path: Path) -> None:
    """Before a model is loaded, and in `evaluate`. Kills: an AttributeError; a stream read as if it were empty."""
    given = GIVEN[remedy]
    with pytest.raises(ValueError, match=f"train_dataset is a .*{remedy}"):
        VRPOTrainer("a/model", args=vrpo_config(tmp_path), train_dataset=given())
    with pytest.raises(ValueError, match=rf"eval_dataset\['a'\] is a .*{remedy}"):
        VRPOTrainer("a/model", args=vrpo_config(tmp_path), eval_dataset={"a": given()})
    with pytest.raises(ValueError, match="train_dataset is a "):
        SFTTrainer("a/model", args=sft_config(tmp_path), train_dataset=given())


OTHERS = {
    "compute_loss_func": len,
    "compute_metrics": len,
    "data_collator": len,
    "formatting_func": len,
    "model_init": len,
    "optimizer_cls_and_kwargs": (torch.optim.SGD, {}),
    "preprocess_logits_for_metrics": len,
    "quantization_config": {},
    "tokenizer": "gpt2",
    "max_length": 3,
    "nonsense": None,
    "processing_class": "gpt2",
    "peft_config": {"r": 2},
    "callbacks": TrainerCallback(),
    "args": TrainingArguments("out", use_cpu=True, report_to=[]),
}


@each("name", OTHERS)
def test_arguments_of_other_trainers(name: str, tmp_path: Path) -> None:
    """Kills: an argument that is taken and ignored; a message that names something else."""
    for trainer, config in ((VRPOTrainer, vrpo_config), (SFTTrainer, sft_config)):
        with pytest.raises(ValueError, match=f"^{name}[: ]"):
            trainer("a/model", **{"args": config(tmp_path), name: OTHERS[name]})


def test_arguments_stand_in_trls_order(tmp_path: Path) -> None:
    """Kills: the training rows taken for evaluation rows, the collator for the training rows."""
    trl = pytest.importorskip("trl")
    for theirs, ours in ((trl.DPOTrainer, VRPOTrainer), (trl.SFTTrainer, SFTTrainer)):
        names, known = (list(inspect.signature(each.__init__).parameters) for each in (theirs, ours))
        same = [name for name in known if name in names]
        assert same[:9] == names[: len(same)][:9]
    with pytest.raises(ValueError, match="data_collator is a Dataset: give train_dataset"):
        VRPOTrainer("a/model", None, vrpo_config(tmp_path), ROWS)


def test_models_of_another_kind(tmp_path: Path) -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1))
    for model, said in ((torch.nn.Linear(2, 2), "Linear"), (gpt2, "GPT2LMHeadModel"), (None, "NoneType")):
        with pytest.raises(ValueError, match=f"model is a {said}.*load"):
            VRPOTrainer(model, args=vrpo_config(tmp_path), train_dataset=ROWS)
    with pytest.raises(ValueError, match="ref_model is a Linear"):
        VRPOTrainer(tiny(), ref_model=torch.nn.Linear(2, 2), args=vrpo_config(tmp_path), train_dataset=ROWS)


def test_predictions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="predict: use evaluate"):
        SFTTrainer(tiny(), args=sft_config(tmp_path), train_dataset=answers(4)).predict(answers(4))


def test_merged_weights_can_be_trained(tmp_path: Path) -> None:
    """Kills: the remedy of a frozen adapter, which led to the same error again."""
    merged = with_adapter(tiny(), lora(), 0).merged()
    assert len(VRPOTrainer(merged, args=vrpo_config(tmp_path), train_dataset=ROWS).trained) > 4


def test_a_dict_of_splits_to_evaluate_on(tmp_path: Path) -> None:
    parts = DatasetDict(a=ROWS, b=ROWS.select([0, 1]))
    trainer = VRPOTrainer(tiny(), args=vrpo_config(tmp_path), eval_dataset=parts)
    assert {"eval_a_loss", "eval_b_loss"} <= trainer.evaluate().keys()
    assert isinstance(trainer.eval_dataset["a"], Dataset)


def test_rows_may_be_exchanged(tmp_path: Path) -> None:
    """Rows of text put in after the trainer was made are trained on. Kills: the rows of before; a KeyError."""
    trajectories = []
    for name, exchanged in (("a", True), ("b", False)):
        rows = Dataset.from_list([{"prompt": "b", "chosen": "blue", "rejected": "red"}] * 4)
        trainer = VRPOTrainer(
            tiny(), args=vrpo_config(tmp_path / name, max_steps=1), train_dataset=pairs(4) if exchanged else rows
        )
        trainer.train_dataset = rows
        trainer.train()
        trajectories.append(trainer.state.log_history[0]["loss"])
    assert trajectories[0] == trajectories[1]


def test_a_hub_that_cannot_be_reached_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From Python, too. Kills: the client's own exception."""

    def offline(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route")

    monkeypatch.setattr("transformers.Trainer.init_hf_repo", offline)
    args = vrpo_config(tmp_path, push_to_hub=True, hub_model_id="a/b")
    with pytest.raises(ValueError, match="push_to_hub: no route"):
        VRPOTrainer(tiny(), args=args, train_dataset=pairs(4))
