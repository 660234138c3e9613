"""The gradient of a preference step with one forward pass of the policy per draw, where few parameters are trained.

An adapter's step needs 3 forward equivalents so, and 4 by `preference.backward_by_draw` (benchmarks/step_cost).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vrpo.estimator import ENGINE, Engine, pack_terms, plan_packs
from vrpo.losses.objective import Objective
from vrpo.preference import Step, loss_and_slope
from vrpo.reference import Reference
from vrpo.structures import Rankings
from vrpo.types import Denoiser, Draws, Pairs, Terms, Tokens

Gradient = Sequence[Tensor | None]  # of each parameter


@dataclass(frozen=True)
class OnePass:
    """A backward of a preference step that pushes each row back as it comes, into a buffer, and scales it afterwards.

    Where a row's draws all have one slope, sum_k slope_k grad term_k is the slope times the gradient of the row's sum:
    so each row has a buffer of the parameters' size, scaled when its family's terms are known. Worth it where the
    parameters are few: a family needs as many buffers as it has rows. Memory does not grow with the number of draws,
    nor of families.

    Args:
        parameters: all that are trained.
        by_group: the objective's slopes differ between groups of draws (`CrossFit`, `Jackknife`): a buffer for each.
    """

    parameters: Sequence[Tensor]
    by_group: bool = False

    def __call__(
        self,
        policy: Denoiser,
        reference: Reference,
        tokens: Tokens,
        structure: Pairs | Rankings,
        draws: Draws,
        objective: Objective,
        engine: Engine = ENGINE,
    ) -> Step:
        """Accumulate engine.scale * grad(loss) into `.grad`: the same gradient as `backward_by_draw`.

        The reference sees the packs that the policy sees, so that what rounding does to both cancels. It must be one of
        the same draws. Gradients do not pass any wrapper's hooks: the caller sums `.grad` over processes. Rows of one
        `structure.family` have slopes that depend on each other's terms, and on no others'.

        Raises:
            ValueError: draws of a buffer have slopes of their own, or a slope changed with terms of another family.
        """
        nothing = torch.zeros_like(draws.in_use)
        found = Terms(nothing.double(), reference(tokens, draws.only(nothing), structure, engine), draws.group)
        applied = torch.zeros_like(found.policy)
        family = structure.family
        for number in family.unique():
            buffers = []
            for unit in units(draws, (family == number)[:, None] & draws.in_use, self.by_group):
                theirs = reference(tokens, draws.only(unit), structure, engine)
                values, gradient = self._pushed_back(policy, tokens, draws, unit, engine)
                both = torch.where(unit[:, None], theirs, found.reference)
                found = Terms(found.policy + values, both, draws.group)
                buffers.append((unit, gradient))
            _, slope = loss_and_slope(objective, found, structure)
            for unit, gradient in buffers:
                applied[unit] = self._accumulate(gradient, slope[unit], engine.scale)
        loss, whole = loss_and_slope(objective, found, structure)
        if not torch.allclose(whole * draws.in_use, applied, rtol=1e-9, atol=0, equal_nan=True):
            raise ValueError("the objective couples rows of different families: use backward_by_draw")
        return Step(loss, found, draws.in_use)

    def _pushed_back(
        self, policy: Denoiser, tokens: Tokens, draws: Draws, unit: Bool[Tensor, "N K"], engine: Engine
    ) -> tuple[Float[Tensor, "N K"], Gradient]:
        """The unit's terms, and the gradient of their sum."""
        terms = torch.zeros(unit.shape, dtype=torch.float64, device=unit.device)
        total: Gradient = [None] * len(self.parameters)
        for pack in plan_packs(tokens, draws, unit, engine):
            with engine.around(False):
                values = pack_terms(policy, tokens, draws, pack)
                found = torch.autograd.grad(values.sum(), self.parameters, allow_unused=True)
            terms[pack[:, 0], pack[:, 1]] = values.detach()
            total = [_sum(*both) for both in zip(total, found, strict=True)]
        return terms, total

    def _accumulate(self, gradient: Gradient, slope: Float[Tensor, " U"], scale: float) -> Float[Tensor, " U"]:
        """Add a buffer, times its draws' one slope, to `.grad`; the slopes."""
        if not torch.allclose(slope, slope[:1], rtol=0, atol=0, equal_nan=True):
            raise ValueError("the slopes of one row's draws differ: use backward_by_draw, or by_group")
        factor = scale * float(slope[0])
        for parameter, part in zip(self.parameters, gradient, strict=True):
            if part is not None:
                parameter.grad = part * factor if parameter.grad is None else parameter.grad.add_(part, alpha=factor)
        return slope


def units(draws: Draws, keep: Bool[Tensor, "N K"], by_group: bool) -> list[Bool[Tensor, "N K"]]:
    """The kept items, row by row, and group by group of a row if asked: what shares a buffer."""
    number = torch.arange(len(keep), device=keep.device)[:, None] * (draws.group.max() + 1)
    number = number + draws.group if by_group else number.expand_as(draws.group)
    return [keep & (number == value) for value in number[keep].unique()]


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other
