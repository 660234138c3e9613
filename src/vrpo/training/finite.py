"""Numbers that are not finite: training stops where they come up, says of which rows, and writes none of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from vrpo.preference import Step
from vrpo.training.checkpoints import sealed

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_NAMED = 16  # rows in a message, at most


def finite(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that JSON can hold: what is not finite is not known, and is left out."""
    return {name: value for name, value in entry.items() if not isinstance(value, float) or math.isfinite(value)}


def check_weights(module: nn.Module, what: str) -> None:
    """
    Raises:
        ValueError: a weight is infinite or not a number.
    """
    broken = [name for name, part in module.named_parameters() if not _is_finite(part.detach())]
    if broken:
        others = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise ValueError(
            f"{what} has weights that are not finite: {broken[0]}{others}. Every loss would be NaN: take a checkpoint "
            "from before, and a lower learning_rate"
        )


def _is_finite(part: Tensor) -> bool:
    """Infinities and NaN pass through the extremes, which need no memory."""
    if part.is_meta or not part.numel() or part.dtype not in _FLOATS:
        return True
    low, high = part.aminmax()
    return math.isfinite(low) and math.isfinite(high)


@dataclass
class Watch:
    """Example ids of an optimizer step: of all its rows, and of those whose loss is not finite."""

    seen: list[int] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)

    def add(self, step: Step, example_id: Int[Tensor, " N"]) -> None:
        """The rows of a micro-batch; where its loss is not finite, those whose terms are not, or all."""
        self.seen += example_id.tolist()
        if not math.isfinite(step.loss.detach()):
            known = step.terms.policy.detach().isfinite().all(-1) & step.terms.reference.isfinite().flatten(1).all(-1)
            self.broken += (example_id if known.all() else example_id[~known]).tolist()


def stopped(step: int, what: str, rows: Sequence[int], folder: Path) -> ValueError:
    """What to say where a step cannot be made.

    Args:
        rows: example ids of those that it is about.
        folder: where the checkpoints are.
    """
    some = sorted(set(rows))
    named = ", ".join(map(str, some[:_NAMED])) + (", ..." if len(some) > _NAMED else "")
    kept = list(map(str, sealed(folder)))[-2:]
    return ValueError(
        f"step {step}: {what} (rows {named}, by example_id). The weights are left as they were before it, and whole "
        f"checkpoints are {', '.join(kept) or 'none yet'}. Try a lower learning_rate, max_grad_norm, a longer warmup "
        "or bf16 in place of fp16, and look at these rows; stop_at_non_finite=false goes on all the same"
    )
