"""Russian roulette on gradients: the passes with a graph go where the slope is large, and the mean stays what it was.

What deliberately does not live here: how the threshold is chosen (training/budget.py), and the passes themselves.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vrpo.draws import fold, uniform
from vrpo.types import Pairs

_ROULETTE = 101  # a purpose of the hash beside those of draws.py


@dataclass(frozen=True)
class Roulette:
    """Keeps each (pair, group of draws) with probability pi = min(1, |slope| / threshold), its slopes divided by pi.

    Given the slopes, the kept ones have them as expectation, so the gradient stays unbiased; and no kept slope is below
    the threshold (Kahn and Marshall 1953: a probability proportional to the slope is best where passes cost and
    gradients are alike). |slope| is the largest of a pair's rows and draws, times the number of pairs: the objective
    being a mean over pairs, it does not depend on how they are batched. Both rows of a pair share a coin, and so do the
    draws of a group: what is dependent cancels only together. The coins of a pair's groups are systematic, one random
    start and steps of pi, so that it keeps G * pi of its G groups up to one: what does not differ between groups, the
    pair's own gradient, gets as little noise as it can. Starts are keyed hashes of the chosen row's key: they replay
    like draws. Rows in no pair are kept.

    The price: gradients are noisier than those of as many draws where slopes are all alike, as at the beginning.

    Args:
        threshold: the |slope| from which a pair is always kept.
    """

    threshold: float

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise ValueError(f"threshold must be positive, not {self.threshold}")

    def probability(self, slope: Float[Tensor, "N K"], pairs: Pairs) -> Float[Tensor, " P"]:
        """pi of each pair."""
        largest = slope.abs().amax(-1)
        size = torch.maximum(largest[pairs.chosen], largest[pairs.rejected]) * len(pairs.chosen)
        return (size / self.threshold).clamp(max=1)

    def __call__(
        self, slope: Float[Tensor, "N K"], pairs: Pairs, key: Int[Tensor, " N"], group: Int[Tensor, "N K"]
    ) -> Float[Tensor, "N K"]:
        """The slopes after the roulette; 0 where dropped.

        Raises:
            ValueError: a row is in two pairs, which would throw two coins for it.
        """
        rows = torch.cat([pairs.chosen, pairs.rejected])
        if len(rows.unique()) < len(rows):
            raise ValueError("roulette needs pairs without a row in common")
        probability = self.probability(slope, pairs)[:, None]
        places = torch.arange(slope.shape[1], device=slope.device)
        start = uniform(fold(key[pairs.chosen], _ROULETTE))[:, None]
        coin = (start + places * probability) % 1  # [P, groups], each uniform
        factor = torch.where(coin >= probability, 0.0, 1 / probability)  # a NaN is kept, to be seen
        slot = group.clamp(min=0)
        kept = slope.clone()
        for side in (pairs.chosen, pairs.rejected):
            kept[side] = slope[side] * factor.gather(1, slot[side])
        return kept
