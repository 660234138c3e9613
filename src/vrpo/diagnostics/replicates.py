"""Independent replicates of an estimate: one pair, one plan, the draws again and again under new keys.

What an estimate's noise is, is read off these (statistics.py). A group of draws is the smallest independent unit, so
groups are kept apart: from groups of one draw every smaller budget can be put together afterwards.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vrpo.draws import fold
from vrpo.estimator import Engine, pack_terms, plan_packs
from vrpo.reference import Reference
from vrpo.sketch import Sketch
from vrpo.types import Denoiser, Draws, Pairs, Plan, Tokens

_REPLICATE = 103  # purpose of the keys


@dataclass(frozen=True)
class Replicates:
    """R replicates of G independent groups of draws, each group scaled to estimate the bound by itself.

    `policy`, `reference`: bounds of the chosen and the rejected answer, in nats; `gradient`: sketches of the gradient
    of the policy's margin B(chosen) - B(rejected) with respect to the trainable parameters, without beta.
    """

    policy: Float[Tensor, "R 2 G"]
    reference: Float[Tensor, "R 2 G"]
    gradient: Float[Tensor, "R G D"]

    def at(self, groups: int) -> "Replicates":
        """Estimates of `groups` groups each: the mean of consecutive ones, as many as there are."""
        count = self.policy.shape[2] // groups
        if count < 1:
            raise ValueError(f"{self.policy.shape[2]} groups per replicate cannot make an estimate of {groups}")
        parts = (self.policy, self.reference, self.gradient.transpose(1, 2))
        means = [part[..., : count * groups].unflatten(-1, (count, groups)).mean(-1) for part in parts]
        return Replicates(means[0], means[1], means[2].transpose(1, 2))

    def without(self, replicate: int) -> "Replicates":
        """All replicates but one."""
        keep = torch.arange(len(self.policy)) != replicate
        return Replicates(self.policy[keep], self.reference[keep], self.gradient[keep])

    def independent(self) -> "Replicates":
        """As if policy and reference had draws of their own: the reference's come from the next replicate.

        Each estimate has the law of independent draws; estimates of neighbouring replicates are correlated by what they
        share, so that a variance over B of them comes out high by a share of at most 1 / (B - 1), and biases are
        unbiased up to 1 / B only.
        """
        return Replicates(self.policy, self.reference.roll(1, 0), self.gradient)


def _ignore(done: int) -> None:
    """Where nobody watches the progress."""


def replicate(
    policy: Denoiser,
    reference: Reference,
    pair: Tokens,
    plan: Plan,
    *,
    parameters: Sequence[nn.Parameter],
    num_replicates: int,
    sketch: Sketch,
    max_tokens: int,
    progress: Callable[[int], object] = _ignore,
) -> Replicates:
    """Replicates of the margin of one pair (row 0 chosen, row 1 rejected) and of its gradient.

    Args:
        parameters: what the gradient is taken of; usually all that are trainable.
        max_tokens: tokens, padding included, per call of a model.
        progress: told after each replicate how many draws of an answer it took.
    """
    tokens, pairs = replicated(pair, num_replicates)
    draws = plan(tokens, pairs)
    with torch.no_grad():
        found = reference(tokens, draws, pairs, Engine(max_tokens))
    if found.shape[1] != 1:
        raise ValueError(f"a margin needs exactly one reference, not {found.shape[1]}")
    run = _Backward(policy, tokens, draws, parameters, sketch, max_tokens)
    parts = []
    for r in range(num_replicates):
        parts.append(run(r, r + num_replicates))
        progress(2 * draws.group.shape[1])
    terms, gradient = (torch.stack(part) for part in zip(*parts, strict=True))
    groups = gradient.shape[1]
    bounds = [_by_group(part, draws.group, groups) * groups for part in (terms, _sides(found[:, 0]))]
    return Replicates(bounds[0], bounds[1], gradient * groups)


def replicated(pair: Tokens, count: int) -> tuple[Tokens, Pairs]:
    """`count` copies of a pair under keys of their own: all chosen rows, then all rejected ones."""
    index = torch.arange(count, device=pair.key.device)
    key = fold(fold(pair.key, _REPLICATE)[:, None], index).flatten()
    ids, response, attention = (part.repeat_interleave(count, 0) for part in (pair.ids, pair.response, pair.attention))
    tokens = Tokens(ids, response, attention, key)
    return tokens, Pairs(index, index + count, tokens.length)


def _sides(rows: Float[Tensor, "N K"]) -> Float[Tensor, "R 2 K"]:
    """Chosen rows, then rejected ones, to replicates of both."""
    return rows.unflatten(0, (2, len(rows) // 2)).transpose(0, 1)


def _by_group(terms: Float[Tensor, "R 2 K"], group: Int[Tensor, "N K"], groups: int) -> Float[Tensor, "R 2 G"]:
    """Sums of the terms of each group; draws that are not in use have none."""
    slot = group.clamp(min=0).unflatten(0, (2, len(terms))).transpose(0, 1)
    return terms.new_zeros(*terms.shape[:2], groups).scatter_add(2, slot, terms)


@dataclass(frozen=True)
class _Backward:
    """One backward pass per group of draws: terms and sketches."""

    policy: Denoiser
    tokens: Tokens
    draws: Draws
    parameters: Sequence[nn.Parameter]
    sketch: Sketch
    max_tokens: int

    def __call__(self, chosen: int, rejected: int) -> tuple[Float[Tensor, "2 K"], Float[Tensor, "G D"]]:
        groups = int(self.draws.group.max()) + 1
        device = self.draws.group.device
        terms = torch.zeros(2, self.draws.group.shape[1], dtype=torch.float64, device=device)
        gradient = torch.zeros(groups, self.sketch.size, dtype=torch.float64, device=device)
        for group in range(groups):
            for pack in plan_packs(
                self.tokens, self.draws, self._items((chosen, rejected), group), Engine(self.max_tokens)
            ):
                side = (pack[:, 0] == rejected).long()
                terms[side, pack[:, 1]], sketched = self._pack(pack, side)
                gradient[group] += sketched
        return terms, gradient

    def _items(self, rows: tuple[int, ...], group: int) -> Tensor:
        keep = torch.zeros_like(self.draws.in_use)
        keep[list(rows)] = self.draws.in_use[list(rows)] & (self.draws.group[list(rows)] == group)
        return keep

    def _pack(self, pack: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
        """Terms of the items, and the sketch of the gradient of chosen minus rejected ones."""
        values = pack_terms(self.policy, self.tokens, self.draws, pack)
        found = torch.autograd.grad((values * (1 - 2 * side)).sum(), self.parameters, allow_unused=True)
        return values.detach(), self.sketch(found)
