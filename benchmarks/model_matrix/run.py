"""Every family, every step: loads, trains one VRPO epoch (all weights; LoRA), saves, reloads, generates, exports.

`families`: small random models and made-up pairs; chosen answers are words of the first half of the alphabet, rejected
ones of the second. Training runs in this process, so that the trained model can be compared with what is loaded from
its folder; `vrpo generate` and `vrpo export` run as commands. The other parts are for a GPU, at published shapes with
random weights: right (`checks`)? how fast (`experts`, `forward`, `steps`)? how soon loaded (`load`)? Steps are those of
gpu_8b. `--parts families` is the half for a CPU; `--device cuda --parts checks experts forward steps load` the other.
"""

import gc
import json
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file

import vrpo
from benchmarks.gpu_8b.cost import Shape, Work, parts
from benchmarks.gpu_8b.run import lengths
from benchmarks.gpu_8b.step import ONE_PASS, Bench, Case, Counting, random_module, spread, with_lora
from benchmarks.harness.machine import peak_bytes, reset_peak, seconds, vrpo_command
from benchmarks.harness.study import Options, Part, Row, Run, Study, option
from benchmarks.harness.tables import grouped, table
from benchmarks.model_matrix import checks, experts
from benchmarks.model_matrix.families import FAMILIES
from benchmarks.model_matrix.published import FAMILIES as PUBLISHED
from vrpo.data.collate import PreferenceCollator, pairs_of, tokens_of
from vrpo.data.tokenize import tokenize_preferences
from vrpo.models.load import _CLASSES, adapt
from vrpo.models.tiny import train_tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
RATE = {"full": 2e-3, "lora": 1e-2}
ROWS, LENGTH = 16, 512  # of a forward that is timed


@dataclass
class Matrix(Options):
    families: list[str] = option(list(FAMILIES), "Families of the small models.")
    pairs: int = option(256, "Pairs that a small model is trained on. A quarter as many are held out.")
    steps: int = option(16, "Steps of a small model.")
    published: list[str] = option([family.name for family in PUBLISHED], "Families at their published shape.")
    tokens: list[int] = option([32, 512, 8192], "Tokens of a block of experts.")


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


def trained(folder: Path, output: Path, kind: str, epoch: Row, count: int) -> Row:
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
        **epoch,
    )
    peft_config = LoraConfig(r=8, lora_alpha=16) if kind == "lora" else None
    trainer = vrpo.VRPOTrainer(
        str(folder),
        args=args,
        train_dataset=Dataset.from_list(pairs(count, 1)),
        eval_dataset=Dataset.from_list(pairs(count // 4, 2)),
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


def generated(model: Path, prompts: Path, output: Path) -> Row:
    start = time.perf_counter()
    where = ("--model_name_or_path", model, "--prompts", prompts, "--output", output)
    how = ("--max_new_tokens", 16, "--block_size", 4, "--seed", 0, "--temperature", 1.0)
    vrpo_command("generate", *where, *how, log=output.with_suffix(".log"))
    rows = [json.loads(line) for line in output.read_text().split("\n") if line]
    first = sum(letter in LETTERS[:13] for row in rows for letter in row["answer"] if letter.isalpha())
    letters = sum(letter.isalpha() for row in rows for letter in row["answer"])
    return {"answers": len(rows), "first_half": first / max(letters, 1), "seconds": time.perf_counter() - start}


def exported(adapter: Path, base: Path, output: Path, examples: Dataset) -> Row:
    """The adapter merged, under official names, against the adapter on its base."""
    vrpo_command("export", "--model_name_or_path", adapter, "--output_dir", output, log=output.with_suffix(".log"))
    difference = (bounds(vrpo.load(adapter), examples) - bounds(vrpo.load(output), examples)).abs().max()
    return {"names": tensors(output).keys() == tensors(base).keys(), "difference": float(difference)}


def family_row(name: str, folder: Path, epoch: Row, count: int) -> Row:
    tokenizer = train_tokenizer([f"{row['prompt']}{row['chosen']} {row['rejected']}" for row in pairs(200, 0)], 320)
    base = folder / "base"
    row: Row = {"parameters": FAMILIES[name].build(tokenizer, base)}
    row["architecture"] = json.loads((base / "config.json").read_text())["architectures"][0]
    vrpo.load(base).save_pretrained(folder / "again")
    row["round_trip"] = same_files(folder / "again", base)
    for kind in ("full", "lora"):
        row[kind] = trained(base, folder / kind, kind, epoch, count)
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": each["prompt"]}) + "\n" for each in pairs(32, 3)))
    row["generated"] = generated(folder / "full", prompts, folder / "answers.jsonl")
    examples = tokenize_preferences(Dataset.from_list(pairs(count // 4, 2)), tokenizer)[0]
    row["exported"] = exported(folder / "lora", base, folder / "exported", examples)
    return row


def families(run: Run, case: Row) -> Row:
    epoch = {"per_device_train_batch_size": 16 if run.options.pairs >= 256 else 4, "max_steps": run.options.steps}
    with tempfile.TemporaryDirectory() as folder:
        return family_row(case["family"], Path(folder), epoch, run.options.pairs)


def family_cases(run: Run) -> list[Row]:
    assert {family.module for family in FAMILIES.values()} == set(_CLASSES), "a family is not in the matrix"
    return [{"family": name} for name in run.options.families]


def attentions(run: Run) -> list[str]:
    return ["flex_attention", "sdpa"] if run.options.device.startswith("cuda") else ["sdpa"]


@lru_cache(maxsize=1)  # one published model at a time
def built(run: Run, name: str) -> tuple[Shape, Counting]:
    gc.collect()
    torch._dynamo.reset()
    family, device = next(each for each in PUBLISHED if each.name == name), torch.device(run.options.device)
    shape = family.tiny() if run.options.tiny else family.shape
    module = random_module(family.module, family.config(shape, attentions(run)[0]), device, torch.bfloat16)
    weights = sum(parameter.numel() for parameter in module.parameters())
    assert abs(weights / shape.weights - 1) < 1e-3, (weights, shape.weights)  # a tied head, key heads, all experts
    model = Counting(with_lora(module, shape.rank, checkpointing=True), device)
    trained = sum(parameter.numel() for parameter in model.module.parameters() if parameter.requires_grad)
    assert trained == shape.adapter_weights, (trained, shape.adapter_weights)
    return shape, model


def forward(run: Run, case: Row) -> Row:
    """Tokens per second without a graph, half of the tokens hidden and scored, the adapter off."""
    shape, model = built(run, case["family"])
    device, (rows, length) = run.options.device, (2, 32) if run.options.tiny else (ROWS, LENGTH)
    ids = torch.randint(shape.vocabulary - 2, (rows, length), device=device)
    on, hidden = torch.ones_like(ids, dtype=torch.bool), torch.rand(ids.shape, device=device) < 0.5
    given = {"input_ids": ids, "attention_mask": on, "masked": hidden, "scored": hidden}
    one = parts(shape, Work(rows * length, rows * length**2, float(hidden.sum())))
    model.module.set_attn_implementation(case["attention"])
    with torch.no_grad(), model.module.disable_adapter():
        model(**given)
        reset_peak(device)
        took = statistics.median(seconds(model, **given, device=device)[0] for _ in range(3))
    rate = {"tokens_per_second": rows * length / took, "peak_bytes": peak_bytes(device)}
    return {"seconds": took, "flops_per_second": (one.blocks + one.attention + one.head) / took, **rate}


def steps(run: Run, case: Row) -> Row:
    """A step of gpu_8b: UltraFeedback's lengths, LoRA, gradient checkpointing."""
    shape, model = built(run, case["family"])
    tiny, cuda = run.options.tiny, run.options.device.startswith("cuda")
    if case["experts"]:
        checks.choose(model.module, case["experts"])
    trained = [parameter for parameter in model.module.parameters() if parameter.requires_grad]
    bench = Bench(
        shape=shape,
        device=model.device,
        model=model,
        optimizer=torch.optim.AdamW(trained, lr=1e-5, betas=(0.9, 0.95), fused=cuda),
        workloads={"pairs": spread(lengths(tiny), 2 if tiny else 4)},
        max_tokens=128 if tiny else 4096,
        checkpointing=True,
        repeats=1 if tiny else 2,
        left=run.left,
    )
    return bench.measure(Case(case["attention"], ONE_PASS, "pairs", 2 if tiny else 8))


def step_cases(run: Run) -> list[Row]:
    found: list[Row] = []
    for family in published(run):
        kinds = experts.IMPLEMENTATIONS if family.shape.experts else (None,)
        ways = [(kinds[0], attention) for attention in attentions(run)] + [(k, attentions(run)[0]) for k in kinds[1:]]
        found += [{"family": family.name, "experts": kind, "attention": attention} for kind, attention in ways]
    return found


def load(run: Run, case: Row) -> Row:
    """Seconds to save a checkpoint in its official layout and to load it, against reading the same bytes; whether all
    tensors came back bit for bit. The files were just written, so they are read from memory where it has room."""
    device, base = run.options.device, built(run, case["family"])[1].module.unload().eval()
    built.cache_clear()
    folder = Path(tempfile.mkdtemp(prefix="vrpo-load-"))
    try:
        row: Row = {"save": seconds(adapt(base, None).save_pretrained, folder, max_shard_size="4GB", device=device)[0]}
        shards = sorted(folder.glob("*.safetensors"))
        ways: dict[str, Any] = {
            "read": lambda: [len(each.read_bytes()) for each in shards] and None,
            "safetensors": lambda: [load_file(each, device=device) for each in shards] and None,
            "load": lambda: vrpo.load(folder, device=device).module,
            "device_map": lambda: type(base).from_pretrained(str(folder), dtype="auto", device_map={"": device}),
        }
        for name, way in ways.items():
            row[name], made = seconds(way, device=device)
            if made is not None:
                row[f"{name}_equal"] = equal(base, made)
            del made
        return {**row, "bytes": sum(each.stat().st_size for each in shards)}
    finally:
        shutil.rmtree(folder)


def equal(module: Any, other: Any) -> bool:
    """Whether all tensors of two modules are the same bit for bit."""
    one, two = module.state_dict(), other.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def published(run: Run) -> list[Any]:
    return [family for family in PUBLISHED if family.name in run.options.published]


def forward_cases(run: Run) -> list[Row]:
    return [{"family": family.name, "attention": each} for family in published(run) for each in attentions(run)]


def report(run: Run) -> str:
    lines = []
    for row in run.rows("families"):
        kinds = [row["full"], row["lora"]]
        lines.append([
            row["family"],
            f"{row['architecture']}, {row['parameters'] / 1e3:.0f}k",
            "bit for bit" if row["round_trip"] else "DIFFERENT",
            *(f"{one['loss'][0]:.3f} to {one['loss'][1]:.3f}, {one['accuracy']:.2f}" for one in kinds),
            f"{max(one['reload_difference'] for one in kinds):.0e}",
            f"{row['generated']['answers']} answers, {row['generated']['first_half']:.2f}",
            f"{'official' if row['exported']['names'] else 'OTHER'} names, {row['exported']['difference']:.0e}",
        ])  # fmt: skip
    head = ["family", "architecture", "load and save", "all weights: loss, accuracy", "LoRA: loss, accuracy"]
    made = [table([*head, "reload", "generates", "export"], lines)]
    verdict = {True: "yes", False: "**NO**", None: "not judged"}
    names = ("family", "check", "attention", "experts", "dtype")
    lines = [
        [*(row.get(n) or "" for n in names), f"{row['off']:.1e}", verdict[row["ok"]]] for row in run.rows("checks")
    ]
    made.append(table([*names, "off by", "right"], lines))
    lines = []
    for what in ("forward", "steps"):
        for row in run.rows(what):
            took = row["seconds"] if what == "forward" else row["seconds_per_step"]
            numbers = [f"{took:.3f}", f"{row['tokens_per_second']:,.0f}", f"{row['flops_per_second'] / 1e12:.1f}"]
            about = [row["family"], what, row["attention"], row.get("experts") or ""]
            lines.append([*about, *numbers, f"{row['peak_bytes'] / 1e9:.1f}"])
    made.append(table(["family", "what", "attention", "experts", "s", "tokens/s", "TFLOPS", "peak GB"], lines))
    lines = []
    for (name, tokens, which), rows in grouped(run.rows("experts"), "family", "tokens", "pass").items():
        ms = {row["implementation"]: f"{row['ms']:.2f}" for row in rows}
        each = [ms.get(kind, "") for kind in experts.IMPLEMENTATIONS]
        lines.append([name, tokens, which, f"{rows[0]['floor_ms']:.2f}", *each])
    made.append(table(["family", "tokens", "pass", "floor, ms", *experts.IMPLEMENTATIONS], lines))
    ways = ("save", "read", "safetensors", "load", "device_map")
    lines = [
        [row["family"], f"{row['bytes'] / 1e9:.1f}", *(f"{row[way]:.1f}" for way in ways)] for row in run.rows("load")
    ]
    return "\n".join([*made, table(["family", "GB", *(f"{way}, s" for way in ways)], lines)])


def check(run: Run) -> None:
    """Kills: names or bits that change on the way; logits at the wrong position; padding that is attended."""
    for row in run.rows("families"):
        assert row["round_trip"], row
        assert row["exported"]["names"], row
        assert row["exported"]["difference"] < 1e-4, row
        assert max(row[kind]["reload_difference"] for kind in ("full", "lora")) < 1e-4, row
    assert all(row["ok"] is not False for row in run.rows("checks")), run.rows("checks")
    assert all(row["load_equal"] and row["device_map_equal"] for row in run.rows("load")), run.rows("load")


PARTS = {
    "families": Part(family_cases, families),
    "checks": Part(checks.cases, checks.measure),
    "experts": Part(experts.cases, experts.measure),
    "forward": Part(forward_cases, forward),
    "steps": Part(step_cases, steps),
    "load": Part(lambda run: [{"family": family.name} for family in published(run)], load),
}
TINY = {"families": ["LLaDA-MoE"], "pairs": 32, "steps": 2, "published": ["LLaDA-MoE-7B-A1B"], "tokens": [32]}
STUDY = Study(PARTS, report, TINY, Matrix, check=check)
