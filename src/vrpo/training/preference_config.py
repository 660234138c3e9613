"""What a user can set of preference training: `DiffusionConfig`, the objective, and how gradients are made."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vrpo.losses.named import LOSSES
from vrpo.training.config import DiffusionConfig, check_types
from vrpo.training.recipe import BETA, Kind, Recipe, Sum, compares, losses_of, preference_recipe, structure_of_losses

MIXUP_ALPHA, SYNC_STEPS = 0.6, 512  # TRL's
_OFF = {  # fields that another one, which is off, has
    "ref_terms_dir": (None, "precompute_ref_log_probs"),
    "ref_model_mixup_alpha": (MIXUP_ALPHA, "sync_ref_model"),
    "ref_model_sync_steps": (SYNC_STEPS, "sync_ref_model"),
}


@dataclass
class VRPOConfig(DiffusionConfig):
    """Preference optimisation on likelihood bounds; shaped like TRL's DPOConfig."""

    loss_type: list[str] | str = field(
        default_factory=lambda: ["sigmoid"],
        metadata={
            "help": f"One preference loss or several, by TRL's names where it has one: {', '.join(LOSSES)}, sft."
        },
    )
    loss_weights: list[float] | None = field(
        default=None, metadata={"help": "Weight of each loss in loss_type. None: 1 each."}
    )
    loss_kwargs: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "The losses' own parameters that have no field, as JSON, or as a mapping in YAML. dmpo_rkl: "
            "epsilon (0.01), the share of wrong labels that it assumes. kto: baseline, what it compares with: "
            "mismatched, answers to other prompts, one more row each (TRL's); or batch_mean, the batch itself."
        },
    )
    beta: float = field(
        default=BETA,
        metadata={
            "help": "Inverse temperature, on scores SUMMED over tokens; of ipo, simpo and orpo, on means per token: "
            "about 0.1 (its tau), 2 and 0.1 (its lambda)."
        },
    )
    label_smoothing: float = field(
        default=0.0,
        metadata={"help": "Share of wrong labels that sigmoid, robust and exo_pair assume. exo_pair: 0 means 0.001."},
    )
    simpo_gamma: float = field(default=0.5, metadata={"help": "Target margin of simpo, after beta."})
    desirable_weight: float = field(default=1.0, metadata={"help": "Weight of desirable answers in kto."})
    undesirable_weight: float = field(default=1.0, metadata={"help": "Weight of undesirable answers in kto."})
    sft_coef: float = field(
        default=0.0,
        metadata={"help": "Weight of the SFT loss on the chosen answer (0.05 in the paper), as loss_type sft has one."},
    )
    temperature: str | Callable[..., Any] = field(
        default="constant",
        metadata={
            "help": "What beta is: constant; or reward_scaling, larger for pairs with surer rewards (MM-RLHF). In "
            "Python also a function from vrpo.Pairs (or Rankings, Labels) to the beta of each."
        },
    )
    temperature_kwargs: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Parameters of reward_scaling, as JSON, or as a mapping in YAML: scale (needed), the difference of "
            "rewards that counts as 1; w (0.5), beta grows to at most (1 + w) * beta; k (0.5), how fast."
        },
    )
    reference_free: bool = field(
        default=False, metadata={"help": "No reference: bounds instead of log-ratios. simpo and orpo never have one."}
    )
    ref_pool: str | None = field(
        default=None,
        metadata={
            "help": "What several references are to the loss: harmonic (MRPO), geometric, or mixture (the losses "
            "against each, multi-DPO)."
        },
    )
    ref_pool_kwargs: dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Its parameters, as JSON, or as a mapping in YAML: weights, numbers that add up to 1 (equal ones), "
            "or arwc, for each pair by how much a reference tells its answers apart; clip (CTRO), how far, relatively, "
            "the bounds of further references may be from the first's. mixture: weights only, as numbers."
        },
    )
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
        metadata={"help": "Where these terms are kept, for other runs too. None: output_dir/_reference_terms."},
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
        self.loss_type = [self.loss_type] if isinstance(self.loss_type, str) else list(self.loss_type)
        super().__post_init__()
        if self.gradient_passes not in ("auto", "one", "two"):
            raise ValueError(f"gradient_passes must be auto, one or two, not {self.gradient_passes!r}")
        for name, (default, owner) in _OFF.items():
            if getattr(self, name) != default and not getattr(self, owner):
                raise ValueError(f"{name} goes with {owner}, which is off")
        for wrong, what in self._contradictions().items():
            if what:
                raise ValueError(wrong)

    def _contradictions(self) -> dict[str, bool]:
        """What does not go together, by what is said of it."""
        one, known, moving = self.gradient_passes == "one", self.precompute_ref_log_probs, self.sync_ref_model
        alone, unshared = not self.compares, not self.share_draws
        return {
            "gradient_passes=one: kto's baseline couples all rows of a batch. Leave it out": (
                one and self.structure == "labels"
            ),
            "gradient_passes=one multiplies gradients by slopes afterwards, and the routers' loss has none. Leave it "
            "out with router_aux_loss_coef": one and bool(self.router_aux_loss_coef),
            "gradient_passes=one gets no gradients from gradient_checkpointing_kwargs with use_reentrant. Set that to "
            "false, or take two passes": one and self.reentrant,
            "gradient_passes=one goes with shared draws only. Leave it out with share_draws=false": one and unshared,
            "share_draws=false: plan=exact draws nothing. Leave it out": unshared and self.plan == "exact",
            "share_draws=false is about a reference's draws, and there is no reference": unshared and alone,
            "precompute_ref_log_probs computes a reference's terms, and there is no reference": known and alone,
            "precompute_ref_log_probs replays the policy's draws, which share_draws=false has not": known and unshared,
            "precompute_ref_log_probs replays the terms of a reference that sync_ref_model would move": known
            and moving,
            "sync_ref_model moves a reference, and there is none": moving and alone,
            "sync_ref_model moves the one reference: not with ref_pool, which is about several": (
                moving and self.ref_pool is not None
            ),
            f"ref_model_mixup_alpha must lie in (0, 1], not {self.ref_model_mixup_alpha}": (
                not 0 < self.ref_model_mixup_alpha <= 1
            ),
            f"ref_model_sync_steps must be at least 1, not {self.ref_model_sync_steps}": self.ref_model_sync_steps < 1,
        }

    @property
    def losses(self) -> list[tuple[float, str]]:
        """Weight and name of each loss; sft_coef is one of them."""
        return losses_of(self)

    @property
    def structure(self) -> Literal["pairs", "labels", "rankings"]:
        """What the losses are about: pairs, labels or rankings. Losses of pairs take rankings, too."""
        return structure_of_losses(self)

    @property
    def compares(self) -> bool:
        """Whether there is a reference."""
        return compares(self)

    def make_recipe(
        self, block_size: int | None = None, kind: Kind | None = None, over_processes: Sum | None = None
    ) -> Recipe:
        """What the run is: `recipe.preference_recipe`."""
        return preference_recipe(self, kind, block_size, over_processes)

    def one_pass(self, *, small: bool) -> bool:
        """Whether a step pushes each row back as it comes (`preference.backward_in_one_pass`), where the trained
        parameters are few. A function of the configuration, so that processes agree on it without a word."""
        if self.gradient_passes != "auto":
            return self.gradient_passes == "one"
        several = self.num_draws > 1 or self.max_tokens_per_forward is not None
        possible = self.share_draws and not self.fp16 and not self.router_aux_loss_coef and not self.reentrant
        possible &= self.structure != "labels"  # whose rows are all one family, with a buffer each
        return small and several and possible

    @property
    def num_draws(self) -> int:
        """Draws of each answer in a training step."""
        return self.num_times * int((self.plan_kwargs or {}).get("num_masks", 1))

    @property
    def terms_folder(self) -> Path:
        """Where precomputed reference terms are. transformers uploads nothing whose name begins with a line."""
        return self.folder / "_reference_terms" if self.ref_terms_dir is None else Path(self.ref_terms_dir)
