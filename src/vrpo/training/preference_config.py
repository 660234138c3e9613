"""What a user can set of preference training: `DiffusionConfig`, the objective, and how gradients are made."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vrpo.coupling import Paired
from vrpo.losses.corrections import CrossFit, Jackknife
from vrpo.losses.objective import Objective
from vrpo.training.config import DiffusionConfig, check_types
from vrpo.training.objectives import ObjectiveConfig
from vrpo.types import Plan

_COUPLINGS = ("none", "quantile", "aligned")
_SLOPES: dict[str, Any] = {"plain": None, "cross_fit": CrossFit, "jackknife": Jackknife, "halves": Jackknife}
MIXUP_ALPHA, SYNC_STEPS = 0.6, 512  # TRL's
_UNCOUPLED = ("fixed_count", "bernoulli", "exact")  # plans that share nothing between answers by default


@dataclass
class VRPOConfig(ObjectiveConfig, DiffusionConfig):
    """Preference optimisation on likelihood bounds; shaped like TRL's DPOConfig."""

    learning_rate: float = field(default=5e-7, metadata={"help": "Peak learning rate (the paper's)."})
    plan: str = field(
        default="balanced",
        metadata={
            "help": "How masks are drawn: balanced, the quietest we have measured; fixed_count, the paper's; "
            "stratified, or bernoulli (needs t_min); exact, of a causal language model."
        },
    )
    num_times: int = field(default=8, metadata={"help": "Masking levels drawn per response; the paper's n."})
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
            "of draws at that of the other groups; jackknife, corrected to first order (of ipo_sum, exactly); halves, "
            "jackknife of two halves of the draws (of ipo_sum, the product of both). They differ in bias; variance "
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
    sync_ref_model: bool = field(
        default=False,
        metadata={"help": "Move the reference towards the policy during training (TR-DPO); all weights are trained."},
    )
    ref_model_mixup_alpha: float = field(
        default=MIXUP_ALPHA,
        metadata={"help": "Its new weights: alpha * the policy's + (1 - alpha) * its own. 1: those of the policy."},
    )
    ref_model_sync_steps: int = field(
        default=SYNC_STEPS, metadata={"help": "Optimizer steps from one such move to the next."}
    )
    share_draws: bool = field(
        default=True,
        metadata={"help": "Policy and reference see the same draws. False, for comparison only: independent ones."},
    )
    warn_displacement: bool = field(
        default=True, metadata={"help": "Warn when the bound of the chosen answers falls below the reference's."}
    )

    def __post_init__(self) -> None:
        check_types(self)
        self.check_objective()
        super().__post_init__()
        self._check_together()
        self._check_moving()
        if self.gradient_passes not in ("auto", "one", "two"):
            raise ValueError(f"gradient_passes must be auto, one or two, not {self.gradient_passes!r}")
        if self.gradient_passes == "one" and self.router_aux_loss_coef:
            raise ValueError(
                "gradient_passes=one multiplies gradients by slopes afterwards, and the routers' loss has none: leave "
                "it out with router_aux_loss_coef"
            )
        if self.gradient_passes == "one" and self.reentrant:
            raise ValueError(
                "gradient_passes=one gets no gradients from gradient_checkpointing_kwargs with use_reentrant: set that "
                "to false, or take two passes"
            )
        if self.precompute_ref_log_probs and not self.share_draws:
            raise ValueError("precompute_ref_log_probs replays the policy's draws, which share_draws=false has not")
        if self.ref_terms_dir is not None and not self.precompute_ref_log_probs:
            raise ValueError("ref_terms_dir goes with precompute_ref_log_probs, which is off")
        if self.gradient_passes == "one" and not self.share_draws:
            raise ValueError("gradient_passes=one goes with shared draws only: leave it out with share_draws=false")
        self.training_objective()

    def _check_together(self) -> None:
        """
        Raises:
            ValueError: a loss and a way to draw or to spend that do not go together.
        """
        names = [name for _, name in self.losses]
        if "kto" in names and self.gradient_passes == "one":
            raise ValueError("gradient_passes=one: kto's baseline couples all rows of a batch; leave it out")
        if "orpo" in names and self.slope in ("jackknife", "halves"):
            raise ValueError("orpo takes odds of a likelihood, and jackknife and halves subtract its losses: set slope "
                             "to plain or cross_fit")  # fmt: skip
        if self.plan == "exact" and not self.share_draws:
            raise ValueError("plan=exact draws nothing: leave out share_draws=false")
        if self.plan == "exact" and self.pair_coupling not in (None, "none"):
            raise ValueError("plan=exact draws nothing that pair_coupling could share: leave it out")
        if not self.compares and not self.share_draws:
            raise ValueError("share_draws=false is about a reference's draws, and there is no reference")
        if not self.compares and self.precompute_ref_log_probs:
            raise ValueError("precompute_ref_log_probs computes a reference's terms, and there is no reference")

    def _check_moving(self) -> None:
        """
        Raises:
            ValueError: a reference that moves, and fields that it does not go with.
        """
        given = {"ref_model_mixup_alpha": MIXUP_ALPHA, "ref_model_sync_steps": SYNC_STEPS}
        changed = [name for name, neutral in given.items() if getattr(self, name) != neutral]
        if changed and not self.sync_ref_model:
            raise ValueError(f"{changed[0]} belongs to sync_ref_model, which is off")
        if not self.sync_ref_model:
            return
        if not self.compares:
            raise ValueError("sync_ref_model moves a reference, and there is none")
        if self.ref_pool is not None:
            raise ValueError("sync_ref_model moves the one reference: not with ref_pool, which is about several")
        if self.precompute_ref_log_probs:
            raise ValueError("precompute_ref_log_probs replays the terms of a reference that sync_ref_model would move")
        if not 0 < self.ref_model_mixup_alpha <= 1:
            raise ValueError(f"ref_model_mixup_alpha must lie in (0, 1], not {self.ref_model_mixup_alpha}")
        if self.ref_model_sync_steps < 1:
            raise ValueError(f"ref_model_sync_steps must be at least 1, not {self.ref_model_sync_steps}")

    def one_pass(self, *, small: bool) -> bool:
        """Whether a step pushes each row back as it comes (`preference.backward_in_one_pass`), where the trained
        parameters are few. A function of the configuration, so that processes agree on it without a word."""
        if self.gradient_passes != "auto":
            return self.gradient_passes == "one"
        several = self.num_times * self.num_masks > 1 or self.max_tokens_per_forward is not None
        possible = self.share_draws and not self.fp16 and not self.router_aux_loss_coef and not self.reentrant
        possible &= self.structure != "labels"  # whose rows are all one family, with a buffer each
        return small and several and possible

    def training_plan(self, block_size: int | None = None, structure: str | None = None) -> Plan:
        """The plan of a training step. `structure`: as in `sampling_plan`."""
        return self.sampling_plan(self.num_times, block_size, structure)

    def sampling_plan(self, num_times: int, block_size: int | None = None, structure: str | None = None) -> Plan:
        """The plan by its configured name, with `num_times` masking levels, coupled as configured.

        Args:
            structure: what the loss is about in the data at hand: pairs, rankings or labels. None: `self.structure`,
                as a loss of pairs has it with a data set of pairs.
        """
        plan, coupling = super().sampling_plan(num_times, block_size), self.pair_coupling
        paired = (structure or self.structure) == "pairs"
        if coupling is None:
            coupling = "none" if self.plan in _UNCOUPLED or not paired else "aligned"
        if coupling not in _COUPLINGS:
            raise ValueError(f"pair_coupling must be one of {', '.join(_COUPLINGS)}, not {coupling!r}")
        if coupling != "none" and not paired:
            raise ValueError(
                f"pair_coupling={coupling} couples the two answers of a pair: leave it out with kto, plackett_luce and "
                "ranked rows"
            )
        return plan if coupling == "none" else Paired(plan, align=coupling == "aligned")

    @property
    def terms_folder(self) -> Path:
        """Where precomputed reference terms are."""
        return self.folder / "reference_terms" if self.ref_terms_dir is None else Path(self.ref_terms_dir)

    def training_objective(self, references: int = 1, over_processes: Any = None) -> Objective:
        """The objective with its slope where `slope` says; evaluations use `objective`.

        Raises:
            ValueError: the plan's draws form one group, of which nothing is left without it.
        """
        if self.slope not in _SLOPES:
            raise ValueError(f"slope must be one of {', '.join(_SLOPES)}, not {self.slope!r}")
        if self.slope == "plain":
            return self.objective(references, over_processes)
        groups = self._training_groups()
        if groups < 2:
            raise ValueError(f"slope={self.slope} needs independent groups of draws: raise num_times, or num_groups")
        if self.slope == "halves" and groups % 2:
            raise ValueError(f"slope=halves needs an even number of independent groups of draws, not {groups}")
        return _SLOPES[self.slope](self.objective(references, over_processes), 2 if self.slope == "halves" else groups)

    def _training_groups(self) -> int:
        """Independent groups of draws that a training step's plan makes of an answer."""
        if self.plan == "exact":
            return 1
        return self._levels(self.num_times).num_groups if self.has_levels else self.num_times
