"""The plans that are compared, and those of them that exist only to be compared."""

from dataclasses import dataclass, replace

import torch

from vrpo import FixedCount, Tokens
from vrpo.draws import mask_bits, orders
from vrpo.plans import BalancedMasks, Complementary, IndependentMasks, Levels, NestedMasks, Paired
from vrpo.types import Draws, Plan, Structure

N = 8  # forward passes per answer, of every plan


@dataclass(frozen=True)
class OneOrder:
    """Independent counts, all masks cut from one order: what is left when the order's own noise is not averaged."""

    exponent: float = 0.0

    def __call__(self, tokens: Tokens, structure: Structure | None = None) -> Draws:
        count, weight, group = Levels(N, N, self.exponent)(tokens)
        masked = (orders(tokens, 1) < count[..., None]) & tokens.response[:, None]
        return Draws(masked, masked * (weight * tokens.length[:, None] / count)[..., None], group)


@dataclass(frozen=True)
class OneLevel:
    """One count, m ~ m^-exponent, and N independent masks of it: the paper's n_t = 1 at exponent 0."""

    exponent: float = 0.0

    def __call__(self, tokens: Tokens, structure: Structure | None = None) -> Draws:
        count, weight, group = (part.expand(-1, N) for part in Levels(1, 1, self.exponent)(tokens))
        masked = (orders(tokens, N) < count[..., None]) & tokens.response[:, None]
        return Draws(masked, masked * (weight * tokens.length[:, None] / count)[..., None] / N, group)


@dataclass(frozen=True)
class Star:
    """Masks inside the largest one of their group, balanced there, and that one the control variate of all others:
    sum_k w_k [A_k + c (A_J - C_k)], C_k = (L/m_k) sum_{i in S_k} f_i(S_J). An alternative to nested masks, whose
    contexts are one chain."""

    levels: Levels
    control: float

    def __call__(self, tokens: Tokens, structure: Structure | None = None) -> Draws:
        count, weight, group = self.levels(tokens)
        shape, length = (self.levels.num_groups, self.levels.per_group), tokens.length[:, None, None]
        count, weight = (part.unflatten(1, shape) for part in (count, weight))
        order = orders(tokens, self.levels.num_groups)[:, :, None]
        top = count[..., -1:]
        start = (count.cumsum(-1) - count)[..., None]
        arc = (order - start) % top[..., None] < count[..., None]
        masked = (arc & (order < top[..., None])) & tokens.response[:, None, None]
        own = (weight * length / count)[..., None] * masked
        debt = self.control * own[:, :, :-1].sum(2)
        passed = self.control * weight[..., :-1].sum(-1, keepdim=True) * length / top
        own[:, :, -1] += passed * masked[:, :, -1] - debt
        return Draws(masked.flatten(1, 2), own.flatten(1, 2), group)


@dataclass(frozen=True)
class Rotated:
    """Balanced masks as arcs of the circle of random numbers instead of ranks: draw k masks the first m_k tokens from a
    start that both answers of a pair have in common."""

    levels: Levels
    gap: float = 1 / 32

    def __call__(self, tokens: Tokens, structure: Structure | None = None) -> Draws:
        count, weight, group = self.levels(tokens)
        share = self.levels.quantiles(tokens) ** (1 / (1 - self.levels.exponent)) + self.gap
        arcs = share.unflatten(1, (self.levels.num_groups, -1))
        start = ((arcs.cumsum(-1) - arcs).flatten(1) % 1 * 2.0**53).long() << 11
        bits = mask_bits(tokens, self.levels.num_groups).repeat_interleave(self.levels.per_group, 1)
        bits = (bits - start[..., None]).masked_fill(~tokens.response[:, None], torch.iinfo(torch.int64).max)
        masked = bits.argsort(-1).argsort(-1) < count[..., None]
        masked = masked & tokens.response[:, None]
        return Draws(masked, masked * (weight * tokens.length[:, None] / count)[..., None], group)


@dataclass(frozen=True)
class Whole:
    """A plan whose draws count as one group, so that an estimate costs one backward pass."""

    plan: Plan

    def __call__(self, tokens: Tokens, structure: Structure | None = None) -> Draws:
        draws = self.plan(tokens, structure)
        return replace(draws, group=draws.group.clamp(max=0))


def few(groups: int = 1, exponent: float = 0.5) -> Levels:
    return Levels(N, groups, exponent)


PLANS: dict[str, Plan] = {  # measured as a whole; the most telling first
    "balanced in 2 groups, importance 1/2, aligned": Paired(BalancedMasks(few(2))),  # the default of VRPOConfig
    "balanced, importance 1/2, aligned": Paired(BalancedMasks(few())),
    "balanced, importance 1/2": BalancedMasks(few()),
    "nested, c = 1": NestedMasks(Levels(N)),
    "stratified, importance 1/2": IndependentMasks(few()),
    "balanced, importance 1/4, aligned": Paired(BalancedMasks(few(1, 0.25))),
    "balanced, importance 3/4, aligned": Paired(BalancedMasks(few(1, 0.75))),
    "nested, c = 1/2, importance 1/2": NestedMasks(few(), 0.5),
    "star, c = 1/4, importance 1/2": Star(few(), 0.25),
    "rotated, importance 1/2, aligned": Paired(Rotated(few())),
}

ONE_ORDER, ONE_LEVEL = "one order", "one level, 8 masks"
LEVEL = 0.5  # exponent of the law that levels are measured under
BY_DRAW: dict[str, Plan] = {  # uniform counts, heavy tails: measured draw by draw (ratios.py)
    "balanced": BalancedMasks(Levels(N)),
    "paired, aligned": Paired(FixedCount(N)),
    ONE_LEVEL: OneLevel(LEVEL),  # counts of other laws than the plan's own, weighted back
    ONE_ORDER: OneOrder(0.5),
    "complementary": Complementary(N),
    "paired quantiles": Paired(FixedCount(N), align=False),
    "stratified": IndependentMasks(Levels(N)),
    "systematic": IndependentMasks(Levels(N, systematic=True)),
    "nested, c = 0": NestedMasks(Levels(N), 0.0),
}
