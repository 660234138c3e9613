"""Plans with less noise than the paper's at the same number of forward passes. Each is unbiased for the ELBO.

Three decisions, each exact by itself: how many tokens the draws of a row mask (`Levels`); which ones, given how many
(`IndependentMasks`, `BalancedMasks`); and what the two answers of a pair have in common
(`Paired`). `PerBlock` takes them for each block of a block diffusion model. What deliberately does not live here: the
paper's own plan and the hash (draws.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import comb
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vrpo.coupling import Paired
from vrpo.draws import FixedCount, check_budget, fold, mask_bits, orders, times, uniform
from vrpo.leaves import chosen, made
from vrpo.types import Draws, Plan, Structure, Tokens

_BLOCK = 4  # a purpose of the hash, beside those of draws.py


@dataclass(frozen=True)
class Bernoulli:
    """The t-form: t ~ U(t_min, 1), each response token masked with probability t, weight 1 / t / K on masked tokens.

    t_min has no default on purpose: the variance grows like log(1 / t_min) without limit as t_min -> 0, and t_min > 0
    biases the mean, since draws below t_min are missing from it (`tests/test_exact.py` integrates both).

    Args:
        t_min: smallest masking time, in (0, 1).
    """

    t_min: float
    num_times: int = 8
    num_masks: int = 1

    def __post_init__(self) -> None:
        check_budget(self.num_times, self.num_masks)
        if not 0 < self.t_min < 1:
            raise ValueError(f"t_min must lie in (0, 1), not {self.t_min}: at 0 the estimate has infinite variance")

    def __call__(self, tokens: Tokens, structure: Structure | None = None) -> Draws:
        time, group = times(tokens, self.num_times, self.num_masks)
        mask_prob = self.t_min + (1 - self.t_min) * time  # [N, K]
        masked = uniform(mask_bits(tokens, self.num_times * self.num_masks)) < mask_prob[..., None]
        masked = masked & tokens.response[:, None]
        weight = 1 / mask_prob / (self.num_times * self.num_masks)
        return Draws(masked, masked * weight[..., None], group)


@dataclass(frozen=True)
class Enumerate:
    """No randomness: every non-empty subset of the response, weighted so that the sum IS the ELBO.

    A subset of m of L tokens has probability 1 / (L * C(L, m)) under the fixed-count law, hence weight
    1 / (m * C(L, m)) on its tokens. Costs 2^L - 1 forward passes per row: the oracle of the test suite.

    Raises:
        ValueError: a response is longer than `max_length`.
    """

    max_length: int = 12

    def __call__(self, tokens: Tokens, structure: Structure | None = None) -> Draws:
        length = tokens.length
        longest = int(length.max())
        if longest > self.max_length:
            row = int(length.argmax())
            raise ValueError(
                f"row {row} has {longest} response tokens; enumeration costs 2^{longest} forward passes and is limited "
                f"to {self.max_length} tokens (use vrpo.elbo with a sampling plan, or raise max_length)"
            )
        subset = torch.arange(1, 1 << longest, device=length.device)  # bit p set = response token p masked
        bit = (subset[:, None] >> torch.arange(longest, device=length.device)) & 1
        count = bit.sum(-1)
        table = torch.tensor(
            [[1.0 / (m * comb(n, m)) if 1 <= m <= n else 0.0 for m in range(longest + 1)] for n in range(longest + 1)],
            dtype=torch.float64,
            device=length.device,
        )
        in_use = subset < (1 << length)[:, None]  # [N, K]
        position = (tokens.response.cumsum(-1) - 1).clamp(min=0)
        masked = bit.bool()[None].expand(len(length), -1, -1)
        masked = masked.gather(2, position[:, None].expand(-1, len(subset), -1))
        masked = masked & tokens.response[:, None] & in_use[..., None]
        weight = masked * table[length[:, None], count.expand(len(length), -1)][..., None]
        return Draws(masked, weight, torch.where(in_use, 0, -1))


@dataclass(frozen=True)
class Exact:
    """No randomness and nothing masked: one draw that scores the whole response. The sum is the log-likelihood itself,
    of a denoiser that says each token from those before it (a causal language model).

    Raises:
        ValueError: a response begins its row, and nothing stands before its first token.
    """

    def __call__(self, tokens: Tokens, structure: Structure | None = None) -> Draws:
        first = tokens.attention & (tokens.attention.cumsum(-1) == 1)
        if bool((tokens.response & first).any()):
            raise ValueError(
                f"row {int((tokens.response & first).any(-1).nonzero()[0])} has an empty prompt: nothing stands before "
                "the first token of its answer, of which a causal language model then says nothing. Begin the prompt "
                "with a token, such as the one that begins a text"
            )
        response = tokens.response[:, None]
        return Draws(torch.zeros_like(response), response.to(torch.float64), torch.zeros_like(tokens.key)[:, None])


@dataclass(frozen=True)
class Levels:
    """How many tokens each draw masks: m from q(m) proportional to m^-exponent on 1..L, stratified within groups.

    A group is J = num_times / num_groups draws, and draw j takes its quantile of q from [j/J, (j+1)/J). A draw weighs
    (1/L) / q(m) / K, the exact importance weight. Groups are independent; num_groups = num_times gives independent
    counts.

    Args:
        exponent: 0, the law of the ELBO itself; above 0, few masks are drawn more often and weigh less.
    """

    num_times: int = 8
    num_groups: int = 1
    exponent: float = 0.0

    def __post_init__(self) -> None:
        check_budget(self.num_times, 1)
        if self.num_groups < 1:
            raise ValueError(f"num_groups must be at least 1, not {self.num_groups}")
        if not -1 <= self.exponent <= 1:
            raise ValueError(f"the exponent of the law of counts must lie in [-1, 1], not {self.exponent}")
        if self.num_times % self.num_groups:
            raise ValueError(f"num_times = {self.num_times} draws cannot form num_groups = {self.num_groups} groups")

    @property
    def per_group(self) -> int:
        return self.num_times // self.num_groups

    def quantiles(self, tokens: Tokens) -> Float[Tensor, "N K"]:
        """Numbers in [0, 1), ascending within each group: one in each of its J equal cells."""
        offset, _ = times(tokens, self.num_times, 1)
        offset = offset.unflatten(1, (self.num_groups, self.per_group))
        cell = torch.arange(self.per_group, device=offset.device)
        return ((cell + offset) / self.per_group).flatten(1)

    def __call__(self, tokens: Tokens) -> tuple[Int[Tensor, "N K"], Float[Tensor, "N K"], Int[Tensor, "N K"]]:
        """Counts in 1..L, ascending within each group; the weight of each draw, 1/K included; its group."""
        length = tokens.length
        mass = torch.arange(1, int(length.max()) + 1, dtype=torch.float64) ** -self.exponent
        below = mass.cumsum(0).to(length.device)  # of all masses up to m; summed on the CPU, hence equal everywhere
        total = below[length - 1][:, None]
        count = 1 + torch.searchsorted(below, self.quantiles(tokens) * total, right=True)
        count = torch.minimum(count, length[:, None])
        weight = total * count.double() ** self.exponent / length[:, None] / self.num_times
        group = torch.arange(self.num_times, device=length.device) // self.per_group
        return count, weight, group.expand_as(count).clone()


def _draws(
    tokens: Tokens, masked: Bool[Tensor, "N K L"], weight: Float[Tensor, "N K L"], group: Int[Tensor, "N K"]
) -> Draws:
    masked = masked & tokens.response[:, None]
    return Draws(masked, weight * masked, group)


def _per_token(tokens: Tokens, count: Int[Tensor, "N K"], weight: Float[Tensor, "N K"]) -> Float[Tensor, "N K 1"]:
    """weight * L / m: what a masked token weighs in a draw of that weight (Eq. 15)."""
    return (weight * tokens.length[:, None] / count)[..., None]


@dataclass(frozen=True)
class IndependentMasks:
    """Fixed-count draws whose counts follow `levels` and whose masks are independent: stratified or importance-sampled
    counts, and nothing else. With default levels of as many groups as draws it is `draws.FixedCount`."""

    levels: Levels = Levels()

    def __call__(self, tokens: Tokens, structure: Structure | None = None) -> Draws:
        count, weight, group = self.levels(tokens)
        masked = orders(tokens, self.levels.num_times) < count[..., None]
        return _draws(tokens, masked, _per_token(tokens, count, weight).expand(masked.shape), group)


@dataclass(frozen=True)
class BalancedMasks:
    """Masks of a group are consecutive arcs of one random order laid in a circle: tokens are masked about equally
    often (as often as each other, up to one). Given the counts each mask is uniform, so nothing else changes."""

    levels: Levels = Levels()

    def __call__(self, tokens: Tokens, structure: Structure | None = None) -> Draws:
        count, weight, group = self.levels(tokens)
        arcs = count.unflatten(1, (self.levels.num_groups, -1))
        start = (arcs.cumsum(-1) - arcs).flatten(1)[..., None]
        order = orders(tokens, self.levels.num_groups).repeat_interleave(self.levels.per_group, 1)
        masked = (order - start) % tokens.length[:, None, None] < count[..., None]
        return _draws(tokens, masked, _per_token(tokens, count, weight).expand(masked.shape), group)


@dataclass(frozen=True)
class PerBlock:
    """Draws for a block diffusion model (models/block.py): each block of a response is drawn by `plan` as a response of
    its own, with its own counts and masks, and all blocks are in one draw.

    A position sees its own block corrupted and earlier blocks clean, so log p(y | x) is at least the sum over blocks b
    of the bound of log p(y_b | y_<b, x), and a token masked in block b weighs what `plan` gives it among the L_b
    response tokens of the block, L_b / m_b / K for `FixedCount`. Blocks of one token: the exact likelihood, without
    noise. Blocks are counted from a row's first real token, so that the first of a response may hold few of its tokens.

    Not to be confused with `plan` itself, which is unbiased for the same bound, since what it masks in a block has the
    same weighted law: but one count for all blocks makes it noisier. On a model that sees all blocks at once, the other
    way round, PerBlock is not the ELBO. `Paired` goes around it, not into it.
    """

    plan: Plan
    block_size: int

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise ValueError(f"block_size must be at least 1, not {self.block_size}")
        if isinstance(self.plan, Paired):
            raise ValueError("PerBlock(Paired(plan)) knows no pairs inside a block: take Paired(PerBlock(plan))")

    def __call__(self, tokens: Tokens, structure: Structure | None = None) -> Draws:
        if bool((tokens.length == 0).any()):
            raise ValueError(f"row {int((tokens.length == 0).nonzero()[0])} has no response token")
        owner, column, blocks = self._blocks(tokens)
        found = self.plan(blocks)
        most, inside = found.group.shape[1], blocks.response
        masked = tokens.response.new_zeros(*tokens.ids.shape, most)
        weight = torch.zeros(masked.shape, dtype=torch.float64, device=masked.device)
        place = owner[:, None].expand(inside.shape)[inside], column[inside]
        masked[place], weight[place] = (part.movedim(1, 2)[inside] for part in (found.masked, found.weight))
        group = found.group.new_full((len(tokens.ids), most), -1)
        group = group.scatter_reduce(0, owner[:, None].expand(-1, most), found.group, "amax")
        return Draws(masked.movedim(2, 1), weight.movedim(2, 1), group)

    def _blocks(self, tokens: Tokens) -> tuple[Int[Tensor, " M"], Int[Tensor, "M W"], Tokens]:
        """The blocks of all responses as rows, each in order: the row that it is of, the columns of its tokens."""
        row, at = tokens.response.nonzero().unbind(1)
        block = ((tokens.attention.cumsum(-1) - 1) // self.block_size)[row, at]
        name = torch.stack((row, block), 1)
        name, number, count = name.unique_consecutive(dim=0, return_inverse=True, return_counts=True)
        rank = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[number]
        column = row.new_zeros(len(name), int(count.max())).index_put((number, rank), at)
        inside = torch.arange(column.shape[1], device=row.device) < count[:, None]
        owner, block = name.unbind(1)
        first = block.new_zeros(len(tokens.ids)).scatter_reduce(0, owner, block, "amin", include_self=False)
        key = fold(fold(tokens.key[owner], _BLOCK), block - first[owner])
        slot = None if tokens.slot is None else tokens.slot[owner[:, None], column]
        return owner, column, Tokens(tokens.ids[owner[:, None], column], inside, inside, key, slot)


def within_blocks(plan: Plan, block_size: int | None) -> Plan:
    """The plan as a model with this size of a block needs it; None: one that sees everything at once."""
    return plan if block_size is None else PerBlock(plan, block_size)


# By name --------------------------------------------------------------------------------------------------------------

EXPONENT = 0.5  # benchmarks/variance_frontier


def automatic_groups(num_times: int) -> int:
    """The smallest number of equal groups that is above 1 and leaves each at least two draws; 1 if there is none."""
    return next((groups for groups in range(2, num_times // 2 + 1) if num_times % groups == 0), 1)


def _levels(num_times: int, num_groups: int | None, exponent: float) -> Levels:
    return Levels(num_times, automatic_groups(num_times) if num_groups is None else num_groups, exponent)


def stratified(num_times: int, num_groups: int | None = None, exponent: float = EXPONENT) -> IndependentMasks:
    """`IndependentMasks` with `automatic_groups`, unless their number is given."""
    return IndependentMasks(_levels(num_times, num_groups, exponent))


def balanced(num_times: int, num_groups: int | None = None, exponent: float = EXPONENT) -> BalancedMasks:
    """`BalancedMasks`, likewise."""
    return BalancedMasks(_levels(num_times, num_groups, exponent))


def exact(num_times: int) -> Exact:
    """`Exact`, in which there is nothing to draw, however many times are asked for."""
    return Exact()


PLANS: dict[str, Callable[..., Plan]] = {  # of num_times, and of what `plan_kwargs` holds
    "fixed_count": FixedCount,
    "bernoulli": Bernoulli,
    "stratified": stratified,
    "balanced": balanced,
    "exact": exact,
}


def plan_named(name: str, num_times: int, given: Mapping[str, Any] | None = None) -> Plan:
    """The plan of this name.

    >>> plan_named("fixed_count", 4, {"num_masks": 2})
    FixedCount(num_times=4, num_masks=2)
    """
    return made("plan_kwargs", chosen("plan", PLANS, name), given or {}, f"plan={name}", num_times=num_times)


def groups_of(plan: Plan) -> int:
    """How many independent groups of draws a plan makes of each answer."""
    row = torch.arange(5)[None]
    return int(plan(Tokens(row, row > 0, row >= 0, row[:, 0])).group.max()) + 1
