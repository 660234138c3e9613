"""Random projections of gradients: what fits in memory of a vector that does not.

Inner products of gradients of different steps, or of parts of a step, need both vectors at once; their sketches are
kilobytes. What deliberately does not live here: what the inner products mean (training/metrics.py, diagnostics/).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import lcm

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vrpo.draws import fold

_SLICE = 1 << 22  # elements that are given signs at a time
_OCTETS = 2.0 * ((torch.arange(256)[:, None] >> torch.arange(8)) & 1) - 1  # the eight signs of each octet


@dataclass(frozen=True)
class Sketch:
    """A count sketch (Charikar, Chen, Farach-Colton 2002): bucket i mod D holds the sum of sign_i * x_i.

    Linear, and unbiased over seeds: E <Sx, Sy> = <x, y>, hence E |Sx|^2 = |x|^2, with variance at most
    (|x|^2 |y|^2 + <x, y>^2) / D where no bucket is crowded (AMS: Alon, Matias, Szegedy 1999). Signs are a keyed hash of
    (seed, place of the tensor, element), so equal seeds and orders give the same projection in every process and on
    every device. Not to be confused with a dense Gaussian projection, whose matrix would not fit.

    Args:
        size: number of buckets D.
    """

    size: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, not {self.size}")

    def __call__(self, tensors: Iterable[Tensor | None]) -> Float[Tensor, " D"]:
        """The float64 sketch of the tensors as one vector; None is a tensor of zeros, and keeps its place."""
        total = torch.zeros(self.size, dtype=torch.float64)
        for place, tensor in enumerate(tensors):
            if tensor is not None:
                key = fold(torch.tensor(self.seed), place)
                total = total.to(tensor.device) + self._of(tensor.detach().reshape(-1), key)
        return total

    def _of(self, x: Float[Tensor, " n"], key: Int[Tensor, ""]) -> Float[Tensor, " D"]:
        """The sketch of one tensor, in slices; buckets start at one of the tensor's own, so that none is crowded."""
        step = lcm(64, self.size) * max(1, _SLICE // lcm(64, self.size))
        total = torch.zeros(self.size, dtype=torch.float64, device=x.device)
        for start in range(0, len(x), step):
            part = x[start : start + step]
            signed = part * _signs(key.to(x.device), start // 64, len(part))
            whole = len(part) // self.size * self.size
            total += signed[:whole].reshape(-1, self.size).sum(0, dtype=torch.float64)
            total[: len(part) - whole] += signed[whole:]
        return total.roll(int(key) % self.size)


def _signs(key: Int[Tensor, ""], first: int, count: int) -> Float[Tensor, " n"]:
    """+1 or -1 for each of `count` elements: the bits of the hash words from `first` on, 64 to a word."""
    words = fold(key, torch.arange(first, first - -count // 64, device=key.device))
    octets = (words[:, None] >> torch.arange(0, 64, 8, device=key.device)) & 255
    return _OCTETS.to(key.device)[octets].reshape(-1)[:count]
