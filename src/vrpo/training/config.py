"""What a user can set: TRL-shaped training arguments, the same in Python, YAML and on the command line."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from vrpo.draws import Bernoulli, FixedCount
from vrpo.losses import DPO, SFT, Objective, WeightedSum
from vrpo.plans import BalancedMasks, Complementary, IndependentMasks, Levels, NestedMasks, Paired, within_blocks
from vrpo.slopes import CrossFit, Jackknife
from vrpo.training.budget import auto_times
from vrpo.types import Plan

_LEVELS = {"num_groups", "count_exponent"}
_PLAN_FIELDS = {  # what each plan is configured by, besides num_times
    "fixed_count": {"num_masks"},
    "bernoulli": {"num_masks", "t_min"},
    "stratified": _LEVELS,
    "balanced": _LEVELS,
    "nested": _LEVELS | {"control"},
    "complementary": set[str](),
}
_NEUTRAL = {"num_masks": 1, "t_min": None, "num_groups": None, "count_exponent": None, "control": 1.0}
_COUPLINGS = ("none", "quantile", "aligned")
_SLOPES: dict[str, Any] = {"plain": None, "cross_fit": CrossFit, "jackknife": Jackknife}
COUNT_EXPONENT = 0.5  # of the plans that have one; benchmarks/variance_frontier


@dataclass
class DiffusionConfig(TrainingArguments):
    """Fields common to supervised fine-tuning and preference training, on top of transformers' TrainingArguments."""

    max_length: int = field(default=1024, metadata={"help": "Tokens of prompt and response together; longer is cut."})
    max_prompt_length: int | None = field(
        default=None, metadata={"help": "Tokens of the prompt; longer is cut. None: only max_length limits it."}
    )
    truncation_mode: str = field(
        default="keep_end", metadata={"help": "Which end of a long prompt stays: keep_end or keep_start."}
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
            "help": "How masks are drawn: fixed_count (the paper's), bernoulli (needs t_min), stratified, balanced, "
            "nested or complementary. Of a block diffusion model, in each block."
        },
    )
    num_times: int = field(
        default=1, metadata={"help": "Masking levels drawn per response (in SFT, all in memory at once)."}
    )
    num_masks: int = field(
        default=1, metadata={"help": "Masks drawn per masking level, in plan=fixed_count and plan=bernoulli."}
    )
    t_min: float | None = field(default=None, metadata={"help": "Smallest masking time of plan=bernoulli."})
    num_groups: int | None = field(
        default=None,
        metadata={
            "help": "Independent groups of draws in plan=stratified, balanced and nested; a variance needs two. None: "
            "the fewest that are two or more of at least two draws each, which 2, 3, 5 and 7 draws cannot form: 1."
        },
    )
    count_exponent: float | None = field(
        default=None,
        metadata={
            "help": "Draw m masked tokens in proportion to m^-count_exponent, with exact weights, in plan=stratified, "
            f"balanced and nested. 0: uniform. None: {COUNT_EXPONENT}."
        },
    )
    control: float = field(default=1.0, metadata={"help": "Control-variate coefficient of plan=nested, 0 to 1."})
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
    router_aux_loss_coef: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the load-balancing loss of a mixture of experts' routers, a mean over the tokens of all "
            "passes with a gradient, so that it does not depend on the number of draws. 0: not computed."
        },
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

    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Kept False: columns carry the example id."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Kept False: it would hide a NaN."})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "All parameters are used."})
    ddp_broadcast_buffers: bool | None = field(default=False, metadata={"help": "No buffer changes in training."})

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        assert self.output_dir is not None
        return Path(self.output_dir)

    def __post_init__(self) -> None:
        self.use_cpu = self.use_cpu or not _usable_accelerator()  # else bf16 is refused on a CPU
        super().__post_init__()
        if self.remove_unused_columns or self.logging_nan_inf_filter:
            raise ValueError("remove_unused_columns and logging_nan_inf_filter must stay False")
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.cuda.is_available()
        if self.router_aux_loss_coef < 0:
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
        for name in ("num_times", "eval_num_times"):  # refuses a bad plan before anything is loaded
            try:
                self.sampling_plan(getattr(self, name))
            except ValueError as error:
                raise ValueError(f"{name} = {getattr(self, name)}: {error}") from error

    def training_plan(self, block_size: int | None = None) -> Plan:
        """The plan of a training step."""
        return self.sampling_plan(self.num_times, block_size)

    def sampling_plan(self, num_times: int, block_size: int | None = None) -> Plan:
        """The plan by its configured name, with `num_times` masking levels.

        Args:
            block_size: of the model that it is for, if that is a block diffusion model: the plan is then of each block.
        """
        return within_blocks(self._named_plan(num_times), block_size)

    def _named_plan(self, num_times: int) -> Plan:
        self._check_plan_fields()
        match self.plan:
            case "fixed_count":
                return FixedCount(num_times, self.num_masks)
            case "bernoulli":
                assert self.t_min is not None
                return Bernoulli(self.t_min, num_times, self.num_masks)
            case "stratified":
                return IndependentMasks(self._levels(num_times))
            case "balanced":
                return BalancedMasks(self._levels(num_times))
            case "nested":
                return NestedMasks(self._levels(num_times), self.control)
            case _:
                return Complementary(num_times)

    @property
    def has_levels(self) -> bool:
        """Whether the plan has groups and a law of counts to choose."""
        return "count_exponent" in _PLAN_FIELDS[self.plan]

    def _levels(self, num_times: int) -> Levels:
        groups = automatic_groups(num_times) if self.num_groups is None else self.num_groups
        exponent = COUNT_EXPONENT if self.count_exponent is None else self.count_exponent
        return Levels(num_times, groups, exponent)

    def _check_plan_fields(self) -> None:
        if self.plan not in _PLAN_FIELDS:
            raise ValueError(f"plan must be one of {', '.join(_PLAN_FIELDS)}, not {self.plan!r}")
        for name, neutral in _NEUTRAL.items():
            if name not in _PLAN_FIELDS[self.plan] and getattr(self, name) != neutral:
                owners = " or ".join(plan for plan, fields in _PLAN_FIELDS.items() if name in fields)
                raise ValueError(f"{name} belongs to plan={owners}; plan={self.plan} has none")
        if self.plan == "bernoulli" and self.t_min is None:
            raise ValueError("plan=bernoulli needs t_min: without it the estimate has infinite variance")


def automatic_groups(num_times: int) -> int:
    """The smallest number of equal groups that is above 1 and leaves each at least two draws; 1 if there is none."""
    return next((groups for groups in range(2, num_times // 2 + 1) if num_times % groups == 0), 1)


def _usable_accelerator() -> bool:
    """Whether there is an accelerator that has float64, in which bounds are summed; Apple's has not."""
    return torch.accelerator.is_available() and str(torch.accelerator.current_accelerator()) != "mps"


@dataclass
class SFTConfig(DiffusionConfig):
    """Masked-diffusion supervised fine-tuning, and pretraining from scratch (rows with a `text` field)."""

    chunk_text: bool = field(
        default=True, metadata={"help": "Rows with a text field: cut into pieces of max_length instead of truncating."}
    )

    def objective(self) -> Objective:
        return SFT()


@dataclass
class VRPOConfig(DiffusionConfig):
    """Preference optimisation on likelihood bounds; shaped like TRL's DPOConfig."""

    learning_rate: float = field(default=5e-7, metadata={"help": "Peak learning rate (the paper's)."})
    beta: float = field(default=0.2, metadata={"help": "Inverse temperature, on scores SUMMED over tokens."})
    loss_type: str = field(default="sigmoid", metadata={"help": "The preference loss, by TRL's name: sigmoid (DPO)."})
    sft_coef: float = field(
        default=0.0, metadata={"help": "Weight of the SFT loss on the chosen answer (0.05 in the paper)."}
    )
    plan: str = field(
        default="balanced",
        metadata={
            "help": "How masks are drawn: balanced, the quietest we have measured; fixed_count, the paper's; "
            "stratified, nested, complementary, or bernoulli (needs t_min)."
        },
    )
    num_times: int = field(default=8, metadata={"help": "Masking levels drawn per response; the paper's n."})
    num_draws: str | None = field(
        default=None,
        metadata={
            "help": "auto: values of 1.5 * num_times masking levels, gradients of some of them, most of them where the "
            "loss is steep; as much compute, on average, as num_times of which each has both. None: each has both."
        },
    )
    pair_coupling: str | None = field(
        default=None,
        metadata={
            "help": "What the draws of the two answers of a pair share: none; quantile (of the masked share); aligned "
            "(and masks on the tokens that they have in common). None: aligned, but none for plan=fixed_count, which "
            "is the paper's, and plan=bernoulli."
        },
    )
    max_tokens_per_forward: int | None = field(
        default=4096,
        metadata={
            "help": "Tokens, padding included, per call of the model: rows and draws of similar length share one. "
            "None: as many as one draw of every row of the batch."
        },
    )
    slope: str = field(
        default="plain",
        metadata={
            "help": "Where the slope of the loss is taken: plain, at the score of all draws; cross_fit, for each group "
            "of draws at that of the other groups; jackknife, corrected to first order. They differ in bias; variance "
            "relative to plain: cross_fit 0.88 to 1.15 at n = 2, 0.96 to 1.07 at n = 8; jackknife 1.09 to 1.25 and "
            "1.03 to 1.08 (benchmarks/table2_same_checkpoint)."
        },
    )
    gradient_passes: str = field(
        default="auto",
        metadata={
            "help": "How a step avoids holding all draws' graphs: two, values first and then a second forward pass of "
            "what does not fit into one; one, each row pushed back as it comes into a buffer of the trained "
            "parameters' size. Equal gradients. auto: neither for a batch whose draws fit into one call's budget "
            "together; else one for adapters, where the buffer is small, and two for all weights."
        },
    )
    precompute_ref_log_probs: bool = field(
        default=False,
        metadata={
            "help": "Compute the reference's terms once before training, keep them on disk and replay them: no second "
            "model and no reference pass in a step. Every epoch then sees the same draws of a pair."
        },
    )
    ref_terms_dir: str | None = field(
        default=None,
        metadata={"help": "Where these terms are kept, for other runs too. None: output_dir/reference_terms."},
    )
    share_draws: bool = field(
        default=True,
        metadata={"help": "Policy and reference see the same draws. False, for comparison only: independent ones."},
    )
    warn_displacement: bool = field(
        default=True, metadata={"help": "Warn when the bound of the chosen answers falls below the reference's."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss_type != "sigmoid":
            raise ValueError(f"loss_type must be sigmoid (DPO on bounds); {self.loss_type!r} is not offered yet")
        if self.sft_coef < 0:
            raise ValueError(f"sft_coef must not be negative, not {self.sft_coef}")
        self.objective()
        if self.gradient_passes not in ("auto", "one", "two"):
            raise ValueError(f"gradient_passes must be auto, one or two, not {self.gradient_passes!r}")
        if self.gradient_passes == "one" and self.num_draws == "auto":
            raise ValueError("gradient_passes=one knows no slope before its backward, which num_draws=auto decides by")
        if self.gradient_passes == "one" and self.router_aux_loss_coef:
            raise ValueError(
                "gradient_passes=one multiplies gradients by slopes afterwards, and the routers' loss has none: leave "
                "it out with router_aux_loss_coef"
            )
        if self.precompute_ref_log_probs and not self.share_draws:
            raise ValueError("precompute_ref_log_probs replays the policy's draws, which share_draws=false has not")
        if self.ref_terms_dir is not None and not self.precompute_ref_log_probs:
            raise ValueError("ref_terms_dir goes with precompute_ref_log_probs, which is off")
        if self.gradient_passes == "one" and not self.share_draws:
            raise ValueError("gradient_passes=one goes with shared draws only: leave it out with share_draws=false")
        if self.num_draws not in (None, "auto"):
            raise ValueError(f"num_draws must be auto, or left out; not {self.num_draws!r} (for a number: num_times)")
        try:
            self.training_plan()
        except ValueError as error:
            raise ValueError(f"num_draws = {self.num_draws} (3/2 of num_times = {self.num_times}): {error}") from error
        self.training_objective()

    def one_pass(self, *, small: bool) -> bool:
        """Whether a step pushes each row back as it comes (`preference.backward_in_one_pass`), where the trained
        parameters are few. A function of the configuration, so that processes agree on it without a word."""
        if self.gradient_passes != "auto":
            return self.gradient_passes == "one"
        several = self.num_times * self.num_masks > 1 or self.max_tokens_per_forward is not None
        possible = self.num_draws != "auto" and self.share_draws and not self.fp16 and not self.router_aux_loss_coef
        return small and several and possible

    def training_plan(self, block_size: int | None = None) -> Plan:
        """The plan of a training step; with num_draws=auto, of the values of a step."""
        times = auto_times(self.num_times) if self.num_draws == "auto" else self.num_times
        return self.sampling_plan(times, block_size)

    def sampling_plan(self, num_times: int, block_size: int | None = None) -> Plan:
        """The plan by its configured name, with `num_times` masking levels, coupled as configured."""
        plan, coupling = super().sampling_plan(num_times, block_size), self.pair_coupling
        if coupling is None:
            coupling = "none" if self.plan in ("fixed_count", "bernoulli") else "aligned"
        if coupling not in _COUPLINGS:
            raise ValueError(f"pair_coupling must be one of {', '.join(_COUPLINGS)}, not {coupling!r}")
        return plan if coupling == "none" else Paired(plan, align=coupling == "aligned")

    @property
    def terms_folder(self) -> Path:
        """Where precomputed reference terms are."""
        return self.folder / "reference_terms" if self.ref_terms_dir is None else Path(self.ref_terms_dir)

    def training_objective(self) -> Objective:
        """The objective with its slope where `slope` says; evaluations use `objective`.

        Raises:
            ValueError: the plan's draws form one group, of which nothing is left without it.
        """
        if self.slope not in _SLOPES:
            raise ValueError(f"slope must be one of {', '.join(_SLOPES)}, not {self.slope!r}")
        if self.slope == "plain":
            return self.objective()
        groups = self._training_groups()
        if groups < 2:
            raise ValueError(f"slope={self.slope} needs independent groups of draws: raise num_times, or num_groups")
        return _SLOPES[self.slope](self.objective(), groups)

    def _training_groups(self) -> int:
        """Independent groups of draws that a training step's plan makes of an answer."""
        times = auto_times(self.num_times) if self.num_draws == "auto" else self.num_times
        if self.plan == "complementary":
            return times // 2
        return self._levels(times).num_groups if self.has_levels else times

    def objective(self) -> Objective:
        parts: list[tuple[float, Any]] = [(1.0, DPO(self.beta))]
        if self.sft_coef:
            parts.append((self.sft_coef, SFT()))
        return WeightedSum(tuple(parts))
