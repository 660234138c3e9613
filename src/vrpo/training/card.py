"""The model card: what was trained, how, and what it measured, in Markdown with the hub's metadata header."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers

import vrpo
from vrpo.training.config import DiffusionConfig
from vrpo.types import Plan

_SHOWN = (
    "beta",
    "loss_type",
    "loss_weights",
    "sft_coef",
    "label_smoothing",
    "loss_kwargs",
    "temperature",
    "temperature_kwargs",
    "reference_free",
    "ref_pool",
    "ref_pool_kwargs",
    "plan",
    "num_times",
    "plan_kwargs",
    "pair_coupling",
    "slope",
    "share_draws",
    "learning_rate",
    "lr_scheduler_type",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "eos_padding",
    "seed",
    "draw_seed",
    "bf16",
)

_OF_DRAWS = ("num_times", "plan_kwargs", "pair_coupling")
_KIND = ("A masked diffusion language model", "A causal language model")


def model_card(
    method: str,
    args: DiffusionConfig,
    plan: Plan,
    base: str | None,
    adapter: bool,
    history: Sequence[Mapping[str, Any]],
    changes: Sequence[str] = (),
) -> str:
    """The card as text; `base` is the name of the model that training started from, if it had one. `changes`: where the
    run went on with other settings or rows."""
    exact, settings = args.plan == "exact", args.to_dict()
    shown = [name for name in _SHOWN if name in settings and not (exact and name in _OF_DRAWS)]
    rows = [f"| `{name}` | {settings[name]} |" for name in shown]
    rows.append(f"| sampling plan, in full | `{plan}` |")
    evaluations = [entry for entry in history if "eval_loss" in entry]
    metadata = ["library_name: transformers", "pipeline_tag: text-generation", "tags:", "- vrpo"]
    metadata += [] if exact else ["- diffusion-lm"]
    if base:
        metadata.insert(0, f"base_model: {base}")
    return "\n".join(
        [
            "---",
            *metadata,
            "---",
            f"# {args.folder.name}",
            "",
            f"{_KIND[exact]} trained with **{method}** by "
            f"vrpo {vrpo.__version__} (transformers {transformers.__version__}, torch {torch.__version__}).",
            f"An adapter in peft's format: `{'vrpo.load_causal' if exact else 'vrpo.load'}` puts it on its base model."
            if adapter
            else "Weights and configuration have the layout of the model's official release; "
            f"`{'transformers' if exact else 'vrpo.load'}` reads them.",
            "",
            "| setting | value |",
            "|---|---|",
            *rows,
            "",
            *(f"Gone on from {change}.\n" for change in changes),
            *_evaluation_table(evaluations),
            "",
        ]
    )


def _evaluation_table(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    if not evaluations:
        return ["Not evaluated during training."]
    first, last = evaluations[0], evaluations[-1]
    names = sorted(name for name in last if name.startswith("eval_") and f"{name}_stderr" in last and name in first)
    header = f"| evaluation | step {first['step']} | step {last['step']} | standard error (items) |"
    rows = [f"| `{name}` | {first[name]:.4g} | {last[name]:.4g} | {last[f'{name}_stderr']:.2g} |" for name in names]
    return [header, "|---|---|---|---|", *rows]
