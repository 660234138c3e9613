"""Bad command lines over all commands, as a table: what a user may mistype, and files that are not what they should be.

`{name}` in a word is a place of `world`: a folder with good inputs of every command and broken ones of every kind.
"""

import argparse
import gzip
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vrpo.cli.door import COMMANDS
from vrpo.cli.page import parser_of
from vrpo.models.tiny import from_config, train_tokenizer

TRAINING = ("sft", "train", "rounds", "estimate")
GOOD = {  # a command that works, by fields
    "sft": "--model_name_or_path {model} --dataset_name {pairs.jsonl} --completion_column chosen --output_dir {out}",
    "train": "--model_name_or_path {model} --dataset_name {pairs.jsonl} --output_dir {out}",
    "rounds": "--model_name_or_path {model} --output_dir {out} --rounds 1 "
    '--generate {"prompt":["1+1="],"max_new_tokens":4} '
    '--pairs {"judge":"reward_model","reward_model":"nobody/nothing"}',
    "estimate": "--model_name_or_path {model} --dataset_name {pairs.jsonl} --output_dir {out} --device h100",
    "generate": "--model_name_or_path {model} --prompts {prompts.txt} --device cpu --max_new_tokens 4 --output {out}/a",
    "pairs": "--samples {samples.jsonl} --output {out}/p.jsonl --report {out}/r --judge numeric",
    "variance": "--model_name_or_path {model} --ref_model_name_or_path {other} --dataset_name {pairs.jsonl} "
    "--output_dir {out} --num_pairs 3 --num_replicates 3 --budgets 1 2 --device cpu",
    "eval": "--models a={model} --task gsm8k={gsm8k.jsonl} --output_dir {out} --max_new_tokens 4 --device cpu",
    "export": "--model_name_or_path {model} --output_dir {out}",
    "demo": "--output_dir {out}",
}
SHORT = "--use_cpu true --max_steps 1 --report_to none --disable_tqdm true --per_device_train_batch_size 2"
PAIRS = "--num_times 2 --save_strategy no"
NUMBERS = {  # kind -> words that no field of the kind takes
    int: ("two", "nan", "inf", "1e23", "1" * 23, "0.5", ""),
    float: ("two", "nan", "-inf", "1e999", ""),
}
EDGES = {int: ("-3", "0", "4000000000000000000"), float: ("-3", "0", "1e30")}  # words that some fields take


@dataclass(frozen=True)
class Line:
    """A command line, and words of which the message has to hold one; None: it may also be right."""

    command: str
    words: tuple[str, ...]
    names: tuple[str, ...]
    may_work: bool = False

    def __str__(self) -> str:
        return " ".join([self.command, *(word if len(word) < 60 else f"{word[:60]}..." for word in self.words)])


def argv_of(line: Line, world: Path, out: Path) -> list[str]:
    """The good command with the line's words in place of its own."""
    good = _fields(f"{GOOD.get(line.command, '')} {SHORT if line.command in TRAINING else ''}".split())
    if line.command in ("train", "sft"):
        good |= _fields(PAIRS.split())
    own = _fields(line.words)
    for name in {"config": [], "prompt": ["prompts"], "tasks": ["task"]}.get(next(iter(own), ""), []):
        good.pop(name, None)
    words = [
        word
        for name, values in {**good, **own}.items()
        if values != ["-"]
        for word in ([f"--{name}"] if name else []) + values
    ]
    return [line.command, *(_placed(word, world, out) for word in words)]


def _fields(words: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            found[word.removeprefix("--")] = []
        else:
            found.setdefault(next(reversed(found), ""), []).append(word)
    return found


def _placed(word: str, world: Path, out: Path) -> str:
    before, brace, rest = word.partition("{")
    if not brace or "}" not in rest or '"' in word:
        return word
    name, _, after = rest.partition("}")
    return f"{before}{out if name == 'out' else world / name}{after}"


TRAINED = {action.dest for action in parser_of("train")._actions}


def lines() -> list[Line]:
    return [*_numbers(), *_edges(), *_choices(), *_places(), *_files(), *OWN]


def _actions(command: str) -> Iterator[argparse.Action]:
    """Its fields; of the three commands that share fields, each field of the first one that has it."""
    for action in parser_of(command)._actions:
        shared = command in ("sft", "rounds", "estimate") and action.dest in TRAINED and not action.required
        if action.dest not in ("help", "config") and not action.option_strings[0].startswith("--no_") and not shared:
            yield action


def _numbers() -> Iterator[Line]:
    """Each number of ours in every command, and a few of transformers': text, infinities, too many digits."""
    for command in COMMANDS:
        for at, action in enumerate(_actions(command)):
            if action.type in NUMBERS:
                words = NUMBERS[action.type]  # type: ignore[index]
                yield Line(command, (f"--{action.dest}", words[at % len(words)]), (action.dest,))


def _edges() -> Iterator[Line]:
    for command in COMMANDS:
        for action in _actions(command):
            for word in EDGES.get(action.type, ()):  # type: ignore[arg-type]
                slow = command == "demo" or action.dest in ENDLESS
                if word == "-3" or not slow:
                    yield Line(
                        command, (f"--{action.dest}", word), (action.dest, *ALSO.get(action.dest, ())), may_work=True
                    )


ALSO = {  # what else a message may name
    "sample_steps": ("eval_fraction",),
    **dict.fromkeys(("adam_epsilon", "loss_weights", "beta", "sft_coef"), ("not finite", "norm of the gradient")),
}
ENDLESS = ("max_steps", "num_train_epochs")  # whose large values are a run that takes years


def _choices() -> Iterator[Line]:
    for command in COMMANDS:
        for action in _actions(command):
            if action.choices is not None:
                yield Line(command, (f"--{action.dest}", "nonsense"), (action.dest,))
            elif "bool" in getattr(action.type, "__name__", ""):
                yield Line(command, (f"--{action.dest}", "perhaps"), (action.dest, "perhaps"))
            if action.required:
                yield Line(command, (f"--{action.dest}", "-"), (action.dest,))


MODELS = (
    "nowhere/at/all",
    "pairs.jsonl",
    "empty",
    "no_weights",
    "truncated",
    "garbage",
    "empty_weights",
    "garbage_config",
    "list_config",
    "latin1_config",
    "no_architecture",
    "unknown_architecture",
    "negative_layers",
    "text_layers",
    "many_layers",
    "other_width",
    "huge_width",
    "garbage_tokenizer",
    "truncated_tokenizer",
    "missing_shard",
    "garbage_index",
)
DATA = (
    "nowhere.jsonl",
    "empty",
    "empty.jsonl",
    "latin1.jsonl",
    "binary.jsonl",
    "truncated.jsonl.gz",
    "garbage.jsonl.gz",
    "garbage.parquet",
    "scalar.json",
    "broken.json",
    "deep.json",
    "columns.jsonl",
    "model",
    "pairs.txt",
    "saved_garbage",
)
PROMPTS = ("nowhere.txt", "empty", "empty.jsonl", "latin1.jsonl", "binary.txt", "truncated.jsonl.gz", "columns.jsonl")
CONFIGS = (
    "nowhere.yaml",
    "empty",
    "empty.yaml",
    "latin1.yaml",
    "binary.yaml",
    "tabs.yaml",
    "list.yaml",
    "scalar.yaml",
    "twice.yaml",
    "twice_inside.yaml",
    "unknown.yaml",
    "bomb.yaml",
    "recursive.yaml",
    "deep.yaml",
    "python.yaml",
    "model",
)
ADAPTERS = ("empty", "pairs.jsonl", "garbage_adapter", "no_weights_adapter", "other_adapter", "nowhere/at/all")
OUTPUTS = ("{pairs.jsonl}", "{pairs.jsonl}/below", "/proc/nowhere", "/dev/full/below")


def _places() -> Iterator[Line]:
    for command in COMMANDS:
        for action in _actions(command):
            if action.dest in ("model_name_or_path", "ref_model_name_or_path"):
                for name in MODELS:
                    yield Line(command, (f"--{action.dest}", f"{{{name}}}"), (name, action.dest))
            if action.dest == "dataset_name":
                for name in DATA:
                    yield Line(command, ("--dataset_name", f"{{{name}}}"), (name,))
            if action.dest in ("output_dir", "output", "report"):
                for name in OUTPUTS:
                    yield Line(command, (f"--{action.dest}", name), (action.dest, re.sub("[{}]", "", name)))
    for name in MODELS:
        yield Line("eval", ("--models", f"a={{{name}}}"), (name, "models"))
    for command, field in (("generate", "adapter"), ("export", "adapter"), ("generate", "model_name_or_path")):
        for name in (
            "empty",
            "pairs.jsonl",
            "garbage_adapter",
            "no_weights_adapter",
            "other_adapter",
            "nowhere/at/all",
        ):
            yield Line(command, (f"--{field}", f"{{{name}}}"), (name, field, "/nowhere/at/all"))
    for name in PROMPTS:
        yield Line("generate", ("--prompts", f"{{{name}}}"), (name,))
        yield Line("pairs", ("--samples", f"{{{name}}}"), (name,))
        yield Line("eval", ("--task", f"gsm8k={{{name}}}"), (name,))


def _files() -> Iterator[Line]:
    for command in COMMANDS:
        if command != "demo":
            for name in CONFIGS:
                yield Line(command, ("--config", f"{{{name}}}"), (name,))


def _own(text: str, *names: str) -> Line:
    command, *words = text.split(" ")
    return Line(command, tuple(word.replace("~", " ") for word in words), names)


OWN = [
    _own("train --beta", "beta"),
    _own("train stray", "stray"),
    _own("train --loss_type nonsense", "loss_type"),
    _own("train --loss_type sigmoid sigmoid", "loss_type"),
    _own("train --loss_type sigmoid ipo --loss_weights 1", "loss_weights"),
    _own("train --temperature nonsense", "temperature"),
    _own("train --temperature os:nowhere", "temperature"),
    _own("train --plan nonsense", "plan"),
    _own("train --plan bernoulli", "t_min"),
    _own('train --plan bernoulli --plan_kwargs {"t_min":2}', "t_min"),
    _own("train --pair_coupling nonsense", "pair_coupling"),
    _own("train --slope nonsense", "slope"),
    _own("train --gradient_passes three", "gradient_passes"),
    _own("train --dtype float3", "dtype"),
    _own("train --dtype bfloat16", "dtype"),
    _own("train --attn_implementation nonsense", "attn_implementation"),
    _own("train --experts_implementation eager", "experts_implementation"),
    _own("train --mask_token_id 999999", "mask_token_id", "999999"),
    _own("train --block_size 4", "block_size"),
    _own("train --truncation_mode middle", "truncation_mode"),
    _own("train --on_bad_rows ignore", "on_bad_rows"),
    _own("train --use_peft true --lora_target_modules nonsense", "lora_target_modules", "nonsense"),
    _own("train --use_peft true --lora_r 0", "lora_r"),
    _own("train --use_peft true --lora_r -3", "lora_r"),
    _own("train --use_peft true --lora_alpha 0", "lora_alpha"),
    _own("train --use_peft true --lora_dropout 0.1", "lora_dropout"),
    _own("train --use_peft true --lora_dropout 3", "lora_dropout"),
    _own("train --resume_from_checkpoint {model}", "resume_from_checkpoint", "model"),
    _own("train --resume_from_checkpoint {nowhere}", "resume_from_checkpoint", "nowhere"),
    _own("train --resume_from_checkpoint {pairs.jsonl}", "resume_from_checkpoint", "pairs.jsonl"),
    _own("train --report_to nonsense", "report_to"),
    _own("train --report_to trackio", "report_to", "trackio"),
    _own("train --report_to swanlab", "report_to", "swanlab"),
    _own("train --optim nonsense", "optim"),
    _own("train --optim lomo", "optim", "lomo"),
    _own("train --optim galore_adamw", "optim", "galore"),
    _own("train --optim adamw_bnb_8bit --optim_args x", "optim"),
    _own("train --lr_scheduler_kwargs nonsense", "lr_scheduler_kwargs"),
    _own('train --lr_scheduler_kwargs {"nonsense":1} --lr_scheduler_type cosine_with_min_lr', "lr_scheduler"),
    _own("train --lr_scheduler_type cosine_with_min_lr", "lr_scheduler"),
    _own("train --lr_scheduler_type reduce_lr_on_plateau", "lr_scheduler"),
    _own(
        "train --gradient_checkpointing true --gradient_checkpointing_kwargs nonsense", "gradient_checkpointing_kwargs"
    ),
    _own("train --gradient_checkpointing true --gradient_checkpointing_kwargs [1]", "gradient_checkpointing_kwargs"),
    _own("train --accelerator_config nonsense", "accelerator_config"),
    _own('train --accelerator_config {"nonsense":1}', "accelerator_config", "nonsense"),
    _own("train --deepspeed {nowhere.json}", "deepspeed"),
    _own("train --fsdp_config {nowhere.json}", "fsdp_config"),
    _own("train --debug nonsense", "debug"),
    _own("train --push_to_hub true", "push_to_hub"),
    _own("train --load_best_model_at_end true", "load_best_model_at_end"),
    _own(
        "train --metric_for_best_model nonsense --eval_strategy steps --eval_steps 1 --eval_fraction 0.5 "
        "--save_strategy steps --save_steps 1 --load_best_model_at_end true",
        "metric_for_best_model",
    ),
    _own("train --log_level nonsense", "log_level"),
    _own("train --fp16 true --bf16 true", "fp16"),
    _own("train --fp16 true", "fp16"),
    _own("train --tf32 true", "tf32"),
    _own("train --eval_strategy steps", "eval"),
    _own("train --eval_strategy steps --eval_dataset_name {pairs.jsonl} --eval_fraction 0.5", "eval_fraction"),
    _own("train --eval_fraction 0.5", "eval_fraction"),
    _own("train --eval_strategy steps --eval_fraction 7", "eval_fraction"),
    _own("train --eval_strategy steps --eval_dataset_name {nowhere.jsonl}", "eval_dataset_name"),
    _own("train --eval_strategy steps --eval_dataset_name {columns.jsonl}", "columns.jsonl"),
    _own("train --dataset_train_split nope", "nope"),
    _own("train --dataset_config en", "en"),
    _own("train --reward_model_name_or_path {model}", "reward_model"),
    _own("train --temperature reward_scaling", "reward"),
    _own(
        'train --temperature reward_scaling --temperature_kwargs {"scale":1} --reward_model_name_or_path {empty}',
        "empty",
    ),
    _own(
        'train --temperature reward_scaling --temperature_kwargs {"scale":1} --reward_model_name_or_path {model}',
        "model",
    ),
    _own('rounds --rounds 1 --generate {"prompts":1} --pairs {}', "generate", "pairs"),
    _own("rounds --rounds 1 --generate [1] --pairs {}", "generate"),
    _own("train --rounds 1", "rounds"),
    _own("train --causal_ref_model_name_or_path {model}", "model"),
    _own("train --plan exact", "plan", "exact", "model"),
    _own('train --ref_pool_kwargs {"weights":[1,2]}', "ref_pool_kwargs"),
    _own("train --ref_pool nonsense", "ref_pool"),
    _own("train --precompute_ref_log_probs true --ref_terms_dir {pairs.jsonl}", "ref_terms_dir", "pairs.jsonl"),
    _own("train --load_in_4bit true", "use_peft"),
    _own("train --torch_compile true --torch_compile_backend nonsense", "torch_compile_backend", "nonsense"),
    _own("train --output_dir -", "output_dir"),
    _own("sft --completion_column nope", "completion_column"),
    _own("sft --model_name_or_path - --from_scratch true --architecture nonsense", "architecture", "nonsense"),
    _own("sft --model_name_or_path - --from_scratch true --vocab_size 3", "vocab_size"),
    _own("sft --model_name_or_path - --from_scratch true --hidden_size 15", "hidden_size"),
    _own("sft --model_name_or_path - --from_scratch true --num_heads 3", "num_heads"),
    _own("sft --model_name_or_path - --from_scratch true --num_kv_heads 3", "num_kv_heads"),
    _own("sft --model_name_or_path - --from_scratch true --num_layers 0", "num_layers"),
    _own("sft --model_name_or_path - --from_scratch true --num_layers -3", "num_layers"),
    _own("sft --model_name_or_path - --from_scratch true --intermediate_size 0", "intermediate_size"),
    _own("sft --model_name_or_path - --from_scratch true --hidden_size 4000000000", "hidden_size"),
    _own("sft --model_name_or_path -", "model_name_or_path"),
    _own("sft --model_name_or_path {model} --from_scratch true", "from_scratch"),
    _own("sft --dataset_name -", "dataset_name"),
    _own("estimate --device nonsense", "device"),
    _own("estimate --estimate_file {empty}", "estimate_file", "empty"),
    _own("estimate --optim adamw_bnb_8bit", "optim"),
    *(_own(f"estimate --model_name_or_path {{{name}}}", name) for name in MODELS if name != "no_weights"),
    _own("generate --prompt a --prompts {prompts.txt}", "prompt"),
    _own("generate --prompts -", "prompt"),
    _own("generate --device nonsense", "device"),
    _own("generate --device cuda", "device"),
    _own("generate --device cuda:99", "device"),
    _own("generate --device meta", "device"),
    _own("generate --device_map nonsense", "device_map", "device"),
    _own("generate --dtype nonsense", "dtype"),
    _own("generate --attn_implementation nonsense", "attn_implementation"),
    _own("generate --num_samples 2", "num_samples"),
    _own("generate --block_size 3", "block_size"),
    _own("generate --steps 3 --threshold 0.5", "threshold", "steps"),
    _own("generate --output {pairs.gz}", "output"),
    _own("generate --output {empty}", "output", "empty"),
    _own("generate --output /dev/full", "output", "full"),
    _own("generate --trace {empty}", "trace", "empty"),
    _own("pairs --judge_arguments nonsense", "judge_arguments"),
    _own("pairs --judge_arguments [1]", "judge_arguments"),
    _own('pairs --judge_arguments {"nonsense":1}', "judge_arguments", "nonsense"),
    _own("pairs --rule margin", "margin"),
    _own("pairs --judge endpoint", "endpoint_url"),
    _own("pairs --judge endpoint --endpoint_url nonsense --endpoint_model x", "endpoint_url", "nonsense"),
    _own("pairs --judge endpoint --endpoint_url http://127.0.0.1:9/v1 --endpoint_model x --retries 0", "127.0.0.1"),
    _own(
        "pairs --judge endpoint --endpoint_url http://127.0.0.1:9/v1 --endpoint_model x --endpoint_key_variable NOPE",
        "NOPE",
    ),
    _own(
        "pairs --judge endpoint --endpoint_url http://127.0.0.1:9/v1 --endpoint_model x --endpoint_template {empty}",
        "endpoint_template",
    ),
    _own("pairs --judge reward_model", "reward_model"),
    *(_own(f"pairs --judge reward_model --reward_model {{{name}}}", name) for name in MODELS[1:8]),
    _own("pairs --judge reward_model --reward_model {model}", "model"),
    _own("pairs --end_ids two", "end_ids"),
    _own("variance --budgets 2 3", "budgets"),
    _own("variance --budgets 0", "budgets"),
    _own("variance --budgets 1000000000", "budgets"),
    _own("variance --plans nonsense", "plan"),
    _own("variance --plans balanced:nonsense=1", "plan"),
    _own("variance --plans balanced:exponent=nan", "plan"),
    _own("variance --plan_draws 0", "plan_draws"),
    _own("variance --trainable (", "trainable"),
    _own("variance --trainable nonsense", "trainable"),
    _own("variance --device nonsense", "device"),
    _own("variance --dtype nonsense", "dtype"),
    _own("variance --ref_model_name_or_path -", "ref_model_name_or_path"),
    _own("eval --models a={model} a={other}", "models"),
    _own("eval --models =", "models"),
    _own("eval --task nonsense={pairs.jsonl}", "task"),
    _own("eval --tasks nonsense", "nonsense"),
    _own("eval --tasks gsm8k --data {empty}", "gsm8k", "empty"),
    _own("eval --tasks gsm8k --data {nowhere}", "data"),
    _own("eval --preset nonsense", "preset"),
    _own("eval --device nonsense", "device"),
    _own("eval --include_path {pairs.jsonl}", "include_path"),
    _own("eval --remasking nonsense", "remasking"),
    _own("eval --cache nonsense", "cache"),
    _own("eval --dtype nonsense", "dtype"),
    _own("export --max_shard_size nonsense", "max_shard_size"),
    _own("export --max_shard_size -5GB", "max_shard_size"),
    _own("export --max_shard_size 0", "max_shard_size"),
    _own("export --dtype nonsense", "dtype"),
    _own("export --dtype int8", "dtype"),
    _own("export --adapter_only", "adapter_only"),
    _own("export --output_dir {model}", "output_dir"),
    _own("export --output_dir {not_a_model} --overwrite", "overwrite"),
    _own("demo --collect -5", "collect"),
    _own("demo --collect 1000000", "collect", "problems"),
    _own("demo --coll 5", "coll"),
    _own("nonsense --beta 1", "nonsense"),
]


def make_world(folder: Path) -> None:
    """Good inputs, and broken ones beside them."""
    rows = [{"prompt": f"{n}+{n}=", "chosen": f"{2 * n} ", "rejected": f"{2 * n + 1}"} for n in range(8)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "pairs.jsonl").write_text(text)
    (folder / "pairs.txt").write_text(text)
    (folder / "prompts.txt").write_text("1+1=\n2+2=\n")
    (folder / "gsm8k.jsonl").write_text('{"question": "1+1?", "answer": "#### 2"}\n')
    settings = {"model_name_or_path": str(folder / "model"), "chat": False}
    samples = [
        {"prompt_index": 0, "sample_index": n, "prompt": "1+1=", "answer": str(n), "answer_ids": [n, 1], "nfe": 1,
         "settings": settings, "row": {"answer": "2"}}
        for n in (1, 2)
    ]  # fmt: skip
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    _make_models(folder)
    _make_data(folder, text)
    _make_configs(folder)


def _make_models(folder: Path) -> None:
    tokenizer = train_tokenizer(["1+1=2 3 4"], 300)
    shape: dict[str, Any] = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 16}
    for seed, name in enumerate(("model", "other")):
        from_config(tokenizer, **shape, seed=seed).save_pretrained(folder / name)
    model = folder / "model"
    weights = (model / "model.safetensors").read_bytes()
    config = json.loads((model / "config.json").read_text())
    layers = next(name for name in ("n_layers", "num_hidden_layers") if name in config)
    width = next(name for name in ("d_model", "hidden_size") if name in config)
    tokens = (model / "tokenizer.json").read_text()
    changes: dict[str, tuple[str, bytes | str | None]] = {
        "no_weights": ("model.safetensors", None),
        "truncated": ("model.safetensors", weights[: len(weights) // 2]),
        "garbage": ("model.safetensors", b"\x99" * 4000),
        "empty_weights": ("model.safetensors", b""),
        "garbage_config": ("config.json", "{nonsense"),
        "list_config": ("config.json", "[1, 2]"),
        "latin1_config": ("config.json", json.dumps({**config, "é": "é"}, ensure_ascii=False).encode("latin-1")),
        "no_architecture": ("config.json", json.dumps({**config, "architectures": None})),
        "unknown_architecture": ("config.json", json.dumps({**config, "architectures": ["Nonsense"]})),
        "negative_layers": ("config.json", json.dumps({**config, layers: -1})),
        "text_layers": ("config.json", json.dumps({**config, layers: "two"})),
        "many_layers": ("config.json", json.dumps({**config, layers: 10**9})),
        "other_width": ("config.json", json.dumps({**config, width: 32})),
        "huge_width": ("config.json", json.dumps({**config, width: 2**40})),
        "garbage_tokenizer": ("tokenizer.json", "{nonsense"),
        "truncated_tokenizer": ("tokenizer.json", tokens[: len(tokens) // 2]),
        "missing_shard": ("model.safetensors", None),
        "garbage_index": ("model.safetensors", None),
    }
    for name, (file, content) in changes.items():
        shutil.copytree(model, folder / name)
        if content is None:
            (folder / name / file).unlink()
        else:
            (folder / name / file).write_bytes(content.encode() if isinstance(content, str) else content)
    index = {"metadata": {}, "weight_map": {"model.transformer.wte.weight": "model-00001-of-00002.safetensors"}}
    (folder / "missing_shard" / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "garbage_index" / "model.safetensors.index.json").write_text("{nonsense")
    for name, content in (("garbage_adapter", "{nonsense"), ("no_weights_adapter", '{"peft_type": "LORA"}')):
        (folder / name).mkdir()
        (folder / name / "adapter_config.json").write_text(content)
    other = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "base_model_name_or_path": "/nowhere/at/all"}
    (folder / "other_adapter").mkdir()
    (folder / "other_adapter" / "adapter_config.json").write_text(json.dumps(other))
    (folder / "other_adapter" / "adapter_model.safetensors").write_bytes(b"")


def _make_data(folder: Path, text: str) -> None:
    packed = gzip.compress(text.encode())
    for name, content in {
        "empty.jsonl": b"",
        "latin1.jsonl": '{"prompt": "é", "chosen": "é", "rejected": "è"}\n'.encode("latin-1"),
        "binary.jsonl": bytes(range(256)) * 10,
        "binary.txt": bytes(range(128, 256)),
        "truncated.jsonl.gz": packed[: len(packed) // 2],
        "garbage.jsonl.gz": b"\x1f\x8bnonsense" * 9,
        "garbage.parquet": b"nonsense" * 9,
        "scalar.json": b"3",
        "broken.json": b'[{"prompt": ',
        "deep.json": b"[" * 100_000,
        "columns.jsonl": b'{"a": "b"}\n',
    }.items():
        (folder / name).write_bytes(content)
    for name in ("empty", "saved_garbage", "not_a_model"):
        (folder / name).mkdir()
    (folder / "saved_garbage" / "state.json").write_text("{nonsense")
    (folder / "not_a_model" / "thesis.txt").write_text("x")


def _make_configs(folder: Path) -> None:
    bomb = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{','.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(8)
    )
    for name, content in {
        "empty.yaml": b"",
        "latin1.yaml": "run_name: é\n".encode("latin-1"),
        "binary.yaml": bytes(range(256)),
        "tabs.yaml": b"output_dir:\n\tx: 1\n",
        "list.yaml": b"- 1\n",
        "scalar.yaml": b"nonsense\n",
        "twice.yaml": b"seed: 1\nseed: 2\n",
        "twice_inside.yaml": b"generate:\n  a: 1\n  a: 2\n",
        "unknown.yaml": b"nonsense: 1\n",
        "bomb.yaml": bomb.encode(),
        "recursive.yaml": b"seed: &a [*a]\n",
        "deep.yaml": b"seed: " + b"[" * 3_000,
        "python.yaml": b"seed: !!python/object/apply:os.getcwd []\n",
    }.items():
        (folder / name).write_bytes(content)
