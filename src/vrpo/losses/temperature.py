"""Temperatures: the beta of each pair, by which a margin of bounds (nats) becomes a preference."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from vrpo.structures import Labels, Rankings
from vrpo.types import Pairs


@runtime_checkable
class Temperature(Protocol):
    """Inverse temperatures of a structure's items (pairs, lists, labels): one for all, or one for each."""

    def __call__(self, structure: Any) -> float | Float[Tensor, " P"]: ...


@dataclass(frozen=True)
class Constant:
    """The same beta for all, > 0."""

    beta: float

    def __post_init__(self) -> None:
        _check_beta(self.beta)

    def __call__(self, structure: Any) -> float:
        return self.beta


@dataclass(frozen=True)
class RewardScaling:
    """MM-RLHF's dynamic reward scaling: beta * (1 + w * (1 - exp(-k d))), clamped to [beta, (1 + w) * beta].

    d = (reward(chosen) - reward(rejected)) / scale (arXiv 2502.10391): surer pairs count as if the margin were
    larger. The released code overwrites this beta by a rule over the batch; this is the paper's. w = 0 or k = 0 is
    `Constant`.

    Args:
        scale: what counts as a difference of 1, in the rewards' own units: k has no meaning without it.

    Raises:
        ValueError: the pairs have no rewards.
    """

    beta: float
    scale: float
    w: float = 0.5
    k: float = 0.5

    def __post_init__(self) -> None:
        _check_beta(self.beta)
        if not 0 < self.scale < inf:
            raise ValueError(f"scale must be positive and finite, not {self.scale}")
        if not (0 <= self.w < inf and 0 <= self.k < inf):
            raise ValueError(f"w and k must not be negative, and finite, not {self.w} and {self.k}")

    def __call__(self, structure: Pairs) -> Float[Tensor, " P"]:
        reward = structure.reward
        if reward is None:
            raise ValueError("reward scaling needs the rewards of chosen and rejected answers, and the pairs have none")
        difference = (reward[structure.chosen] - reward[structure.rejected]).to(torch.float64) / self.scale
        surety = -torch.expm1(-self.k * difference.clamp(min=0))  # clamped here, exp cannot overflow
        return self.beta * (1 + self.w * surety)


@dataclass(frozen=True)
class Custom:
    """A function of the user's, from `Pairs` (or the `Rankings` or `Labels` of losses about those) to one beta of each.

    Args:
        name: what errors call it.

    Raises:
        ValueError: it returns something else, which would broadcast, or turn the loss around.
    """

    function: Callable[[Any], Float[Tensor, " P"]]
    name: str

    def __call__(self, structure: Pairs | Rankings | Labels) -> Float[Tensor, " P"]:
        beta: Any = self.function(structure)
        number = len(_items(structure))
        if not isinstance(beta, Tensor) or beta.shape != (number,):
            said = tuple(beta.shape) if isinstance(beta, Tensor) else type(beta).__name__
            raise ValueError(f"temperature {self.name}: a tensor of {number} betas is wanted, not {said}")
        if not bool(((beta > 0) & (beta < inf)).all()):
            raise ValueError(
                f"temperature {self.name}: beta must be positive and finite, not {beta.min()} to {beta.max()}"
            )
        return beta.detach()


def _items(structure: Pairs | Rankings | Labels) -> Tensor:
    """What a structure has a beta of."""
    if isinstance(structure, Labels):
        return structure.row
    return structure.chosen if isinstance(structure, Pairs) else structure.order


TEMPERATURES: dict[str, Callable[..., Temperature]] = {  # of beta, and of what `temperature_kwargs` holds
    "constant": Constant,
    "reward_scaling": RewardScaling,
}


def _check_beta(beta: float) -> None:
    if not 0 < beta < inf:
        raise ValueError(f"beta must be positive and finite, not {beta}")
