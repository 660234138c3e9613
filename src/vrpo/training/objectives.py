"""Which preference loss: the fields that say it, which go together, and the objective that they mean.

What is checked here is checked before anything is loaded. What deliberately does not live here: formulas (losses.py,
pools.py, temperature.py), where reference models come from (training/references.py).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from vrpo.losses.objective import ItemObjective, Mixture, WeightedSum
from vrpo.losses.pairwise import IPO, ORPO, APODown, APOZero, Hinge, PairLoss, Preference, ReverseKL, Robust, Sigmoid
from vrpo.losses.pools import SINGLE, Confidence, Fixed, Pool, Pooled, ReferenceFree, geometric, harmonic
from vrpo.losses.setwise import KTO, SFT, PlackettLuce
from vrpo.losses.temperature import Constant, Custom, RewardScaling, Temperature
from vrpo.training.config import name_of


@dataclass(frozen=True)
class _Loss:
    """How a loss of pairs is made of the configuration, which fields it owns, and what it is a function of;
    `against_zero`: it compares the log-ratio of a single answer with 0."""

    make: Callable[["ObjectiveConfig"], PairLoss]
    fields: tuple[str, ...] = ()
    per_token: bool = False
    reference: bool = True
    against_zero: bool = False


_PAIR_LOSSES = {
    "sigmoid": _Loss(lambda config: Sigmoid(config.label_smoothing), ("label_smoothing",)),
    "robust": _Loss(lambda config: Robust(config.label_smoothing), ("label_smoothing",)),
    "ipo": _Loss(lambda config: IPO(), per_token=True),
    "ipo_sum": _Loss(lambda config: IPO()),
    "hinge": _Loss(lambda config: Hinge()),
    "simpo": _Loss(lambda config: Sigmoid(gamma=config.simpo_gamma), ("simpo_gamma",), per_token=True, reference=False),
    "orpo": _Loss(lambda config: ORPO(), per_token=True, reference=False),
    "apo_zero": _Loss(lambda config: APOZero(), against_zero=True),
    "apo_down": _Loss(lambda config: APODown(), against_zero=True),
    "exo_pair": _Loss(lambda config: ReverseKL(config.label_smoothing), ("label_smoothing",)),
    "dmpo_rkl": _Loss(lambda config: ReverseKL(config.dmpo_alpha), ("dmpo_alpha",)),
}
_KTO_FIELDS = ("desirable_weight", "undesirable_weight", "kto_baseline")
_NEUTRAL = {  # of fields that belong to some losses only
    "label_smoothing": 0.0,
    "simpo_gamma": 0.5,
    "dmpo_alpha": 0.01,
    "desirable_weight": 1.0,
    "undesirable_weight": 1.0,
    "kto_baseline": "mismatched",
}
_NOT_OFFERED = {  # losses of TRL's trainers, and why they are not here
    "alphapo": "its reward is a power of the likelihood, which a bound in nats cannot stand for",
    "aot": "it sorts the margins of a batch, so that a pair's loss depends on its neighbours",
    "aot_unpaired": "it sorts the ratios of a batch, so that a pair's loss depends on its neighbours",
    "apo_zero_unpaired": "apo_zero looks at each answer by itself already",
    "bco_pair": "it looks at each answer by itself, as apo_zero and kto do; the shift of its paper is a running mean "
    "over steps, which no draw can replay",
    "discopop": "a formula found by search, not convex, whose value overflows at large margins",
    "kto_pair": "kto takes pairs apart by itself",
    "nca_pair": "apo_zero is the offered loss that looks at each answer by itself",
    "sigmoid_norm": "set loss_type to ipo or simpo, which are per token, or lower beta",
    "sppo_hard": "ipo_sum is the offered squared loss, and its noise can be removed exactly",
}
BETA = 0.2  # the paper's
LOSSES = (*_PAIR_LOSSES, "kto", "plackett_luce", "sft")
_POOLS: dict[str, Any] = {"harmonic": harmonic, "geometric": geometric, "mixture": None}
_SEVERAL = {"ref_pool": None, "ref_weights": None, "ref_weighting": "fixed", "ref_clip": None}
_SCALING = {"reward_scale": None, "reward_scaling_w": 0.5, "reward_scaling_k": 0.5}


@dataclass
class ObjectiveConfig:
    """Fields of the preference objective: loss, temperature, references."""

    loss_type: list[str] | str = field(
        default_factory=lambda: ["sigmoid"],
        metadata={"help": f"One preference loss or several, by TRL's names where it has one: {', '.join(LOSSES)}."},
    )
    loss_weights: list[float] | None = field(
        default=None, metadata={"help": "Weight of each loss in loss_type. None: 1 each."}
    )
    beta: float = field(
        default=BETA,
        metadata={
            "help": "Inverse temperature, on scores SUMMED over tokens; of ipo, simpo and orpo, on means per token: "
            "about 0.1 (its tau), 2 and 0.1 (its lambda)."
        },
    )
    label_smoothing: float = field(
        default=0.0, metadata={"help": "Share of wrong labels that sigmoid, robust and exo_pair assume."}
    )
    simpo_gamma: float = field(default=0.5, metadata={"help": "Target margin of simpo, after beta."})
    dmpo_alpha: float = field(default=0.01, metadata={"help": "Share of wrong labels that dmpo_rkl assumes."})
    desirable_weight: float = field(default=1.0, metadata={"help": "Weight of desirable answers in kto."})
    undesirable_weight: float = field(default=1.0, metadata={"help": "Weight of undesirable answers in kto."})
    kto_baseline: str = field(
        default="mismatched",
        metadata={
            "help": "What kto compares with: mismatched, answers to other prompts, one more row each "
            "(TRL's); batch_mean, the batch itself (ELBO-KTO)."
        },
    )
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
    reward_scale: float | None = field(
        default=None,
        metadata={"help": "Difference of rewards that counts as 1 in reward_scaling, in the rewards' own units."},
    )
    reward_scaling_w: float = field(
        default=0.5, metadata={"help": "reward_scaling: beta grows to at most (1 + w) * beta."}
    )
    reward_scaling_k: float = field(default=0.5, metadata={"help": "reward_scaling: how fast it grows."})
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
    ref_weights: list[float] | None = field(
        default=None, metadata={"help": "Weights of the references, adding up to 1. None: equal ones."}
    )
    ref_weighting: str = field(
        default="fixed",
        metadata={"help": "fixed; or arwc, for each pair by how much a reference tells its answers apart."},
    )
    ref_clip: float | None = field(
        default=None,
        metadata={"help": "CTRO: how far, relatively, the bounds of further references may be from the first's; 0.1."},
    )

    def check_objective(self) -> None:
        """
        Raises:
            ValueError: fields that do not go together, or a loss that is not offered, with the reason.
        """
        self.loss_type = [self.loss_type] if isinstance(self.loss_type, str) else list(self.loss_type)
        self._check_losses(self.loss_type)
        self._check_owned(self.loss_type)
        self._check_temperature()
        self._check_references()
        self.objective(self._assumed_references)

    @property
    def losses(self) -> list[tuple[float, str]]:
        """Weight and name of each loss; sft_coef is one of them."""
        names = [self.loss_type] if isinstance(self.loss_type, str) else self.loss_type
        weights = [1.0] * len(names) if self.loss_weights is None else self.loss_weights
        return [*zip(weights, names, strict=True), *([(self.sft_coef, "sft")] if self.sft_coef else [])]

    @property
    def structure(self) -> Literal["pairs", "labels", "rankings"]:
        """What the losses are about: pairs, labels or rankings. Losses of pairs take rankings, too."""
        names = {name for _, name in self.losses}
        return "labels" if "kto" in names else "rankings" if "plackett_luce" in names else "pairs"

    @property
    def compares(self) -> bool:
        """Whether there is a reference."""
        needed = any(_PAIR_LOSSES[name].reference if name in _PAIR_LOSSES else name != "sft" for _, name in self.losses)
        return needed and not self.reference_free

    def objective(self, references: int = 1, over_processes: Callable[[Tensor], Tensor] | None = None) -> WeightedSum:
        """The objective for so many references, each loss with its weight.

        Args:
            over_processes: as in `losses.KTO`.
        """
        return WeightedSum(
            tuple((weight, self._part(name, references, over_processes)) for weight, name in self.losses)
        )

    def judged(
        self, references: int = 1, over_processes: Callable[[Tensor], Tensor] | None = None
    ) -> Preference | KTO | PlackettLuce:
        """The first loss that prefers something: what metrics call the reward is its. Of a mixture of losses, it is the
        mean of the log-ratios to the references, by their weights."""
        name = next(name for _, name in self.losses if name != "sft")
        pool = self._pool(name, references)
        if self.ref_pool == "mixture" and pool is SINGLE:
            pool = Pooled(geometric, self._weights(references))
        return self._preference(name, pool, over_processes)

    def _part(
        self, name: str, references: int, over_processes: Callable[[Float[Tensor, " 2"]], Float[Tensor, " 2"]] | None
    ) -> ItemObjective:
        if name == "sft":
            return SFT()
        part = self._preference(name, self._pool(name, references), over_processes)
        if self.ref_pool == "mixture" and (name not in _PAIR_LOSSES or _PAIR_LOSSES[name].reference):
            return Mixture(part, self._weights(references).weights)
        return part

    def _preference(self, name: str, pool: Pool, over_processes: Any) -> Preference | KTO | PlackettLuce:
        temperature = self.inverse_temperature()
        if name == "kto":
            fields: dict[str, Any] = {"baseline": self.kto_baseline}
            fields |= {} if over_processes is None else {"over_processes": over_processes}
            return KTO(temperature, pool, self.desirable_weight, self.undesirable_weight, **fields)
        if name == "plackett_luce":
            return PlackettLuce(temperature, pool)
        return Preference(_PAIR_LOSSES[name].make(self), temperature, pool, _PAIR_LOSSES[name].per_token)

    def inverse_temperature(self) -> Temperature:
        if self.temperature == "reward_scaling":
            assert self.reward_scale is not None
            return RewardScaling(self.beta, self.reward_scale, self.reward_scaling_w, self.reward_scaling_k)
        given: Any = self.temperature
        return Custom(given, name_of(given)) if callable(given) else Constant(self.beta)

    def _pool(self, name: str, references: int) -> Pool:
        if self.reference_free or (name in _PAIR_LOSSES and not _PAIR_LOSSES[name].reference):
            return ReferenceFree()
        if self.ref_pool in (None, "mixture"):
            return SINGLE
        weights = Confidence() if self.ref_weighting == "arwc" else self._weights(references)
        return Pooled(_POOLS[self.ref_pool], weights, self.ref_clip)

    def _weights(self, references: int) -> Fixed:
        return Fixed((1 / references,) * references if self.ref_weights is None else tuple(self.ref_weights))

    @property
    def _assumed_references(self) -> int:
        """A number of references that the fields admit, for a check before any is there."""
        return 1 if self.ref_pool is None else len(self.ref_weights or [0, 0])

    # Checks -----------------------------------------------------------------------------------------------------------

    def _check_losses(self, names: list[str]) -> None:
        for name in names:
            if name in _NOT_OFFERED:
                raise ValueError(f"loss_type {name!r} is not offered: {_NOT_OFFERED[name]}")
            if name not in LOSSES:
                raise ValueError(f"loss_type must be of {', '.join(LOSSES)}, not {name!r}")
        if not names or len(set(names)) < len(names):
            raise ValueError(f"loss_type must name one or more losses, each once, not {names}")
        if set(names) == {"sft"}:
            raise ValueError("loss_type sft alone prefers nothing: use vrpo sft, or name a preference loss beside it")
        if self.loss_weights is not None and len(self.loss_weights) != len(names):
            raise ValueError(f"loss_weights has {len(self.loss_weights)} weights for {len(names)} losses in loss_type")
        if self.loss_weights is not None and not all(0 <= weight < inf for weight in self.loss_weights):
            raise ValueError(f"loss_weights must not be negative, and finite, not {self.loss_weights}")
        if not 0 <= self.sft_coef < inf:
            raise ValueError(f"sft_coef must not be negative, and finite, not {self.sft_coef}")
        if not any(weight for weight, _ in self.losses):
            raise ValueError(f"loss_weights are {self.loss_weights}: nothing would be learnt")
        if self.sft_coef and "sft" in names:
            raise ValueError("sft_coef and loss_type sft are the same term: give its weight in one of them")
        if len({"labels" if name == "kto" else name for name in names if name in ("kto", "plackett_luce")}) and (
            len([name for name in names if name != "sft"]) > 1
        ):
            raise ValueError(
                "kto is about single labelled answers and plackett_luce about ranked lists: only sft goes beside them, "
                f"not {names}"
            )

    def _check_owned(self, names: list[str]) -> None:
        owners = {name: loss.fields for name, loss in _PAIR_LOSSES.items()} | {"kto": _KTO_FIELDS}
        owned = {each for name in names for each in owners.get(name, ())}
        for name, neutral in _NEUTRAL.items():
            if name not in owned and getattr(self, name) != neutral:
                having = " or ".join(loss for loss, fields in owners.items() if name in fields)
                raise ValueError(f"{name} belongs to loss_type {having}; {', '.join(names)} has none")

    def _against_zero(self, name: str) -> bool:
        """Whether a loss compares the log-ratio of a single answer with 0."""
        return (name in _PAIR_LOSSES and _PAIR_LOSSES[name].against_zero) or (
            name == "kto" and self.kto_baseline == "mismatched"
        )

    def _check_temperature(self) -> None:
        scaling = self.temperature == "reward_scaling"
        if scaling and self.structure != "pairs":
            raise ValueError("temperature=reward_scaling scales by the rewards of a pair's two answers: not with kto "
                             "and plackett_luce")  # fmt: skip
        if scaling and self.reward_scale is None:
            raise ValueError(
                "temperature=reward_scaling needs reward_scale, the difference of rewards that counts as 1: rewards "
                "have no unit of their own (MM-RLHF's range over several; a verifier's are 0 and 1)"
            )
        for name, neutral in _SCALING.items():
            if not scaling and getattr(self, name) != neutral:
                raise ValueError(f"{name} belongs to temperature=reward_scaling, which is {self.temperature}")
        if callable(self.temperature):
            if self.beta != BETA:
                raise ValueError("temperature is a function that gives each pair its beta: leave out beta")
        elif self.temperature not in ("constant", "reward_scaling"):
            raise ValueError(
                f"temperature must be constant or reward_scaling, or in Python a function, not {self.temperature!r}"
            )

    def _check_references(self) -> None:
        if self.ref_pool is not None and self.ref_pool not in _POOLS:
            raise ValueError(f"ref_pool must be one of {', '.join(_POOLS)}, not {self.ref_pool!r}")
        if self.ref_weighting not in ("fixed", "arwc"):
            raise ValueError(f"ref_weighting must be fixed or arwc, not {self.ref_weighting!r}")
        if self.reference_free and (alone := [name for _, name in self.losses if self._against_zero(name)]):
            other = ", or kto_baseline=batch_mean" if alone[0] == "kto" else ""
            raise ValueError(
                f"reference_free: {alone[0]} compares single log-ratios with 0, and a bound without a reference is so "
                f"far below 0 that this comparison has no slope: give a reference{other}"
            )
        for name, neutral in _SEVERAL.items():
            if getattr(self, name) == neutral:
                continue
            if not self.compares:
                raise ValueError(
                    f"{name} is about references, and {', '.join(n for _, n in self.losses)} has none here"
                )
            if self.ref_pool is None:
                raise ValueError(f"{name} goes with several references: say in ref_pool how they are put together")
        if self.ref_pool == "mixture" and (self.ref_weighting == "arwc" or self.ref_clip is not None):
            raise ValueError("ref_weighting=arwc and ref_clip are MRPO's: they go with ref_pool harmonic or geometric")
        if self.ref_weighting == "arwc" and self.ref_weights is not None:
            raise ValueError("ref_weighting=arwc makes the weights itself: leave out ref_weights")
        if self.ref_weighting == "arwc" and self.structure != "pairs":
            raise ValueError("ref_weighting=arwc compares the two answers of a pair: not with kto and plackett_luce")
