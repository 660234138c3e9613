"""The demo from end to end. Reads top to bottom: imitate, sample, judge, align, compare."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from vrpo.decoding.decode import generate
from vrpo.demo.report import paired_difference, results_table, wilson
from vrpo.demo.task import LENGTH, PARTS, problems, right_bases, student_answers
from vrpo.diagnostics.plots import demo_picture
from vrpo.models.hf import HFDenoiser
from vrpo.models.load import load
from vrpo.models.tiny import from_config, train_tokenizer
from vrpo.training.base import DiffusionTrainer
from vrpo.training.config import SFTConfig
from vrpo.training.preference import VRPOTrainer
from vrpo.training.preference_config import VRPOConfig
from vrpo.training.sft import SFTTrainer

_MOST = 1_000_000  # steps, rows and draws that a demonstration may be asked for


@dataclass(frozen=True)
class Settings:
    """Everything the demo depends on; the defaults come from benchmarks/demo_grid."""

    pretrain_steps: int = field(default=150, metadata={"help": "Steps of imitating students' answers."})
    pretrain_batch: int = field(default=128, metadata={"help": "Answers in such a step."})
    collect: int = field(default=3000, metadata={"help": "Problems whose sampled answers become pairs."})
    evaluate: int = field(default=1000, metadata={"help": "Held-out problems that the models are compared on."})
    num_times: int = field(default=4, metadata={"help": "Masking levels drawn per answer."})
    batch: int = field(default=8, metadata={"help": "Pairs in a step, and answers in a step of the control."})
    beta: float = field(default=0.3, metadata={"help": "Inverse temperature of the loss."})
    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate of alignment."})
    sft_learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of the control."})
    sft_coef: float = field(default=0.0, metadata={"help": "Weight of imitation beside the preference loss."})
    seed: int = field(default=0, metadata={"help": "Seed of all random numbers."})

    def __post_init__(self) -> None:
        for name in ("pretrain_steps", "pretrain_batch", "collect", "evaluate", "num_times", "batch"):
            if not 1 <= getattr(self, name) <= _MOST:
                raise ValueError(f"--{name} must be from 1 to {_MOST:,}, not {getattr(self, name):,}")
        needed = {"collect": self.collect, "test": self.evaluate, "students": self.pretrain_steps * self.pretrain_batch}
        names = {"collect": "--collect", "test": "--evaluate", "students": "--pretrain_steps times --pretrain_batch"}
        for part, count in needed.items():
            if count > PARTS[part]:
                raise ValueError(f"{names[part]} must be at most {PARTS[part]:,} problems, not {count:,}")
        for name in ("beta", "learning_rate", "sft_learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"--{name} must be positive, not {getattr(self, name)}")
        for name in ("sft_coef", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} must not be negative, not {getattr(self, name)}")


@dataclass
class DemoArguments:
    """Where the demo goes."""

    output_dir: str = field(default="demo", metadata={"help": "Where checkpoints, logs, table and picture go."})


def demo(place: DemoArguments, settings: Settings) -> None:
    """Train a small model on careless students' work, align it with VRPO on judged pairs of its answers, compare."""
    run(settings, Path(place.output_dir))


def run(settings: Settings, folder: Path) -> dict[str, Any]:
    """All stages; returns the results that it also writes to folder/results.json."""
    start = time.time()
    folder.mkdir(parents=True, exist_ok=True)
    say("1/5  a LLaDA-layout model learns to write complementary DNA strands from careless students")
    base = imitate_students(settings, folder / "base")
    say("2/5  it answers new problems twice; a verifier says which answer has more right bases")
    pairs = collect_pairs(base, settings, folder / "pairs.jsonl")
    if not pairs:
        raise ValueError(f"--collect {settings.collect}: no two answers of a problem differ in right bases: raise it")
    say(
        f"     {len(pairs)} pairs; right bases: {mean_right(pairs, 'chosen'):.0%} in preferred answers, "
        f"{mean_right(pairs, 'rejected'):.0%} in the others; {share_right(pairs):.0%} of the preferred are all right"
    )
    say("3/5  VRPO on these pairs")
    passes = align(folder / "base", pairs, settings, folder / "vrpo")
    say("4/5  control: SFT on the preferred answers, for as many forward passes")
    control_passes = imitate_chosen(folder / "base", pairs, settings, folder / "sft_control")
    say("5/5  held-out problems, answered greedily and sampled")
    models = {name: load(folder / name, dtype=torch.float32) for name in ("base", "sft_control", "vrpo")}
    right = {name: answer_test(model, settings, folder / f"answers_{name}.jsonl") for name, model in models.items()}
    results = {
        "settings": asdict(settings),
        "pairs": len(pairs),
        "right_bases": {side: mean_right(pairs, side) for side in ("chosen", "rejected")},
        "chosen_all_right": share_right(pairs),
        "forward_passes": {"sft_control": control_passes, "vrpo": passes},
        "sampled_right_bases": {name: sampled_test(model, settings) for name, model in models.items()},
        "accuracy": {name: wilson(values) for name, values in right.items()},
        "vrpo_minus_base": paired_difference(right["vrpo"], right["base"]),
        "vrpo_minus_sft_control": paired_difference(right["vrpo"], right["sft_control"]),
        "seconds": round(time.time() - start, 1),
    }
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    table = results_table(results)
    (folder / "results.md").write_text(table)
    demo_picture(folder, results)
    print("\n" + table)
    say(f"checkpoints, logs, table and picture are in {folder}/ (look at {folder}/demo.png)")
    return results


def say(text: str) -> None:
    print(f"\n== {text}", flush=True)


def trainer_settings(settings: Settings, folder: Path, **fields: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "seed": settings.seed,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 10.0,
        "weight_decay": 0.01,
        "adam_beta2": 0.95,
        "save_strategy": "no",
        "report_to": "none",
        **fields,
    }


def imitate_students(settings: Settings, folder: Path) -> HFDenoiser:
    """A new model and tokenizer, trained on students' answers."""
    denoiser = from_config(
        train_tokenizer(["ACGT="], 262),
        hidden_size=128,
        num_layers=2,
        num_heads=4,
        intermediate_size=352,
        max_length=64,
        seed=settings.seed,
    )
    prompts = problems("students", settings.pretrain_steps * settings.pretrain_batch)
    answers = student_answers(prompts, settings.seed)
    rows = [{"prompt": text, "completion": answer} for text, answer in zip(prompts, answers, strict=True)]
    config = SFTConfig(
        **trainer_settings(
            settings,
            folder,
            max_steps=settings.pretrain_steps,
            per_device_train_batch_size=settings.pretrain_batch,
            learning_rate=2e-3,
            logging_steps=25.0,
        )
    )
    finish(SFTTrainer(denoiser, args=config, train_dataset=Dataset.from_list(rows)))
    return load(folder, dtype=torch.float32)


def answers_of(denoiser: HFDenoiser, prompts: list[str], temperature: float, seed: int) -> list[str]:
    generations = generate(
        denoiser,
        prompts,
        max_new_tokens=LENGTH + 1,
        temperature=temperature,
        remasking="random" if temperature else "low_confidence",  # keeping the confident ones would favour the mode
        generator=torch.Generator().manual_seed(seed) if temperature else None,
        batch_size=500,
    )
    return [generation.text or "" for generation in generations]


def collect_pairs(denoiser: HFDenoiser, settings: Settings, path: Path) -> list[dict[str, Any]]:
    """Two sampled answers per problem; the one with more right bases is chosen, ties are dropped."""
    prompts = problems("collect", settings.collect)
    samples = [answers_of(denoiser, prompts, 1.0, settings.seed + draw) for draw in (1, 2)]
    pairs = []
    for text, *answers in zip(prompts, *samples, strict=True):
        worse, better = sorted(answers, key=lambda answer: right_bases(text, answer))
        marks = [right_bases(text, answer) for answer in (better, worse)]
        if marks[0] > marks[1]:
            fields = {"prompt": text, "chosen": better, "rejected": worse}
            pairs.append({**fields, "chosen_right_bases": marks[0], "rejected_right_bases": marks[1]})
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return pairs


def mean_right(pairs: list[dict[str, Any]], side: str) -> float:
    """Mean share of right bases in the chosen or rejected answers."""
    return sum(pair[f"{side}_right_bases"] for pair in pairs) / len(pairs) / LENGTH


def share_right(pairs: list[dict[str, Any]]) -> float:
    return sum(pair["chosen_right_bases"] == LENGTH for pair in pairs) / len(pairs)


def align(base: Path, pairs: list[dict[str, Any]], settings: Settings, folder: Path) -> int:
    """One epoch of VRPO; returns its forward passes: per draw one of the reference and two of the policy."""
    config = VRPOConfig(
        **trainer_settings(
            settings,
            folder,
            num_train_epochs=1.0,
            per_device_train_batch_size=settings.batch,
            learning_rate=settings.learning_rate,
            beta=settings.beta,
            sft_coef=settings.sft_coef,
            plan="fixed_count",  # the paper's: what benchmarks/demo_grid chose the rest for
            num_times=settings.num_times,
            max_tokens_per_forward=8192,
            warn_displacement=False,  # the preferred answers are mostly wrong: their bound has to fall
            logging_steps=10.0,
        )
    )
    finish(VRPOTrainer(load(base, dtype=torch.float32), args=config, train_dataset=Dataset.from_list(pairs)))
    return len(pairs) * 2 * settings.num_times * 3


def imitate_chosen(base: Path, pairs: list[dict[str, Any]], settings: Settings, folder: Path) -> int:
    """SFT on the chosen answers with as many forward passes as `align`, in 6 epochs; returns them."""
    epochs = 2 * 3
    config = SFTConfig(
        **trainer_settings(
            settings,
            folder,
            num_train_epochs=float(epochs),
            per_device_train_batch_size=settings.batch,
            learning_rate=settings.sft_learning_rate,
            num_times=settings.num_times,
            logging_steps=100.0,
        )
    )
    rows = Dataset.from_list([{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs])
    finish(SFTTrainer(load(base, dtype=torch.float32), args=config, train_dataset=rows))
    return len(pairs) * settings.num_times * epochs


def finish(trainer: DiffusionTrainer) -> None:
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()


def answer_test(denoiser: HFDenoiser, settings: Settings, path: Path, part: str = "test") -> list[bool]:
    """Whether each held-out problem is answered exactly right, greedily."""
    prompts = problems(part, settings.evaluate)
    answers = answers_of(denoiser, prompts, 0.0, settings.seed)
    right = [right_bases(text, answer) == LENGTH for text, answer in zip(prompts, answers, strict=True)]
    lines = [
        json.dumps({"prompt": text, "answer": answer, "right": correct})
        for text, answer, correct in zip(prompts, answers, right, strict=True)
    ]
    path.write_text("\n".join(lines) + "\n")
    return right


def sampled_test(denoiser: HFDenoiser, settings: Settings) -> float:
    """Share of right bases in answers sampled at temperature 1: what greedy decoding hides below one half."""
    prompts = problems("test", settings.evaluate)
    answers = answers_of(denoiser, prompts, 1.0, settings.seed)
    marks = [right_bases(text, answer) for text, answer in zip(prompts, answers, strict=True)]
    return sum(marks) / len(marks) / LENGTH
