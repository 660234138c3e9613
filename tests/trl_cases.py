"""The losses that TRL has, in its settings and in ours, and our side of the comparison: given terms, or whole runs."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from tests.causal import causal, tokenizer
from tests.objectives import of
from tests.training.runs import settings
from tests.trl_side import TEXTS
from vrpo.models.causal import as_causal
from vrpo.structures import Labels
from vrpo.training.preference import VRPOTrainer
from vrpo.training.preference_config import VRPOConfig
from vrpo.training.recipe import preference_recipe
from vrpo.types import Pairs


@dataclass(frozen=True)
class Case:
    """A loss by our fields and by DPOTrainer's settings.

    Args:
        equal: it is TRL's only where all chosen answers have one length: TRL's mean is over tokens.
        one_token: it is TRL's only of answers of one token, where a sum is a mean.
    """

    name: str
    ours: Mapping[str, Any]
    theirs: Mapping[str, Any]
    equal: bool = False
    one_token: bool = False
    beta: tuple[float, ...] = field(default=(0.1, 0.5))


CASES = [
    Case("sigmoid", {"loss_type": "sigmoid"}, {"loss": "sigmoid"}),
    Case("hinge", {"loss_type": "hinge"}, {"loss": "hinge"}),
    Case("ipo", {"loss_type": "ipo"}, {"loss": "ipo"}),
    Case("ipo_sum", {"loss_type": "ipo_sum"}, {"loss": "ipo"}, one_token=True),
    Case("apo_zero", {"loss_type": "apo_zero"}, {"loss": "apo_zero"}),
    Case("apo_down", {"loss_type": "apo_down"}, {"loss": "apo_down"}),
    *(
        Case(f"{ours}, e = {e}", {"loss_type": ours, "label_smoothing": e}, {"loss": theirs, "smoothing": e})
        for ours, theirs in (("sigmoid", "aot"), ("robust", "robust"), ("exo_pair", "exo_pair"))
        for e in (0.001, 0.1, 0.3)
    ),
    Case("dmpo_rkl", {"loss_type": "dmpo_rkl"}, {"loss": "exo_pair", "smoothing": 0.01}),
    Case(
        "sigmoid + apo_down",
        {"loss_type": ["sigmoid", "apo_down"], "loss_weights": [0.8, 0.2]},
        {"loss": ("sigmoid", "apo_down"), "weights": (0.8, 0.2)},
    ),
    Case("sigmoid + hinge, no weights", {"loss_type": ["sigmoid", "hinge"]}, {"loss": ("sigmoid", "hinge")}),
    Case(
        "ipo + sft",
        {"loss_type": ["ipo", "sft"], "loss_weights": [1.0, 1.5]},
        {"loss": ("ipo", "sft"), "weights": (1.0, 1.5)},
        equal=True,
    ),
    Case(
        "sigmoid + sft_coef",
        {"loss_type": "sigmoid", "sft_coef": 0.05},
        {"loss": ("sigmoid", "sft"), "weights": (1.0, 0.05)},
        equal=True,
    ),
]
KTO = [(0.1, 1.0, 1.0), (0.5, 1.3, 0.7)]  # beta, desirable_weight, undesirable_weight
LABEL = (True, False, True, True)


def rows_of(case: Case) -> list[dict[str, str]]:
    """TEXTS, or the same with chosen answers of one length."""
    if case.equal:
        return [{**row, "chosen": TEXTS[0]["chosen"]} for row in TEXTS]
    return TEXTS


def objective(**fields: Any) -> Any:
    defaults = {each.name: each.default for each in dataclasses.fields(VRPOConfig)}
    return preference_recipe(SimpleNamespace(**{**defaults, "loss_type": "sigmoid", **fields})).plain  # no device here


def pairs_given(terms: Mapping[str, Tensor], lengths: Mapping[str, Sequence[int]], **fields: Any) -> Tensor:
    """Our loss where log p of the answers is given."""
    count = torch.arange(len(lengths["chosen"]))
    policy = torch.cat([terms["chosen"], terms["rejected"]])[:, None]
    reference = torch.cat([terms["ref_chosen"], terms["ref_rejected"]])[:, None, None]
    length = torch.tensor([*lengths["chosen"], *lengths["rejected"]])
    return objective(**fields)(of(policy, reference), Pairs(count, count + len(count), length))


def labels_given(terms: Mapping[str, Tensor], label: Tensor, **fields: Any) -> Tensor:
    """Our KTO loss where log p is given, of answers and of mismatched ones."""
    policy = torch.cat([terms["own"], terms["mismatched"]])[:, None]
    reference = torch.cat([terms["ref_own"], terms["ref_mismatched"]])[:, None, None]
    row = torch.arange(len(label))
    labels = Labels(row, label, row + len(row), torch.ones(2 * len(row), dtype=torch.long))
    return objective(loss_type="kto", **fields)(of(policy, reference), labels)


def trainer(folder: Path | str, rows: Sequence[Mapping[str, Any]], **fields: Any) -> VRPOTrainer:
    """Our trainer on rows of text, or of token ids, with plan=exact and the models of `trl_side.TRL`."""
    config = VRPOConfig(**settings(folder, plan="exact", warn_displacement=False, **fields))
    return VRPOTrainer(
        as_causal(causal(), tokenizer()),
        ref_model=as_causal(causal(seed=1), None) if config.compares else None,
        args=config,
        train_dataset=Dataset.from_list([dict(row) for row in rows]),
    )


def step(made: VRPOTrainer) -> Tensor:
    """The loss of the whole training set as one batch; gradients are left in the model."""
    examples: Any = made.train_dataset
    return made.training_step(made.model, made.data_collator(list(examples)), num_items_in_batch=len(examples))


def answers() -> list[dict[str, Any]]:
    """Labelled answers of TEXTS: every other chosen, every other rejected."""
    sides = ("rejected", "chosen")
    return [
        {"prompt": row["prompt"], "completion": row[sides[index % 2]], "label": LABEL[index]}
        for index, row in enumerate(TEXTS)
    ]
