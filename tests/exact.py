"""The oracle: a denoiser that is a table, and everything about its bound by enumeration.

Written from the formulas, row by row and without vrpo's estimator or plans, so that agreement means something.
`every_outcome` is the bridge: it feeds vrpo's own plan one row per outcome of its random numbers, all equally likely,
so that means and variances over rows are exact laws, not statistics.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise, permutations, product
from math import comb, factorial, log
from unittest import mock

import torch
from torch import Tensor, nn

import vrpo.draws
import vrpo.plans
from tests.build import Row, copies
from vrpo.plans import Levels
from vrpo.types import Tokens


class Table(nn.Module):
    """A float64 denoiser with one free row of logits per (visible context, position): no model is more general.

    The context is the sequence of attended tokens, masks included: padding does not enter unless it is attended.
    Gradients with respect to `table` exist.
    """

    def __init__(self, vocab: int = 3, length: int = 5, seed: int = 2, scale: float = 1.5):
        super().__init__()
        self.mask_id, self.base, self.length = vocab, vocab + 1, length
        generator = torch.Generator().manual_seed(seed)
        shape = (2 * self.base**length, length, vocab)
        self.table = nn.Parameter(scale * torch.randn(shape, generator=generator, dtype=torch.float64))

    def forward(self, *, input_ids: Tensor, attention_mask: Tensor, masked: Tensor, scored: Tensor) -> Tensor:
        visible = torch.where(masked, self.mask_id, input_ids)
        code = torch.ones(len(input_ids), dtype=torch.long)
        for column in range(input_ids.shape[1]):
            longer = code * self.base + visible[:, column]
            code = torch.where(attention_mask[:, column], longer, code)
        row, column = scored.nonzero(as_tuple=True)
        slot = (attention_mask.cumsum(-1) - 1)[row, column]
        logits = self.table[code[row], slot]
        return logits.log_softmax(-1).gather(-1, input_ids[scored][:, None])[:, 0]


class Bigram(nn.Module):
    """A causal model: log p(y_i | y_{i-1}). With nothing masked and everything scored its "bound" is log p exactly."""

    def __init__(self, vocab: int = 3, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.logits = nn.Parameter(torch.randn(vocab, vocab, generator=generator, dtype=torch.float64))

    def forward(self, *, input_ids: Tensor, attention_mask: Tensor, masked: Tensor, scored: Tensor) -> Tensor:
        assert not masked.any()
        row, column = scored.nonzero(as_tuple=True)
        logp = self.logits.log_softmax(-1)
        return logp[input_ids[row, column - 1], input_ids[row, column]]


def token_logp(denoiser: nn.Module, row: Row, hidden: tuple[int, ...], wanted: tuple[int, ...]) -> float:
    """sum over `wanted` response positions of log p(y_i | prompt, response without `hidden`); one row, no padding."""
    ids = torch.tensor([row.prompt + row.response])
    masked, scored = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    masked[0, [len(row.prompt) + p for p in hidden]] = True
    scored[0, [len(row.prompt) + p for p in wanted]] = True
    with torch.no_grad():
        everything = torch.ones_like(masked)
        return float(denoiser(input_ids=ids, attention_mask=everything, masked=masked, scored=scored).sum())


def subsets(length: int) -> list[tuple[int, ...]]:
    """All non-empty subsets of range(length)."""
    return [
        tuple(p for p in range(length) if bits >> p & 1)
        for bits in range(1, 1 << length)
    ]  # fmt: skip


def subset_sums(denoiser: nn.Module, row: Row) -> dict[tuple[int, ...], float]:
    """f(S) = sum over i in S of log p(y_i | y without S), for every non-empty S."""
    return {subset: token_logp(denoiser, row, subset, subset) for subset in subsets(len(row.response))}


@dataclass(frozen=True)
class Moments:
    """Of one draw of the fixed-count plan: the bound, V_t = Var over m of the conditional mean, V_y = the rest."""

    bound: float
    between: float
    within: float

    def variance(self, num_times: int, num_masks: int) -> float:
        """Lemma 5 of arXiv 2505.19223: V_t / n_t + V_y / (n_t n_y)."""
        return self.between / num_times + self.within / (num_times * num_masks)


def moments(sums: dict[tuple[int, ...], float]) -> Moments:
    """Eq. 14-15 by enumeration: m ~ U{1..L}, S uniform of size m, value (L / m) f(S)."""
    length = max(len(subset) for subset in sums)
    mean, variance = [], []
    for m in range(1, length + 1):
        values = [length / m * f for subset, f in sums.items() if len(subset) == m]
        assert len(values) == comb(length, m)
        mean.append(sum(values) / len(values))
        variance.append(sum(v * v for v in values) / len(values) - mean[-1] ** 2)
    bound = sum(mean) / length
    return Moments(bound, sum(v * v for v in mean) / length - bound**2, sum(variance) / length)


def bound(denoiser: nn.Module, row: Row) -> float:
    return moments(subset_sums(denoiser, row)).bound


def order_bound(denoiser: nn.Module, row: Row) -> float:
    """The same bound by another road: the mean over all L! generation orders of the log-likelihood in that order."""
    length = len(row.response)
    total = 0.0
    for order in permutations(range(length)):
        total += sum(token_logp(denoiser, row, order[step:], order[step : step + 1]) for step in range(length))
    return total / factorial(length)


# Exact laws of vrpo's plans -------------------------------------------------------------------------------------------


@contextmanager
def every_outcome(row: Row, num_times: int, num_masks: int) -> Iterator[Tokens]:
    """Within the context, FixedCount(num_times, num_masks) maps row r of the yielded tokens to its r-th outcome.

    An outcome is a cell of [0, 1) per time (L of them) and an order of the response per mask (L! of them): all
    equally likely, since times are uniform and mask bits exchangeable. Groups are the plan's own.
    """
    length = len(row.response)
    cells = [((cell + 0.5) / length, 1 / length) for cell in range(length)]
    with weighted_outcomes(row, cells, num_times, num_masks, num_times * num_masks) as (tokens, _):
        yield tokens


@contextmanager
def weighted_outcomes(
    row: Row, cells: list[tuple[float, float]], num_times: int, num_masks: int, num_orders: int
) -> Iterator[tuple[Tokens, Tensor]]:
    """Tokens and probabilities: within the context, a plan that asks for `num_times` uniform numbers (each for
    `num_masks` masks) and `num_orders` orders maps row r of the tokens to its r-th outcome.

    `cells`: a point and the length of each part of [0, 1) in which the plan does not tell numbers apart.
    """
    length = len(row.response)
    times = list(product(cells, repeat=num_times))
    orders = list(product(permutations(range(length)), repeat=num_orders))
    tokens = copies(row, len(times) * len(orders))
    point, size = torch.tensor(times, dtype=torch.float64).unbind(-1)
    time = point.repeat_interleave(num_masks, 1).repeat_interleave(len(orders), 0)
    order = torch.tensor(orders).repeat(len(times), 1, 1)
    with fed(tokens, time, order):
        yield tokens, size.prod(-1).repeat_interleave(len(orders)) / len(orders)


def cells_of(levels: Levels, length: int) -> list[tuple[float, float]]:
    """Parts of [0, 1) on which no draw's count changes: between the points where a stratum passes a step of the law."""
    law = count_law(levels.exponent, length)
    steps = [sum(law[:m]) for m in range(1, length)]
    size = levels.per_group
    inside = {round(size * step - j, 15) for step in steps for j in range(size) if 1e-12 < size * step - j < 1 - 1e-12}
    edges = [0.0, *sorted(inside), 1.0]
    return [((a + b) / 2, b - a) for a, b in pairwise(edges)]


def count_law(exponent: float, length: int) -> list[float]:
    """q(m) proportional to m^-exponent, m = 1..L."""
    mass = [m**-exponent for m in range(1, length + 1)]
    return [value / sum(mass) for value in mass]


@contextmanager
def fed(tokens: Tokens, time: Tensor, response_bits: Tensor) -> Iterator[None]:
    """Replace the plans' random numbers: times [N, K] in [0, 1), and bits [N, orders, response length]."""
    bits = torch.zeros(*response_bits.shape[:2], tokens.ids.shape[1], dtype=torch.int64)
    bits[:, :, tokens.response[0]] = response_bits
    times = vrpo.draws.times

    def fed_times(tokens: Tokens, num_times: int, num_masks: int) -> tuple[Tensor, Tensor]:
        return time, times(tokens, num_times, num_masks)[1]

    with (
        mock.patch.object(vrpo.draws, "times", fed_times),
        mock.patch.object(vrpo.plans, "times", fed_times),
        mock.patch.object(vrpo.draws, "mask_bits", return_value=bits),
        mock.patch.object(vrpo.plans, "mask_bits", return_value=bits),
    ):
        yield


def bernoulli_integral(low: float, power: int, n: int) -> float:
    """Integral of t^power (1 - t)^n over [low, 1], in closed form; power >= -1."""
    total = 0.0
    for j in range(n + 1):
        exponent = power + j + 1
        part = -log(low) if exponent == 0 else (1 - low**exponent) / exponent
        total += comb(n, j) * (-1) ** j * part
    return total


def bernoulli_moments(sums: dict[tuple[int, ...], float], t_min: float) -> tuple[float, float]:
    """Mean and variance of one draw of the t-form with t ~ U(t_min, 1), by exact integration over t."""
    length = max(len(subset) for subset in sums)
    first = second = 0.0
    for subset, f in sums.items():
        m = len(subset)
        first += f * bernoulli_integral(t_min, m - 1, length - m) / (1 - t_min)
        second += f * f * bernoulli_integral(t_min, m - 2, length - m) / (1 - t_min)
    return first, second - first**2
