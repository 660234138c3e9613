"""Reward models in batches against one by one, without padding: a causal classifier and one that looks both ways."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from tests.loops import each
from vrpo.models.reward_model import RewardModel, _longest, load_reward_model
from vrpo.models.tiny import train_tokenizer
from vrpo.rewards.verdict import Answer, Judge

ANSWERS = [
    Answer("what is blue?", "the sky is blue, and so is the sea; all of it, far and wide"),
    Answer("hi", "x"),
    Answer([{"role": "system", "content": "be kind"}, {"role": "user", "content": "how are you?"}], "fine"),
    Answer("what is blue?", "the sky"),
    Answer("", "no prompt at all, but a somewhat longer answer"),
]
TOKENIZER = train_tokenizer(["the sky is blue", "what is blue? how are you? fine"], 300)
TINY = {"vocab_size": 320, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def llama(labels: int = 1, pad_id: int | None = TOKENIZER.pad_token_id) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(**TINY, num_labels=labels, pad_token_id=pad_id, max_position_embeddings=512)
        return LlamaForSequenceClassification(config).eval()


def bert(labels: int = 1) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(**TINY, num_labels=labels, pad_token_id=TOKENIZER.pad_token_id, initializer_range=0.5)
        return BertForSequenceClassification(config).eval()


def alone(module: Any, ids: list[int], label: int = 0, **more: Any) -> float:
    """The logit of one text, as anybody would compute it."""
    with torch.no_grad():
        return float(module(input_ids=torch.tensor([ids]), **more).logits[0, label])


def chat_ids(answer: Answer) -> list[int]:
    turns = [{"role": "user", "content": answer.prompt}] if isinstance(answer.prompt, str) else list(answer.prompt)
    turns = [*turns, {"role": "assistant", "content": answer.text}]
    return list(TOKENIZER.apply_chat_template(turns, tokenize=True, return_dict=False))


def text_of(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n\n".join(turn["content"] for turn in prompt)


@each("make", [llama, bert])
@each("batch_size", [1, 2, 8])
def test_batches_do_not_matter(make: Callable[..., Any], batch_size: int) -> None:
    """Kills: pads attended (the classifier that looks both ways sees them), rewards in the order of length, the last
    column read instead of the last token."""
    module = make()
    judge = RewardModel(module, TOKENIZER, "chat", batch_size=batch_size)
    assert isinstance(judge, Judge)
    found = [verdict.reward for verdict in judge(ANSWERS)]
    assert found == pytest.approx([alone(module, chat_ids(answer)) for answer in ANSWERS], abs=1e-5)
    assert len({round(value, 4) for value in found}) == len(ANSWERS)  # else nothing is seen here
    assert judge([]) == []


def test_without_a_padding_token() -> None:
    """One by one. Kills: a pad of the tokenizer's that the model takes for text."""
    module = llama(pad_id=None)
    found = [verdict.reward for verdict in RewardModel(module, TOKENIZER, "chat", batch_size=4)(ANSWERS)]
    assert found == pytest.approx([alone(module, chat_ids(answer)) for answer in ANSWERS], abs=1e-5)


def test_text() -> None:
    """The answer right behind the prompt."""
    module = llama()
    found = [verdict.reward for verdict in RewardModel(module, TOKENIZER, "text")(ANSWERS)]
    ids = [TOKENIZER(text_of(answer.prompt) + answer.text)["input_ids"] for answer in ANSWERS]
    assert found == pytest.approx([alone(module, row) for row in ids], abs=1e-5)


def test_two_segments() -> None:
    """Kills: the second segment's type not passed on, or padded with 1."""
    module, names = bert(), ["input_ids", "token_type_ids", "attention_mask"]
    typed = PreTrainedTokenizerFast(tokenizer_object=TOKENIZER.backend_tokenizer, model_input_names=names)
    judge = RewardModel(module, typed, "pair")
    found = [verdict.reward for verdict in judge(ANSWERS)]
    given = [typed(text_of(answer.prompt), answer.text, return_tensors="pt") for answer in ANSWERS]
    assert {0, 1} == set(given[0]["token_type_ids"][0].tolist())
    with torch.no_grad():
        expected = [float(module(**row).logits[0, 0]) for row in given]
    assert found == pytest.approx(expected, abs=1e-5)
    assert "token_type_ids" in judge.encode(ANSWERS[0])
    assert "token_type_ids" not in RewardModel(llama(), typed, "pair").encode(ANSWERS[0])


def test_labels() -> None:
    """Kills: always the first logit; a choice made for the user."""
    module = llama(labels=3)
    found = [verdict.reward for verdict in RewardModel(module, TOKENIZER, "chat", label=2)(ANSWERS)]
    assert found == pytest.approx([alone(module, chat_ids(answer), 2) for answer in ANSWERS], abs=1e-5)
    with pytest.raises(ValueError, match=r"3 labels, .*LABEL_1.*choose one"):
        RewardModel(module, TOKENIZER, "chat")
    with pytest.raises(ValueError, match="no label 3"):
        RewardModel(module, TOKENIZER, "chat", label=3)


def test_nothing_is_cut() -> None:
    """Kills: silent truncation, a too long answer that is judged anyway, its neighbours that are not."""
    module, lengths = llama(), sorted(len(chat_ids(answer)) for answer in ANSWERS)
    limit = lengths[-2]
    assert lengths[-1] > limit
    with pytest.raises(ValueError, match=f"have {lengths[-1]} tokens, and the reward model reads {limit}"):
        RewardModel(module, TOKENIZER, "chat", max_length=limit)(ANSWERS)
    found = RewardModel(module, TOKENIZER, "chat", max_length=limit, too_long="unjudged")(ANSWERS)
    assert [math.isnan(verdict.reward) for verdict in found] == [True, False, False, False, False]
    assert found[0].reason == f"longer than {limit} tokens"
    assert found[1].reward == pytest.approx(alone(module, chat_ids(ANSWERS[1])), abs=1e-5)


@each("value", [math.nan, math.inf])
def test_rewards_are_numbers(value: float) -> None:
    """Kills: the nan of a model that overflows, taken for an answer that was not judged."""
    module = llama()
    with torch.no_grad():
        module.score.weight.fill_(value)
    with pytest.raises(ValueError, match=r"gives answer \d the reward .*dtype"):
        RewardModel(module, TOKENIZER, "chat")(ANSWERS)


def test_positions_by_another_name() -> None:
    """GPT-2's configuration calls them n_positions. Kills: a crash in the middle of the answers, beyond its table."""
    config = GPT2Config(vocab_size=320, n_embd=16, n_layer=1, n_head=2, n_positions=48)
    assert _longest(GPT2ForSequenceClassification(config), TOKENIZER) == 48


def test_loading(tmp_path: Path) -> None:
    """Kills: the dtype ignored, the form and the length not found out, a head of random numbers."""
    module = llama()
    module.save_pretrained(tmp_path / "good")
    TOKENIZER.save_pretrained(tmp_path / "good")
    judge = load_reward_model(str(tmp_path / "good"), dtype=torch.float32)
    assert (judge.form, judge.max_length) == ("chat", 512)
    assert [verdict.reward for verdict in judge(ANSWERS)] == pytest.approx(
        [verdict.reward for verdict in RewardModel(module, TOKENIZER, "chat")(ANSWERS)], abs=1e-6
    )
    assert load_reward_model(str(tmp_path / "good"), dtype="bfloat16").module.dtype == torch.bfloat16
    LlamaForCausalLM(LlamaConfig(**TINY)).save_pretrained(tmp_path / "headless")
    TOKENIZER.save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match=r"missing keys: \['score\.weight'\]"):
        load_reward_model(str(tmp_path / "headless"))


def test_what_is_refused(tmp_path: Path) -> None:
    """Kills: pickled weights, code of the repository, a folder that is none."""
    module = llama()
    module.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    torch.save(module.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="in safetensors, without remote code"):
        load_reward_model(str(tmp_path))
    module.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    code = {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Own", "AutoModelForSequenceClassification": "own.Model"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config | code))
    (tmp_path / "own.py").write_text("raise SystemError('this code must not run')\n")
    with pytest.raises(ValueError, match="without remote code"):
        load_reward_model(str(tmp_path))
    with pytest.raises(ValueError, match="gives no reward model"):
        load_reward_model(str(tmp_path / "nowhere"))
    TOKENIZER.chat_template, kept = None, TOKENIZER.chat_template
    try:
        with pytest.raises(ValueError, match="no chat template"):
            RewardModel(module, TOKENIZER, "chat")
    finally:
        TOKENIZER.chat_template = kept
