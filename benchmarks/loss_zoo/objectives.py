"""The table of the study: objectives with their settings, arms, learning rates and seeds.

beta is one value per objective and task, chosen so that most objectives aim at margins of one order: on Sudoku a few
nats of the summed score (answers of 17 tokens), on UltraFeedback up to ten (answers of 37 tokens, their mean). AdamW
takes no notice of a loss's scale, so what beta decides is where the loss flattens. Learning rates are a grid.
"""

from dataclasses import dataclass
from typing import Any

FLIPPED = 0.2  # share of labels that are flipped in the noisy data, and what the label-noise losses assume


@dataclass(frozen=True)
class Objective:
    """Fields of VRPOConfig, and beta by task; `why`: of this beta, for the page. `referenced`: a reference is passed,
    too; `grouped`: needs two groups of draws."""

    fields: dict[str, Any]
    sudoku: float | None
    ultrafeedback: float | None
    why: str
    referenced: bool = True
    grouped: bool = False

    def settings(self, task: str) -> dict[str, Any]:
        beta = getattr(self, task)
        return {**self.fields, **({} if beta is None else {"beta": beta})}


_AS_DPO = "as sigmoid"
OBJECTIVES: dict[str, Objective] = {
    "sigmoid": Objective({"loss_type": "sigmoid"}, 1.0, 0.1, "flattens beyond 1 / beta: 1 nat, 10 nats"),
    "dmpo_rkl": Objective(
        {"loss_type": "dmpo_rkl", "dmpo_alpha": 0.01}, 1.0, 0.1, "minimum at u = 4.6: 4.6 nats, 46 nats"
    ),
    "ipo_sum": Objective({"loss_type": "ipo_sum"}, 0.1, 0.05, "tau; the target 1 / (2 tau) is 5 nats, 10 nats"),
    "ipo_sum_jackknife": Objective(
        {"loss_type": "ipo_sum", "slope": "jackknife"}, 0.1, 0.05, "as ipo_sum", grouped=True
    ),
    "hinge": Objective({"loss_type": "hinge"}, 0.2, 0.1, "flat beyond 1 / beta: 5 nats, 10 nats"),
    "sigmoid_sft": Objective(
        {"loss_type": "sigmoid", "sft_coef": 1.0}, 1.0, 0.1, "as sigmoid; the SFT term at full weight, per token"
    ),
    "smoothed": Objective({"loss_type": "sigmoid", "label_smoothing": FLIPPED}, 1.0, 0.1, _AS_DPO),
    "robust": Objective({"loss_type": "robust", "label_smoothing": FLIPPED}, 1.0, 0.1, _AS_DPO),
    "ipo": Objective(
        {"loss_type": "ipo"}, 1.7, 5.0, "tau of scores per token; 1 / (2 tau) is 5 nats of 17 tokens, 3.7 of 37"
    ),
    "simpo": Objective(
        {"loss_type": "simpo", "simpo_gamma": 0.5},
        10.0,
        5.0,
        "on scores per token: 1.7 nats of 17, 7.4 of 37",
        referenced=False,
    ),
    "kto": Objective(
        {"loss_type": "kto", "kto_baseline": "batch_mean"},
        1.0,
        0.1,
        _AS_DPO + "; the answers as they are, unpaired",
    ),
    "orpo": Objective({"loss_type": "orpo"}, 1.0, 1.0, "lambda; the SFT term beside it has weight 1", referenced=False),
    "apo_zero": Objective({"loss_type": "apo_zero"}, 1.0, 0.1, _AS_DPO),
    "apo_down": Objective({"loss_type": "apo_down"}, 1.0, 0.1, _AS_DPO),
    "exo_pair": Objective(
        {"loss_type": "exo_pair", "label_smoothing": 1e-3}, 1.0, 0.1, "minimum at u = 6.9: dmpo_rkl with another alpha"
    ),
    "sft": Objective({}, None, None, "SFT on the chosen answers: a control, linear in the bounds", referenced=False),
}


@dataclass(frozen=True)
class Arm:
    """Draws per answer, their plan, and passes over the pairs. All but the last cost the same forward passes."""

    plan: str
    num_times: int
    epochs: int
    label: str

    @property
    def fields(self) -> dict[str, Any]:
        return {"plan": self.plan, "num_times": self.num_times}


ARMS: dict[str, Arm] = {
    "n8": Arm("fixed_count", 8, 1, "n = 8"),
    "n1": Arm("fixed_count", 1, 8, "n = 1, 8x the steps"),
    "default": Arm("balanced", 8, 1, "n = 8, default plan"),
    "n1_same_steps": Arm("fixed_count", 1, 1, "n = 1, same steps"),
}
SEEDS = (1, 2, 3, 4, 5)
