"""Common random numbers for the two answers of a pair: what their draws share, and which tokens they have in common."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from vrpo.types import Draws, Pairs, Plan, Structure, Tokens

_UNSHARED = 1 << 32  # slots from here on: tokens of a rejected answer that the chosen one has not


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
