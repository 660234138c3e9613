"""What is measured: plans, and the budgets that each one's groups are put together to."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vrpo.draws import FixedCount
from vrpo.types import Plan

PAPER = "fixed_count"
_MASKS = (1, 2, 4, 8)  # masks per time, as far as they fit into the largest budget


@dataclass(frozen=True)
class Design:
    """A plan as a replicate runs it, `draws` passes in groups of `per_group`, and the budgets it is reported at.

    A budget of n is n / per_group consecutive groups, so that one run serves many budgets.

    Args:
        label: what a reader calls the plan.
        num_masks: masks per time, for the paper's plan; 0 for any other.
    """

    label: str
    plan: Plan
    draws: int
    per_group: int
    budgets: tuple[int, ...]
    num_masks: int = 0

    @property
    def name(self) -> str:
        """Its name on disk: equal names hold equal draws."""
        kind = f"{self.label}-{self.draws}x{self.per_group}"
        return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in kind)

    @property
    def single(self) -> bool:
        """Whether it is the paper's plan with one mask per time, from which everything about single draws is read."""
        return self.num_masks == 1

    def groups(self, budget: int) -> int:
        return budget // self.per_group


def allocations(budgets: Sequence[int]) -> list[Design]:
    """The paper's plan at every allocation n = n_t * n_y within the largest budget: one design per n_y, since a group
    of FixedCount is one time with its n_y masks.

    Raises:
        ValueError: the largest budget is not a multiple of each other one, or there is no budget from 1 up.
    """
    if not budgets or min(budgets) < 1:
        raise ValueError(f"budgets must be at least 1, not {list(budgets)}")
    most = max(budgets)
    odd = [n for n in budgets if most % n]
    if odd:
        raise ValueError(f"budgets {odd} do not divide the largest one, {most}: its draws are shared out to all others")
    masks = [n for n in _MASKS if most % n == 0 and n <= most]
    return [
        Design(PAPER, FixedCount(most // n, n), most, n, tuple(b for b in sorted(set(budgets)) if b % n == 0), n)
        for n in masks
    ]


def merged(designs: Sequence[Design]) -> list[Design]:
    """One design of each name, with all of its budgets: equal names hold equal draws. The first one's label stays."""
    found: dict[str, Design] = {}
    for design in designs:
        known = found.setdefault(design.name, design)
        found[design.name] = replace(known, budgets=tuple(sorted({*known.budgets, *design.budgets})))
    return list(found.values())
