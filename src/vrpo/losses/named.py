"""Losses by name: TRL's names where it has the loss, and whose parameters each has.

A new loss is a class (pairwise.py, setwise.py), a constructor here whose parameters are its own, and a row of `LOSSES`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from vrpo.losses.objective import ItemObjective
from vrpo.losses.pairwise import IPO, ORPO, APODown, APOZero, Hinge, Preference, ReverseKL, Robust, Sigmoid
from vrpo.losses.pools import Pool
from vrpo.losses.setwise import KTO, PlackettLuce
from vrpo.losses.temperature import Temperature

Build = Callable[[Temperature, Pool], ItemObjective]
FLAT = {  # what TRL has fields for, and their defaults there
    "label_smoothing": 0.0,
    "simpo_gamma": 0.5,
    "desirable_weight": 1.0,
    "undesirable_weight": 1.0,
}


@dataclass(frozen=True)
class NamedLoss:
    """A row of `LOSSES`.

    Args:
        make: from the loss's own parameters to what a temperature and a pool make an objective.
        about: what it compares.
        reference: whether it has one at all.
    """

    make: Callable[..., Build]
    about: Literal["pairs", "labels", "rankings"] = "pairs"
    reference: bool = True


def _pairs(loss: Any, *, per_token: bool = False) -> Build:
    return partial(Preference, loss, per_token=per_token)


def _sigmoid(label_smoothing: float = 0.0) -> Build:
    return _pairs(Sigmoid(label_smoothing))


def _robust(label_smoothing: float = 0.0) -> Build:
    return _pairs(Robust(label_smoothing))


def _simpo(simpo_gamma: float = 0.5) -> Build:
    return _pairs(Sigmoid(gamma=simpo_gamma), per_token=True)


def _exo_pair(label_smoothing: float = 1e-3) -> Build:
    """The default is the paper's, which TRL advises."""
    return _pairs(ReverseKL(label_smoothing))


def _dmpo_rkl(epsilon: float = 0.01) -> Build:
    return _pairs(ReverseKL(epsilon))


def _kto(desirable_weight: float = 1.0, undesirable_weight: float = 1.0, baseline: str = "mismatched") -> Build:
    return partial(KTO, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight, baseline=baseline)


LOSSES = {
    "sigmoid": NamedLoss(_sigmoid),
    "robust": NamedLoss(_robust),
    "ipo": NamedLoss(lambda: _pairs(IPO(), per_token=True)),
    "ipo_sum": NamedLoss(lambda: _pairs(IPO())),
    "hinge": NamedLoss(lambda: _pairs(Hinge())),
    "simpo": NamedLoss(_simpo, reference=False),
    "orpo": NamedLoss(lambda: _pairs(ORPO(), per_token=True), reference=False),
    "apo_zero": NamedLoss(lambda: _pairs(APOZero())),
    "apo_down": NamedLoss(lambda: _pairs(APODown())),
    "exo_pair": NamedLoss(_exo_pair),
    "dmpo_rkl": NamedLoss(_dmpo_rkl),
    "kto": NamedLoss(_kto, about="labels"),
    "plackett_luce": NamedLoss(lambda: PlackettLuce, about="rankings"),
}
NOT_OFFERED = {  # losses of TRL's trainers, and why they are not here
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


def against_zero(objective: ItemObjective) -> bool:
    """Whether it compares the log-ratio of a single answer with 0, which a bound without a reference is far below."""
    if isinstance(objective, KTO):
        return objective.baseline == "mismatched"
    return isinstance(objective, Preference) and isinstance(objective.loss, APOZero | APODown)
