"""What a user can set: TRL-shaped training arguments, the same in Python, YAML and on the command line."""

import copy
from dataclasses import dataclass, field, fields
from math import isfinite
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import torch
from transformers import TrainingArguments

from vrpo.fields.not_offered import unknown_field
from vrpo.leaves import check_type, name_of
from vrpo.losses.setwise import SFT
from vrpo.training.inherited import check_inherited, check_resolved
from vrpo.training.recipe import Recipe, plans_of

_RANGES = {  # least and greatest values of numbers, those of transformers among them; None of them is infinite
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), (1, 1 << 20)),
    **dict.fromkeys(("gradient_accumulation_steps",), (1, 1 << 20)),
    **dict.fromkeys(("num_times", "eval_num_times"), (1, 1 << 16)),
    **dict.fromkeys(("learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm", "warmup_steps"), (0, 1e9)),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), (0, 0.999999999)),
    **dict.fromkeys(("max_length", "max_prompt_length", "eos_padding", "sample_max_new_tokens"), (1, 1 << 24)),
    **dict.fromkeys(("seed", "data_seed", "draw_seed"), (0, (1 << 32) - 1)),
    **dict.fromkeys(("dataloader_num_workers", "dataset_num_proc"), (0, 512)),
    **dict.fromkeys(("ddp_timeout", "ddp_bucket_cap_mb", "dataloader_prefetch_factor"), (1, 1 << 30)),
    **dict.fromkeys(("save_total_limit",), (1, 1 << 30)),
    **dict.fromkeys(("eval_delay",), (0, 1 << 30)),
}


@dataclass
class DiffusionConfig(TrainingArguments):
    """Fields common to supervised fine-tuning and preference training, on top of transformers' TrainingArguments."""

    max_length: int = field(
        default=1024,
        metadata={"help": "Tokens of prompt and response together; longer is cut, as truncation_mode says."},
    )
    max_prompt_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens of the prompt; longer is cut, as truncation_mode says. None: max_length alone limits it."
        },
    )
    truncation_mode: str = field(
        default="keep_start",
        metadata={
            "help": "What stays of a long row. keep_start: its start, as in TRL; a row whose prompt fills max_length "
            "is dropped. keep_end: the end of its prompt, and no row is dropped for its length. The tokens that open "
            "the answer always stay."
        },
    )
    eos_padding: int | None = field(
        default=None,
        metadata={
            "help": "Extend every response with end-of-text tokens, as part of the response, to a multiple of this "
            "many tokens. None: padding is never masked, scored or attended."
        },
    )
    strings_as_chat: bool = field(
        default=False,
        metadata={"help": "Put plain strings through the chat template, prompt as user and answer as assistant."},
    )
    on_bad_rows: str = field(
        default="drop",
        metadata={"help": "Unusable rows: 'drop' counts them and warns once; 'error' stops at the first one."},
    )
    plan: str = field(
        default="fixed_count",
        metadata={
            "help": "How masks are drawn: fixed_count (the paper's), bernoulli, stratified or balanced. Of a block "
            "diffusion model, in each block. exact: no masks, the likelihood of a causal language model."
        },
    )
    plan_kwargs: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "The plan's own parameters, as JSON, or as a mapping in YAML. fixed_count and bernoulli: num_masks "
            "drawn per masking level (1). bernoulli: t_min, the smallest masking time (needed). stratified and "
            "balanced: exponent (0.5), m masked tokens are drawn in proportion to m^-exponent with exact weights; "
            "num_groups, of independent draws, of which a variance needs two (the fewest of at least two draws each)."
        },
    )
    num_times: int = field(
        default=1, metadata={"help": "Masking levels drawn per response (in SFT, all in memory at once)."}
    )
    eval_num_times: int = field(
        default=8, metadata={"help": "Draws per response in evaluations: the same ones at every evaluation."}
    )
    draw_seed: int | None = field(default=None, metadata={"help": "Seed of the draws. None: the same as seed."})
    max_tokens_per_forward: int | None = field(
        default=None,
        metadata={"help": "Tokens, padding included, per call of the model. None: one draw of every row of the batch."},
    )
    balance_batches: bool = field(
        default=True,
        metadata={
            "help": "Deal the examples of an optimizer step over processes and micro-steps by their number of tokens; "
            "the step sees the same ones. Only where examples come in random order."
        },
    )
    router_aux_loss_coef: float | None = field(
        default=0.0,
        metadata={
            "help": "Weight of the load-balancing loss of a mixture of experts' routers, a mean over the tokens of all "
            "passes with a gradient, so that it does not depend on the number of draws. 0 or None: not computed."
        },
    )
    dataset_num_proc: int | None = field(
        default=None,
        metadata={"help": "Processes to tokenise with. None: this one, with all cores for a fast tokenizer's texts."},
    )
    log_gradient_snr: bool = field(
        default=True,
        metadata={"help": "Log the signal-to-noise ratio of the steps' gradients; not with FSDP, DeepSpeed or fp16."},
    )
    sample_steps: int | None = field(
        default=None, metadata={"help": "Every so many steps, generate answers to prompts of the evaluation set."}
    )
    num_samples: int = field(default=4, metadata={"help": "How many prompts sample_steps answers."})
    sample_max_new_tokens: int = field(default=128, metadata={"help": "Length of these answers."})

    resume_with_changes: bool = field(
        default=False,
        metadata={
            "help": "Go on from a checkpoint with other settings or rows than the run had; the card says which. Its "
            "references, and the weights under an adapter, stay what they were."
        },
    )
    stop_at_non_finite: bool = field(
        default=True,
        metadata={"help": "Stop at the first loss, gradient norm or weight that is infinite or not a number."},
    )

    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Kept False: columns carry the example id."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Kept False: it would hide a NaN."})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "All parameters are used."})
    ddp_broadcast_buffers: bool | None = field(default=False, metadata={"help": "No buffer changes in training."})

    def __new__(cls, *args: Any, **given: Any) -> Any:
        """
        Raises:
            ValueError: a field does not exist, with what to do instead; Python would not say what.
        """
        known = [each.name for each in fields(cls)]
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ValueError(f"{cls.__name__}: {unknown_field(unknown[0], known)}")
        return super().__new__(cls)

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        assert self.output_dir is not None
        return Path(self.output_dir)

    def __post_init__(self) -> None:
        check_types(self)
        _check_numbers(self)
        check_inherited(self)
        self.output_dir_given = self.output_dir is not None  # else transformers names one
        if self.tf32 is None and (self.torch_compile or self.torch_compile_backend or self.torch_compile_mode):
            self.tf32 = False  # transformers would turn it on, and compiled steps would compute something else
        self.use_cpu = self.use_cpu or not _usable_accelerator()  # else bf16 is refused on a CPU
        super().__post_init__()
        check_resolved(self)
        self._check_steps()
        if self.remove_unused_columns or self.logging_nan_inf_filter:
            raise ValueError("remove_unused_columns and logging_nan_inf_filter must stay False")
        given: Any = self.gradient_checkpointing_kwargs or {}
        options: dict[str, Any] = {"use_reentrant": False, **given}
        self.gradient_checkpointing_kwargs = options
        self.activation_checkpointing_kwargs = options  # its new name, which transformers reads where it knows it
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.cuda.is_available()
        if self.router_aux_loss_coef is not None and self.router_aux_loss_coef < 0:
            raise ValueError(f"router_aux_loss_coef must not be negative, not {self.router_aux_loss_coef}")
        if self.router_aux_loss_coef and self.fp16:
            raise ValueError(
                "router_aux_loss_coef: its gradient does not pass through the scaled loss of fp16: use bf16"
            )
        if self.draw_seed is None:
            self.draw_seed = self.seed
        for name in ("max_tokens_per_forward", "sample_steps", "num_samples", "sample_max_new_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.plan == "exact" and self.sample_steps is not None:
            raise ValueError(
                "sample_steps fills in masks, which a causal language model (plan=exact) has not: leave it out"
            )
        self.make_recipe()  # refuses what does not go together, before anything is loaded

    def __getstate__(self) -> dict[str, Any]:
        """Without what is secret: a pickle of this, training_args.bin, lies beside the weights."""
        kept = {name: None if name.endswith("_token") else value for name, value in vars(self).items()}
        return {name: name_of(value) if callable(value) else value for name, value in kept.items()}

    def to_dict(self) -> dict[str, Any]:
        """As transformers', a function by its name."""
        found: dict[str, Any] = super().to_dict()
        return {name: name_of(value) if callable(value) else value for name, value in found.items()}

    def __deepcopy__(self, known: dict[int, Any]) -> Any:
        """With what is secret: a copy is no file."""
        other = type(self).__new__(type(self))
        vars(other).update(copy.deepcopy(vars(self), known))
        return other

    def __copy__(self) -> Any:
        other = type(self).__new__(type(self))
        vars(other).update(vars(self))
        return other

    def _check_steps(self) -> None:
        """
        Raises:
            ValueError: there would be no step to make.
        """
        if self.max_steps == 0 or self.max_steps < -1:
            raise ValueError(f"max_steps must be at least 1, not {self.max_steps}: -1 leaves it to num_train_epochs")
        if self.max_steps == -1 and self.num_train_epochs <= 0:
            raise ValueError(f"num_train_epochs must be above 0, not {self.num_train_epochs}, or set max_steps")
        for what in ("save", "eval"):
            every = getattr(self, f"{what}_steps")
            if getattr(self, f"{what}_strategy") == "steps" and every is not None and every <= 0:
                raise ValueError(f"{what}_steps must be above 0, not {every}; set {what}_strategy to no for none")

    @property
    def computes_in(self) -> torch.dtype | None:
        """What products are rounded to; None: to what they are of. TF32 has the fraction of float16."""
        return torch.bfloat16 if self.bf16 else torch.float16 if self.fp16 or self.tf32 else None

    @property
    def reentrant(self) -> bool:
        """Whether layers are checkpointed so that only a backward through everything reaches what is trained."""
        options = self.gradient_checkpointing_kwargs
        return bool(self.gradient_checkpointing and isinstance(options, dict) and options["use_reentrant"])

    def make_recipe(self, block_size: int | None = None) -> Recipe:
        """What the run is.

        Args:
            block_size: of a block diffusion model.
        """
        return Recipe(*plans_of(self, block_size=block_size), SFT(), SFT())


def check_types(config: Any) -> None:
    """
    Raises:
        ValueError: a field of ours is of another type than a command line would make of it, such as a number in quotes.
    """
    hints = get_type_hints(type(config))  # a parser of transformers changes `Field.type`
    for name in {each.name for each in fields(config)} - {each.name for each in fields(TrainingArguments)}:
        value, kinds = getattr(config, name), get_args(hints[name]) or (hints[name],)
        free = str in kinds and not any(get_origin(each) in (list, dict) for each in kinds)  # looked up, or a place
        if not free and not (name == "max_length" and value is None):
            check_type(name, value, hints[name])


def _check_numbers(config: Any) -> None:
    """
    Raises:
        ValueError: a number is none, or out of its range; transformers would say so later, or train with it.
    """
    for each in fields(config):
        value = getattr(config, each.name)
        if isinstance(value, float) and not isfinite(value):
            raise ValueError(f"{each.name} must be a finite number, not {value}")
        least, most = _RANGES.get(each.name, (value, value))
        if isinstance(value, int | float) and not least <= value <= most:
            raise ValueError(f"{each.name} must be from {least} to {most:,}, not {value}")


def _usable_accelerator() -> bool:
    """Whether there is an accelerator that has float64, in which bounds are summed; Apple's has not."""
    return torch.accelerator.is_available() and str(torch.accelerator.current_accelerator()) != "mps"


@dataclass
class SFTConfig(DiffusionConfig):
    """Masked-diffusion supervised fine-tuning, and pretraining from scratch (rows with a `text` field)."""

    chunk_text: bool = field(
        default=True, metadata={"help": "Rows with a text field: cut into pieces of max_length instead of truncating."}
    )
