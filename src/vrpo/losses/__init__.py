"""The loss family. Read objective.py first: DPO is written out there."""

from vrpo.losses.corrections import CrossFit, Jackknife
from vrpo.losses.objective import ItemObjective, Mixture, Objective, WeightedSum, dpo
from vrpo.losses.pairwise import (
    DPO,
    IPO,
    ORPO,
    APODown,
    APOZero,
    Hinge,
    PairLoss,
    Preference,
    ReverseKL,
    Robust,
    Sigmoid,
)
from vrpo.losses.setwise import KTO, SFT, PlackettLuce

__all__ = [
    "DPO",
    "IPO",
    "KTO",
    "ORPO",
    "SFT",
    "APODown",
    "APOZero",
    "CrossFit",
    "Hinge",
    "ItemObjective",
    "Jackknife",
    "Mixture",
    "Objective",
    "PairLoss",
    "PlackettLuce",
    "Preference",
    "ReverseKL",
    "Robust",
    "Sigmoid",
    "WeightedSum",
    "dpo",
]
