"""Every objective with a structure that it takes, on the same six rows: what the contract battery runs over."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from tests.build import Row, make_tokens, two_pairs
from vrpo.losses.objective import ItemObjective, Mixture, WeightedSum
from vrpo.losses.pairwise import DPO, IPO, ORPO, APODown, APOZero, Hinge, Preference, ReverseKL, Robust, Sigmoid
from vrpo.losses.pools import Confidence, Fixed, Pooled, ReferenceFree, geometric, harmonic
from vrpo.losses.setwise import KTO, SFT, PlackettLuce
from vrpo.losses.temperature import Constant, RewardScaling
from vrpo.structures import Labels, Rankings, Rows
from vrpo.types import Pairs, Terms

ROWS = [*two_pairs()[0], Row((0, 1), (1, 1, 0), 15), Row((2,), (2, 0), 16)]
TOKENS = make_tokens(ROWS, left=1, right=1)
LENGTH = TOKENS.length  # 3, 4, 2, 1, 3, 2
REWARD = torch.tensor([0.5, 3.0, 2.0, -1.0, 1.0, 4.0], dtype=torch.float64)

PAIRS = Pairs(torch.tensor([2, 1, 5]), torch.tensor([0, 3, 4]), LENGTH, None, REWARD)
WEIGHTED = replace(PAIRS, weight=torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64))
RANKINGS = Rankings(torch.tensor([[2, 0, 5, 4], [1, 3, -1, -1]]), LENGTH, torch.tensor([0.5, 2.0], dtype=torch.float64))
LABELS = Labels(
    torch.tensor([1, 0, 3]),
    torch.tensor([True, False, False]),
    torch.tensor([4, 5]),
    LENGTH,
    torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64),
)
Structures = Pairs | Rankings | Labels | Rows


def by_place(structure: Pairs | Rankings | Labels) -> Tensor:
    """A temperature of one's own: 0.1, 0.2, ... for the items in their order."""
    return 0.1 * torch.arange(1, 1 + len(structure.imitated), dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """An objective, what it is about, and how many references it takes.

    `shift`: what may be added to the bounds of both answers of a pair without any effect: "both", to policy and
    references alike; "policy", to the policy alone; "none".
    """

    objective: ItemObjective
    structure: Structures = PAIRS
    references: int = 1
    shift: str = "policy"


BETA = Constant(0.7)
MEAN = Constant(2.0)  # of losses per token
CASES: dict[str, Case] = {
    "dpo": Case(DPO(0.2)),
    "dpo-sharp": Case(DPO(3.0)),
    "dpo-weighted": Case(DPO(0.7), WEIGHTED),
    "dpo-lists": Case(DPO(0.7), RANKINGS),
    "cdpo": Case(Preference(Sigmoid(0.1), BETA)),
    "robust": Case(Preference(Robust(0.2), BETA)),
    "ipo": Case(Preference(IPO(), MEAN, per_token=True), shift="both"),
    "ipo_sum": Case(Preference(IPO(), BETA)),
    "ipo_sum-lists": Case(Preference(IPO(), BETA), RANKINGS),
    "hinge": Case(Preference(Hinge(), BETA)),
    "simpo": Case(Preference(Sigmoid(gamma=0.5), MEAN, ReferenceFree(), per_token=True), WEIGHTED, 0, "none"),
    "orpo": Case(Preference(ORPO(), MEAN, ReferenceFree(), per_token=True), PAIRS, 0, "none"),
    "apo_zero": Case(Preference(APOZero(), BETA), shift="both"),
    "apo_down": Case(Preference(APODown(), BETA), shift="both"),
    "exo_pair": Case(Preference(ReverseKL(0.1), BETA)),
    "dmpo_rkl": Case(Preference(ReverseKL(0.01), BETA), WEIGHTED),
    "dmpo_rkl-lists": Case(Preference(ReverseKL(0.01), BETA), RANKINGS),
    "reference-free": Case(Preference(Sigmoid(), BETA, ReferenceFree()), references=0),
    "scaled": Case(Preference(Sigmoid(), RewardScaling(0.7, 2.0))),
    "scaled-lists": Case(Preference(Hinge(), RewardScaling(0.7, 2.0)), replace(RANKINGS, reward=REWARD.flip(0))),
    "own-temperature": Case(Preference(APODown(), by_place), shift="both"),
    "mrpo": Case(Preference(Sigmoid(), BETA, Pooled(harmonic, Fixed((0.3, 0.7)))), references=2),
    "mrpo-arwc-ctro": Case(Preference(Sigmoid(), BETA, Pooled(harmonic, Confidence(), 0.1)), PAIRS, 3, "none"),
    "mrpo-arwc": Case(Preference(IPO(), BETA, Pooled(harmonic, Confidence())), PAIRS, 2),
    "geometric": Case(Preference(Sigmoid(), BETA, Pooled(geometric, Fixed((0.3, 0.7)))), WEIGHTED, 2),
    "multi-dpo": Case(Mixture(DPO(0.7), Fixed((0.2, 0.5, 0.3))), references=3),
    "plackett_luce": Case(PlackettLuce(BETA), RANKINGS),
    "plackett_luce-own": Case(PlackettLuce(by_place, Pooled(harmonic, Fixed((0.5, 0.5)))), RANKINGS, 2),
    "kto": Case(KTO(BETA, desirable_weight=1.3, undesirable_weight=0.8), LABELS, shift="both"),
    "kto-mean": Case(KTO(BETA, baseline="batch_mean"), replace(LABELS, weight=None), shift="both"),
    "multi-kto": Case(Mixture(KTO(BETA), Fixed((0.4, 0.6))), LABELS, 2, "both"),
    "sft": Case(SFT(), PAIRS, 0, "none"),
    "sft-rows": Case(SFT(), Rows(LENGTH), 0, "none"),
    "sft-lists": Case(SFT(), RANKINGS, 0, "none"),
    "sft-labels": Case(SFT(), LABELS, 0, "none"),
    "vrpo": Case(WeightedSum(((1.0, DPO(0.2)), (0.05, SFT()))), shift="none"),
    "kto-sft": Case(WeightedSum(((1.0, KTO(BETA)), (0.1, SFT()))), LABELS, shift="none"),
    "lists-sft": Case(WeightedSum(((0.5, PlackettLuce(BETA)), (0.1, SFT()))), RANKINGS, shift="none"),
    "three-losses": Case(
        WeightedSum(((0.5, Preference(Robust(0.1), BETA)), (2.0, Preference(IPO(), BETA)), (0.1, SFT()))),
        WEIGHTED,
        shift="none",
    ),
}


def every_case(wanted: Callable[[Case], bool] = lambda case: True) -> pytest.MarkDecorator:
    chosen = {name: case for name, case in CASES.items() if wanted(case)}
    return pytest.mark.parametrize("case", list(chosen.values()), ids=list(chosen))


def terms(references: int = 1, seed: int = 0, draws: int = 3, rows: int = 6) -> tuple[Tensor, Tensor]:
    """Terms of policy and references, below 0 and a nat or two apart."""
    generator = torch.Generator().manual_seed(seed)
    policy = torch.rand(rows, draws, generator=generator, dtype=torch.float64)
    reference = torch.rand(rows, references, draws, generator=generator, dtype=torch.float64)
    return -2 * policy - 0.1, -2 * reference - 0.1


def of(policy: Tensor, reference: Tensor, groups: int | None = None) -> Terms:
    """What an objective sees of these terms, in consecutive groups of draws; None: each draw is one."""
    draws = policy.shape[1]
    group = torch.arange(draws, device=policy.device) // (1 if groups is None else draws // groups)
    return Terms(policy, reference, group.expand(policy.shape))
