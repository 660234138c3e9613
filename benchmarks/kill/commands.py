"""The commands that are killed, with their inputs: tiny models and data made here, without a network."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import LlamaConfig, LlamaForSequenceClassification

from vrpo.models.tiny import from_config, train_tokenizer

LETTERS = "etaoinsr"
SHAPE = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32, "max_length": 128}
IN = "../../inputs"  # from the folder of a run
MODEL = ["--model_name_or_path", f"{IN}/first"]
URL = "{url}"  # of the endpoint, when it is there


@dataclass(frozen=True)
class Command:
    """`about`: what it does, for the page."""

    name: str
    about: str
    argv: tuple[str, ...]

    def at(self, url: str) -> list[str]:
        return [url if each == URL else each for each in self.argv]


def make_inputs(folder: Path) -> None:
    folder.mkdir(parents=True)
    tokenizer = train_tokenizer(["which letters does the answer have? these ones"], 300)
    for seed, name in enumerate(("first", "second")):
        from_config(tokenizer, **SHAPE, seed=seed).save_pretrained(folder / name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=320, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                             num_attention_heads=2, num_labels=1, pad_token_id=tokenizer.pad_token_id)  # fmt: skip
        LlamaForSequenceClassification(config).save_pretrained(folder / "reward")
    tokenizer.save_pretrained(folder / "reward")
    _lines(folder / "prompts.jsonl", (_prompt(number) for number in range(10)))
    _lines(folder / "samples.jsonl", (_sample(prompt, sample) for prompt in range(16) for sample in range(4)))
    _lines(
        folder / "pairs.jsonl", ({"prompt": f"{n}+{n}=", "chosen": f"{2 * n}", "rejected": f"{n}"} for n in range(16))
    )
    _lines(folder / "answers.jsonl", ({"prompt": f"{n}+{n}=", "completion": f"{2 * n}"} for n in range(16)))
    _task(folder)
    (folder / "rounds.yaml").write_text(yaml.safe_dump(ROUNDS))


def _lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _prompt(number: int) -> dict[str, Any]:
    """Instructions of which a model that knows nothing follows some: so its answers differ in their rewards."""
    arguments = [{"letter": letter, "let_relation": "at least", "let_frequency": 1} for letter in LETTERS]
    names = ["keywords:letter_frequency"] * len(LETTERS)
    return {"prompt": f"Which letters? {number}", "instruction_id_list": names, "kwargs": arguments}


def _sample(prompt: int, sample: int) -> dict[str, Any]:
    """What `vrpo generate` would have written: right, wrong and equal answers."""
    text = f"The answer is {prompt + (sample * (prompt % 3)) // 2}" + "." * (sample % 2)
    row = {"prompt_index": prompt, "sample_index": sample, "prompt": f"{prompt}+0=", "answer": text}
    settings = {"model_name_or_path": "a model", "chat": False}
    return {**row, "answer_ids": [1], "row": {"answer": str(prompt)}, "settings": settings}


def _task(folder: Path) -> None:
    """A task of lm-eval, from a file."""
    docs = [{"question": f"How many? {n}", "choices": [" one", " two quite others"], "label": n % 2} for n in range(8)]
    _lines(folder / "docs.jsonl", docs)
    task = {
        "task": "how_many",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{IN}/docs.jsonl"}, "cache_dir": "cache"},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{label}}",
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "tasks").mkdir()
    (folder / "tasks" / "how_many.yaml").write_text(yaml.safe_dump(task))


def _words(fields: dict[str, Any]) -> tuple[str, ...]:
    """Fields as arguments."""
    words: list[str] = []
    for name, value in fields.items():
        words += [f"--{name}", *([] if value is None else str(value).split(" "))]
    return tuple(words)


_TRAINING = {
    "output_dir": "out",
    "max_steps": 10,  # in the middle of the second epoch
    "per_device_train_batch_size": 2,
    "learning_rate": "1e-3",
    "logging_steps": 1,
    "use_cpu": "true",
    "report_to": "none",
}
_SAVED = {"save_steps": 2, "resume_from_checkpoint": "auto"}
_EVALUATED = {"eval_strategy": "steps", "eval_steps": 3, "eval_fraction": 0.25, "eval_on_start": "true"}
_SAMPLED = {"sample_steps": 4, "num_samples": 2, "sample_max_new_tokens": 4}
ROUNDS = {
    "model_name_or_path": f"{IN}/first",
    "rounds": 2,
    "generate": {"prompts": f"{IN}/prompts.jsonl", "num_samples": 4, "max_new_tokens": 12, "temperature": 1.0,
                 "batch_size": 2},
    "pairs": {"judge": "instructions", "unfinished": "keep", "prompts_per_part": 3},
    "evaluate": {"task": f"ifeval={IN}/prompts.jsonl", "max_new_tokens": 8, "part_size": 5, "num_resamples": 199},
    "output_dir": "out",
    "max_steps": 5,
    "save_steps": 2,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "use_cpu": True,
    "report_to": "none",
}  # fmt: skip
_PAIRS = {"samples": f"{IN}/samples.jsonl", "output": "out/pairs.jsonl", "report": "out/report", "unfinished": "keep"}

COMMANDS = (
    Command(
        "generate",
        "40 answers at temperature 1 in 5 parts, and a trace",
        ("generate", *MODEL, *_words({
            "prompts": f"{IN}/prompts.jsonl", "num_samples": 4, "max_new_tokens": 8, "temperature": 1, "batch_size": 1,
            "output": "out/answers.jsonl", "trace": "out/trace.html",
        })),
    ),
    Command(
        "pairs, verifier",
        "64 answers judged in 8 parts",
        ("pairs", *_words(_PAIRS | {"judge": "numeric", "prompts_per_part": 2})),
    ),
    Command(
        "pairs, reward model",
        "the same, by a model",
        ("pairs", *_words(_PAIRS | {"judge": "reward_model", "prompts_per_part": 2, "reward_model": f"{IN}/reward",
                                    "reward_form": "text", "rule": "all"})),
    ),
    Command(
        "pairs, endpoint",
        "the same, by an endpoint that is asked in both orders, four requests at a time",
        ("pairs", *_words(_PAIRS | {"judge": "endpoint", "prompts_per_part": 4, "endpoint_url": URL,
                                    "endpoint_model": "judge", "concurrency": 4, "retries": 0})),
    ),
    Command(
        "eval",
        "two models, a task of ours and one of lm-eval",
        ("eval", "--models", f"before={IN}/first", f"after={IN}/second", *_words({
            "task": f"ifeval={IN}/prompts.jsonl", "tasks": "how_many", "include_path": f"{IN}/tasks", "num_draws": 4,
            "max_new_tokens": 8, "part_size": 4, "num_resamples": 199, "output_dir": "out", "device": "cpu",
        })),
    ),
    Command(
        "sft",
        "a new model, 10 steps, checkpoints, evaluations, samples; `--resume_from_checkpoint auto`",
        ("sft", "--from_scratch", *_words(_TRAINING | _SAVED | _EVALUATED | _SAMPLED | {
            "dataset_name": f"{IN}/answers.jsonl", "vocab_size": 270, "hidden_size": 16, "num_layers": 1,
            "num_heads": 2, "intermediate_size": 32, "max_length": 64,
        })),
    ),
    Command(
        "train, resumed",
        "10 steps with precomputed reference terms, two checkpoints kept; "
        "`--resume_from_checkpoint auto`",
        ("train", *MODEL, *_words(_TRAINING | _SAVED | _EVALUATED | {
            "dataset_name": f"{IN}/pairs.jsonl", "save_total_limit": 2, "precompute_ref_log_probs": "true",
            "num_times": 4, "eval_num_times": 4,
        })),
    ),
    Command(
        "train, begun again",
        "10 steps of an adapter, samples, without `--resume_from_checkpoint`",
        ("train", *MODEL, *_words(_TRAINING | _EVALUATED | _SAMPLED | {
            "dataset_name": f"{IN}/pairs.jsonl", "save_strategy": "no", "use_peft": "true", "num_times": 4,
        })),
    ),
    Command(
        "train, two rounds",
        "generate, judge, pair, train, twice; then evaluate before and after",
        ("rounds", "--config", f"{IN}/rounds.yaml"),
    ),
    Command(
        "train, two rounds of adapters",
        "the same with LoRA, each adapter merged, and the reference refreshed",
        ("rounds", "--config", f"{IN}/rounds.yaml", "--use_peft", "true", "--refresh_reference", "true"),
    ),
    Command(
        "variance",
        "3 pairs under 3 designs",
        ("variance", *MODEL, *_words({
            "ref_model_name_or_path": f"{IN}/second", "dataset_name": f"{IN}/pairs.jsonl", "num_pairs": 3,
            "num_replicates": 3, "budgets": "1 2", "plan_draws": "2", "sketch_size": 64, "output_dir": "out",
        })),
    ),
    Command(
        "demo",
        "all of it, small; begins again",
        ("demo", *_words({"output_dir": "out", "pretrain_steps": 6, "pretrain_batch": 8, "collect": 40,
                          "evaluate": 20})),
    ),
)  # fmt: skip
