"""Plans with less noise than the paper's at the same number of forward passes. Each is unbiased for the ELBO.

Three decisions, each exact by itself: how many tokens the draws of a row mask (`Levels`); which ones, given how many
(`IndependentMasks`, `BalancedMasks`); and what the two answers of a pair have in common
(`Paired`). `PerBlock` takes them for each block of a block diffusion model. What deliberately does not live here: the
paper's own plan and the hash (draws.py).
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vrpo.draws import check_budget, fold, orders, times
from vrpo.types import Draws, Pairs, Plan, Structure, Tokens

_BLOCK = 4  # a purpose of the hash, beside those of draws.py
_UNSHARED = 1 << 32  # slots from here on: tokens of a rejected answer that the chosen one has not


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


@dataclass(frozen=True)
class Paired:
    """Common random numbers for the two answers of a pair: both follow the keys of the chosen one.

    So their draws have common quantiles of m; and, aligned, common orders on the tokens that the answers share in one
    sequence (`shared_tokens`). Each answer's own law, hence its bound, stays what it is: only the noise of the margin
    changes. Draws depend on both answers of the pair, and on nothing else.

    Raises:
        ValueError: the rows are not `Pairs`, or a row is in two of them.
    """

    plan: Plan
    align: bool = True

    def __call__(self, tokens: Tokens, structure: Structure | None = None) -> Draws:
        if not isinstance(structure, Pairs):
            raise ValueError("Paired couples the draws of chosen and rejected answers: it needs Pairs as structure")
        rows = torch.cat([structure.chosen, structure.rejected])
        if len(rows.unique()) < len(rows):
            raise ValueError("Paired couples pairs without a row in common: a row of two pairs would need two keys")
        key, slot = tokens.key.clone(), tokens.response.cumsum(-1) - 1
        key[structure.rejected] = tokens.key[structure.chosen]
        if self.align:
            partner = shared_tokens(tokens, structure)
            own = slot[structure.rejected] + _UNSHARED
            slot = slot.index_copy(0, structure.rejected, torch.where(partner >= 0, partner, own))
        return self.plan(replace(tokens, key=key, slot=slot), structure)


def shared_tokens(tokens: Tokens, pairs: Pairs) -> Int[Tensor, "P L"]:
    """For each position of the rejected response, the place in the chosen response that holds the same token in a
    longest common subsequence of the two, or -1 where there is none.

    Dynamic programming, vectorised over pairs: O(L) steps, P x L^2 small integers. On the CPU wherever the rows are:
    thousands of tiny steps, of which a GPU would only feel the launches.
    """
    ids, response = tokens.ids.cpu(), tokens.response.cpu()
    chosen, rejected = pairs.chosen.cpu(), pairs.rejected.cpu()
    column = response.any(0).nonzero()[:, 0]
    cut = slice(int(column[0]), int(column[-1]) + 1)
    inside_a, inside_b = response[chosen, cut], response[rejected, cut]
    match = ids[chosen, cut][:, :, None] == ids[rejected, cut][:, None]
    match = match & inside_a[:, :, None] & inside_b[:, None]
    found = torch.full_like(ids[rejected], -1)
    found[:, cut] = _backtrace(_common_lengths(match), inside_a.cumsum(-1) - 1)
    return found.to(tokens.ids.device)


def _common_lengths(match: Bool[Tensor, "P A B"]) -> Int[Tensor, "P _ _"]:
    """[i, j]: length of the longest common subsequence of the first i and the first j positions."""
    table = torch.zeros(len(match), match.shape[1] + 1, match.shape[2] + 1, dtype=torch.int16, device=match.device)
    for i in range(match.shape[1]):
        longest = torch.maximum(table[:, i, 1:], table[:, i, :-1] + match[:, i])
        table[:, i + 1, 1:] = longest.cummax(-1).values
    return table


def _backtrace(table: Int[Tensor, "P _ _"], place: Int[Tensor, "P A"]) -> Int[Tensor, "P _"]:
    """One longest common subsequence: `place` of its position in the first sequence, for each of the second; or -1."""
    pair = torch.arange(len(table), device=table.device)
    i, j = (torch.full_like(pair, size - 1) for size in table.shape[1:])
    found = place.new_full((len(table), table.shape[2] - 1), -1)
    for _ in range(table.shape[1] + table.shape[2] - 2):
        above, left = (i - 1).clamp(min=0), (j - 1).clamp(min=0)
        here = table[pair, i, j]
        up = (i > 0) & (table[pair, above, j] == here)
        back = ~up & (j > 0) & (table[pair, i, left] == here)
        both = ~up & ~back & (i > 0) & (j > 0)
        found[pair, left] = torch.where(both, place[pair, above], found[pair, left])
        i, j = torch.where(up | both, above, i), torch.where(back | both, left, j)
    return found
