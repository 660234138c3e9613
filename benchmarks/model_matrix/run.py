"""Every family, every step: loads, trains one VRPO epoch (all weights; LoRA), saves, reloads, generates, exports.

    OMP_NUM_THREADS=1 python benchmarks/model_matrix/run.py                # writes matrix.json and README.md's table
    OMP_NUM_THREADS=1 python benchmarks/model_matrix/run.py --only Dream --output FOLDER

Small random models and made-up pairs: chosen answers are words of the first half of the alphabet, rejected ones of the
second. Training runs in this process, so that the trained model can be compared with what is loaded from its folder;
`vrpo generate` and `vrpo export` run as commands. Needs no network and no data.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

import torch
import transformers
from datasets import Dataset
from families import FAMILIES
from peft import LoraConfig
from safetensors.torch import load_file
from tables import write_table

import vrpo
from vrpo.data.collate import PreferenceCollator, pairs_of, tokens_of
from vrpo.data.tokenize import tokenize_preferences
from vrpo.models.tiny import train_tokenizer

HERE = Path(__file__).parent
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PAIRS, HELD_OUT, EPOCH = 256, 64, {"per_device_train_batch_size": 16, "num_train_epochs": 1}
RATE = {"full": 2e-3, "lora": 1e-2}


def pairs(count: int, seed: int) -> list[dict[str, str]]:
    chance = Random(seed)

    def words(letters: str) -> str:
        return " ".join("".join(chance.choices(letters, k=3)) for _ in range(chance.randint(2, 4)))

    return [
        {"prompt": f"{words(LETTERS)}: ", "chosen": words(LETTERS[:13]), "rejected": words(LETTERS[13:])}
        for _ in range(count)
    ]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def same_files(one: Path, other: Path) -> bool:
    """The same tensors under the same names, and the same config.json."""
    ours, theirs = tensors(one), tensors(other)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (one, other)]
    return (
        ours.keys() == theirs.keys()
        and all(torch.equal(ours[name], theirs[name]) for name in theirs)
        and configs[0] == configs[1]
    )


def bounds(denoiser: Any, examples: Dataset) -> torch.Tensor:
    """Estimated bounds of the rows, on draws that are the same for every model."""
    batch = PreferenceCollator(denoiser.pad_id)([examples[n] for n in range(8)])
    tokens = tokens_of(batch, seed=0, epoch=0)
    plan = vrpo.VRPOConfig(output_dir="unused", report_to="none", num_times=4).make_recipe(denoiser.block_size).plan
    with torch.no_grad():
        return vrpo.elbo(denoiser, tokens, plan(tokens, pairs_of(batch))).value


def trained(folder: Path, output: Path, kind: str) -> dict[str, Any]:
    """One epoch; first and last evaluation, and how far the saved model is from the trained one."""
    args = vrpo.VRPOConfig(
        output_dir=str(output),
        learning_rate=RATE[kind],
        num_times=4,
        beta=0.2,
        eval_strategy="epoch",
        eval_on_start=True,
        logging_steps=4.0,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        lr_scheduler_type="constant",
        **EPOCH,
    )
    peft_config = LoraConfig(r=8, lora_alpha=16) if kind == "lora" else None
    trainer = vrpo.VRPOTrainer(
        str(folder),
        args=args,
        train_dataset=Dataset.from_list(pairs(PAIRS, 1)),
        eval_dataset=Dataset.from_list(pairs(HELD_OUT, 2)),
        peft_config=peft_config,
    )
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    trainer.save_model()
    log = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    trainer.model.eval()
    examples = trainer.eval_dataset
    again = vrpo.load(output)
    difference = (bounds(trainer.denoiser, examples) - bounds(again, examples)).abs().max()
    return {
        "seconds": seconds,
        "loss": [log[0]["eval_loss"], log[-1]["eval_loss"]],
        "accuracy": log[-1]["eval_rewards/accuracies"],
        "reload_difference": float(difference),
        "saved_tensors": len(tensors(output)),
    }


def command(*arguments: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-m", "vrpo", *arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"vrpo {' '.join(arguments)}: {done.stderr[-2000:]}")


def generated(model: Path, prompts: Path, output: Path) -> dict[str, Any]:
    start = time.perf_counter()
    command(
        "generate", "--model_name_or_path", str(model), "--prompts", str(prompts), "--output", str(output),
        "--max_new_tokens", "16", "--block_size", "4", "--seed", "0", "--temperature", "1.0",
    )  # fmt: skip
    rows = [json.loads(line) for line in output.read_text().split("\n") if line]
    first = sum(letter in LETTERS[:13] for row in rows for letter in row["answer"] if letter.isalpha())
    letters = sum(letter.isalpha() for row in rows for letter in row["answer"])
    return {"answers": len(rows), "first_half": first / max(letters, 1), "seconds": time.perf_counter() - start}


def exported(adapter: Path, base: Path, output: Path, examples: Dataset) -> dict[str, Any]:
    """The adapter merged, under official names, against the adapter on its base."""
    command("export", "--model_name_or_path", str(adapter), "--output_dir", str(output))
    difference = (bounds(vrpo.load(adapter), examples) - bounds(vrpo.load(output), examples)).abs().max()
    return {"names": tensors(output).keys() == tensors(base).keys(), "difference": float(difference)}


def row_of(name: str, folder: Path) -> dict[str, Any]:
    tokenizer = train_tokenizer([f"{row['prompt']}{row['chosen']} {row['rejected']}" for row in pairs(200, 0)], 320)
    base = folder / "base"
    start = time.perf_counter()
    row: dict[str, Any] = {"family": name, "parameters": FAMILIES[name].build(tokenizer, base)}
    row["architecture"] = json.loads((base / "config.json").read_text())["architectures"][0]
    vrpo.load(base).save_pretrained(folder / "again")
    row["round_trip"] = same_files(folder / "again", base)
    for kind in ("full", "lora"):
        row[kind] = trained(base, folder / kind, kind)
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": each["prompt"]}) + "\n" for each in pairs(32, 3)))
    row["generated"] = generated(folder / "full", prompts, folder / "answers.jsonl")
    examples = tokenize_preferences(Dataset.from_list(pairs(HELD_OUT, 2)), tokenizer)[0]
    row["exported"] = exported(folder / "lora", base, folder / "exported", examples)
    return row | {"seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--output", type=Path, default=HERE, help="Folder of matrix.json and README.md.")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"torch": torch.__version__, "transformers": transformers.__version__, "rows": []}
    for name in given.only:
        with tempfile.TemporaryDirectory() as folder:
            result["rows"].append(row_of(name, Path(folder)))
        (given.output / "matrix.json").write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps(result["rows"][-1]), flush=True)
    write_table(given.output)


if __name__ == "__main__":
    main()
