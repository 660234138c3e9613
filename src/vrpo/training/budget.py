"""What `num_draws="auto"` spends: more values, fewer gradients, the same compute on average.

Unit: one forward pass of one draw. A draw costs 1 for the reference's value, 1 for the policy's, and 3 for its gradient
(forward and backward), so n draws of everything cost 5 n. Auto: 2 * (1.5 n) + 3 * RATE * (1.5 n) = 5 n.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, isfinite
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

RATE = 4 / 9  # of the draws have a gradient
GAIN = 0.5  # of the threshold's logarithm, per step


def auto_times(num_times: int) -> int:
    """Masking levels whose values are computed, for the compute of `num_times` of which each has a gradient: 3/2."""
    if num_times % 2:
        raise ValueError(f"num_times must be even with num_draws=auto, which draws 3/2 as many; not {num_times}")
    return num_times // 2 * 3


@dataclass
class DrawBudget(TrainerCallback, ExportableState):
    """The threshold of the roulette, steered so that RATE of all draws have a gradient on average.

    Once per optimizer step, over all micro-batches and processes: log threshold += GAIN * (mean pi - RATE). The sum of
    mean pi - RATE over a run is log(last / first threshold) / GAIN, whatever the slopes do and however many of them are
    capped at pi = 1: the average goes to RATE like 1 / steps. A fixed multiple of the mean slope would fall short by
    what the cap cuts off. The threshold depends on earlier steps only, so every step stays unbiased. Saved with the
    callbacks' states in trainer_state.json.
    """

    threshold: float
    total: float = 0.0
    count: float = 0.0

    def add(self, probability: Float[Tensor, " P"]) -> None:
        """The probabilities that the pairs of a micro-batch are kept with."""
        self.total += float(probability.sum())
        self.count += len(probability)

    def step(self, reduce: Callable[[Float[Tensor, " 2"]], Float[Tensor, " 2"]]) -> None:
        """The threshold of the next step. `reduce` adds up over processes."""
        total, count = reduce(torch.tensor([self.total, self.count], dtype=torch.float64)).tolist()
        if isfinite(total):  # a NaN is the loss's to report
            self.threshold *= exp(GAIN * (total / count - RATE))
        self.total = self.count = 0.0

    def state(self) -> dict[str, dict[str, float]]:
        return {"args": {"threshold": self.threshold}, "attributes": {}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A resumed run goes on with the threshold of its checkpoint, if that has one."""
        states: Any = state.stateful_callbacks
        saved = states.setdefault(type(self).__name__, self.state())  # where transformers will look when it saves
        self.threshold = saved["args"]["threshold"]
