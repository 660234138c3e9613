"""The public preference sets, where VRPO_DATA names a folder that holds them."""

import os
from pathlib import Path

import pytest

from vrpo.data import PreferenceCollator, load_rows, split_rows, tokenize_preferences, tokenize_sft

pytestmark = pytest.mark.skipif("VRPO_DATA" not in os.environ, reason="VRPO_DATA names no folder of public data")


@pytest.fixture
def folder() -> Path:
    return Path(os.environ["VRPO_DATA"])


def test_ultrafeedback(folder, tokenizer):
    rows = load_rows(str(folder / "ultrafeedback"), split="train")
    assert len(rows) == 1000
    with pytest.warns(UserWarning, match="dropped 4: equal answers") as caught:
        examples, report = tokenize_preferences(rows, tokenizer, max_length=None, strings_as_chat=True)
    assert len(caught) == 1
    assert (report.kept, len(examples)) == (994, 994)
    account = {reason: drop.count for reason, drop in report.dropped.items()}
    assert account == {"equal answers": 4, "empty answer": 2}
    assert max(examples["example_id"]) == 999
    assert all(ids[-1] == tokenizer.convert_tokens_to_ids("<|eot_id|>") for ids in examples["chosen_ids"])
    assert "<|start_header_id|>" not in tokenizer.decode(examples[0]["chosen_ids"])
    PreferenceCollator(pad_id=tokenizer.pad_token_id)([examples[row] for row in range(8)])


def test_helpful_base(folder, tokenizer):
    rows = load_rows(str(folder / "hh_rlhf" / "helpful_base.jsonl.gz"))
    with pytest.warns(UserWarning, match="dropped 2: equal answers"):
        examples, report = tokenize_preferences(rows, tokenizer, max_length=None)
    account = {reason: drop.count for reason, drop in report.dropped.items()}
    assert account["equal answers"] == 2
    assert report.kept + sum(account.values()) == len(rows) == 2354
    prompts = tokenizer.batch_decode(examples["prompt_ids"][:])
    assert all(prompt.startswith("\n\nHuman:") and prompt.endswith("\n\nAssistant:") for prompt in prompts)
    assert report.shortened_prompts == 435  # which TRL's rule would have swallow words of the answers
    train, held_out = split_rows(rows, 0.1, seed=0)
    assert abs(len(held_out) - 235) <= 1
    assert len(train) + len(held_out) == 2354


def test_other_columns(folder, tokenizer):
    rows = load_rows(str(folder / "gsm8k" / "train.jsonl.gz"), columns=("question", "answer"))
    assert len(rows) == 7473
    renamed = rows.rename_columns({"question": "prompt", "answer": "completion"}).select(range(20))
    assert tokenize_sft(renamed, tokenizer)[1].kept == 20
