"""Which rows `vrpo sft` and `vrpo train` read: for training, for evaluation, under which names."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset

from tests.loops import each
from vrpo.cli import main
from vrpo.training import run as commands
from vrpo.training.arguments import DataArguments
from vrpo.training.preference_config import VRPOConfig
from vrpo.training.run import answers_of, datasets, run, texts

QUIET = ["--report_to", "none", "--disable_tqdm", "true", "--use_cpu", "true", "--max_steps", "1", "--output_dir"]
TINY = ["--vocab_size", "300", "--hidden_size", "16", "--num_layers", "1", "--num_heads", "2"]


def said(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def written(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pairs(start: int, count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{n}?", "chosen": str(n), "rejected": "no"} for n in range(start, start + count)]


@pytest.fixture
def chosen(tmp_path: Path) -> Callable[..., tuple[Dataset, Dataset | None]]:
    """The rows for a training file, more data arguments and an evaluation strategy."""
    path = written(tmp_path / "pairs.jsonl", *pairs(0, 6))

    def of(strategy: str = "steps", **data: Any) -> tuple[Dataset, Dataset | None]:
        config = VRPOConfig(output_dir=str(tmp_path / "out"), eval_strategy=strategy, eval_steps=1, use_cpu=True)
        return datasets(DataArguments(**{"dataset_name": path, **data}), config)

    return of


def test_evaluation_rows_from_one_file(chosen: Callable[..., Any], tmp_path: Path) -> None:
    """Kills: the split "test" asked of a file or of a saved dataset."""
    held_out = written(tmp_path / "heldout.jsonl", *pairs(10, 2))
    assert chosen(eval_dataset_name=held_out)[1]["prompt"][:] == ["10?", "11?"]
    Dataset.from_list(pairs(20, 2)).save_to_disk(tmp_path / "saved")
    assert chosen(eval_dataset_name=str(tmp_path / "saved"))[1]["prompt"][:] == ["20?", "21?"]
    with pytest.raises(ValueError, match="no split 'dev'"):
        chosen(eval_dataset_name=held_out, dataset_test_split="dev")


def test_one_table_cannot_be_both(chosen: Callable[..., Any], tmp_path: Path) -> None:
    """Kills: evaluation on the training rows, unasked, where a source has no splits."""
    with pytest.raises(ValueError, match="is one table"):
        chosen()
    Dataset.from_list(pairs(0, 2)).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="is one table"):
        chosen(dataset_name=str(tmp_path / "saved"))


@pytest.mark.parametrize(("other", "name"), [(None, "main"), ("hub/other", None), ("hub/pairs", "main")])
def test_configuration_of_the_training_set(
    other: str | None, name: str | None, chosen: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kills: the training set's configuration asked of another evaluation set."""
    calls = []
    monkeypatch.setattr(commands, "load_rows", lambda source, **kwargs: calls.append((source, kwargs)))
    chosen(dataset_name="hub/pairs", dataset_config="main", eval_dataset_name=other)
    assert [(source, kwargs["name"]) for source, kwargs in calls] == [
        ("hub/pairs", "main"),
        (other or "hub/pairs", name),
    ]


@pytest.mark.parametrize("data", [{"eval_fraction": 0.5}, {"eval_dataset_name": "heldout.jsonl"}])
def test_an_evaluation_that_would_not_take_place(chosen: Callable[..., Any], data: dict[str, Any]) -> None:
    """Kills: held-out rows that are never looked at; a source of two ignored."""
    with pytest.raises(ValueError, match=f"{next(iter(data))} is given, but eval_strategy is 'no': set eval_strategy"):
        chosen("no", **data)
    with pytest.raises(ValueError, match="exclude each other"):
        chosen(eval_fraction=0.5, eval_dataset_name="heldout.jsonl")


def test_no_evaluation(chosen: Callable[..., Any]) -> None:
    rows, eval_rows = chosen("no")
    assert len(rows) == 6
    assert eval_rows is None
    assert [len(part) for part in chosen(eval_fraction=0.5)] == [3, 3]


TRANSCRIPT = said("hi", "hello")


@each(
    ("row", "expected"),
    [
        ({"chosen": TRANSCRIPT}, {"messages": TRANSCRIPT}),
        ({"prompt": "hi", "chosen": TRANSCRIPT, "messages": said("x", "y")}, {"messages": TRANSCRIPT}),
        (
            {"prompt": TRANSCRIPT[:1], "chosen": TRANSCRIPT[1:]},
            {"prompt": TRANSCRIPT[:1], "completion": TRANSCRIPT[1:]},
        ),
        ({"prompt": "hi", "chosen": "a", "completion": "b", "text": "c"}, {"prompt": "hi", "completion": "a"}),
    ],
)
def test_answers_of(row: dict[str, Any], expected: dict[str, Any]) -> None:
    """Kills: transcripts as completions of a prompt that they repeat; a clash with, or a turn to, another column."""
    assert list(answers_of(Dataset.from_list([row]), "chosen")) == [expected]


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"chosen": TRANSCRIPT, "rejected": said("hi", "go")}, "chosen"),
        ({"prompt": "hi", "chosen": TRANSCRIPT, "rejected": said("hi", "go")}, "chosen"),
        ({"prompt": "hi", "reply": "hello"}, "reply"),
    ],
)
def test_sft_on_a_column(row: dict[str, Any], column: str, tmp_path: Path) -> None:
    """Kills: a column outside the usual fields dropped at reading, then missed; message pairs refused."""
    path = written(tmp_path / "train.jsonl", row, {**row, column: said("hi", "hey") if column == "chosen" else "hey"})
    given = ["--dataset_name", path, "--completion_column", column, "--intermediate_size", "16"]
    assert main(["sft", "--from_scratch", *TINY, *given, *QUIET, str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_texts(tmp_path: Path) -> None:
    """Kills: a tokenizer trained on our own messages about unusable rows, or on where rows come from."""
    columns = {"text": ["a", None], "origin": ["f:1", "f:2"], "example_id": [0, 1], "unusable": [None, "broken"]}
    assert list(texts(Dataset.from_dict(columns))) == ["a"]


def test_the_reference_has_the_attention_of_the_policy(
    chosen: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kills: a policy and a reference whose kernels round differently."""
    calls = []
    monkeypatch.setattr(commands, "load", lambda name, **kwargs: calls.append((name, kwargs["attn_implementation"])))
    monkeypatch.setattr(commands, "VRPOTrainer", lambda *args, **kwargs: None)
    monkeypatch.setattr(commands, "run", lambda trainer: None)
    models = ["--model_name_or_path", "p", "--ref_model_name_or_path", "r", "--attn_implementation", "eager"]
    assert main(["train", *models, "--dataset_name", str(tmp_path / "pairs.jsonl"), *QUIET, str(tmp_path)]) == 0
    assert sorted(calls) == [("p", "eager"), ("r", "eager")]


@each("sharded", [True, False])
def test_a_whole_model_is_saved(sharded: bool) -> None:
    """Under FSDP the state is asked for in full, before the model is saved. Kills: FSDP2's default, shards."""
    calls: list[Any] = []
    plugin = SimpleNamespace(set_state_dict_type=lambda kind: calls.append(kind))
    steps = ("save_state", "create_model_card", "save_model")
    trainer: Any = SimpleNamespace(
        args=SimpleNamespace(resume_from_checkpoint=None, folder="somewhere"),
        is_world_process_zero=lambda: True,
        state=SimpleNamespace(global_step=1, max_steps=1),
        train=lambda resume_from_checkpoint: calls.append("train"),
        is_fsdp_enabled=sharded,
        accelerator=SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)),
        **{name: lambda name=name: calls.append(name) for name in steps},
    )
    run(trainer)
    full = ["FULL_STATE_DICT"] if sharded else []
    assert calls == ["train", "save_state", "create_model_card", *full, "save_model"]
