"""Plans as a user names them, `name` or `name:field=value,field=value`, by the fields of `vrpo train`."""

from collections.abc import Sequence

import torch

from vrpo.commands.arguments import parse
from vrpo.diagnostics.designs import Design
from vrpo.training.config import VRPOConfig
from vrpo.types import Pairs, Tokens

_FIELDS = ("num_masks", "t_min", "num_groups", "count_exponent", "control", "pair_coupling")
_GROUPED = ("stratified", "balanced", "nested")


def named_designs(names: Sequence[str], budgets: Sequence[int], most: int) -> list[Design]:
    """A design for each plan at each budget, replicated `most` / budget times over in one run where that is whole, so
    that plans are measured as finely as the paper's.

    Raises:
        ValueError: a plan has no such name or field, or not at this budget.
    """
    if budgets and min(budgets) < 1:
        raise ValueError(f"plan_draws must be at least 1, not {list(budgets)}")
    return [_design(name, n, most if most % n == 0 else n) for name in names for n in sorted(set(budgets))]


def _design(name: str, budget: int, draws: int) -> Design:
    config = _config(name, budget)
    per_time = config.num_masks
    if budget % per_time:
        raise ValueError(f"plan {name!r}: num_masks = {per_time} does not divide {budget} draws (--plan_draws)")
    try:
        groups = _groups(config, budget // per_time)
        if config.plan in _GROUPED:
            config.num_groups = groups * draws // budget
        plan = config.sampling_plan(draws // per_time)
    except ValueError as error:
        raise ValueError(f"plan {name!r} with {budget} draws: {error}") from error
    return Design(name, plan, draws, budget // groups, (budget,))


def _config(name: str, budget: int) -> VRPOConfig:
    """The training configuration that the name stands for."""
    plan, _, rest = name.partition(":")
    given = ["--output_dir", "unused", "--plan", plan]
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if key not in _FIELDS or not equals:
            raise ValueError(f"plan {name!r}: {part!r} is not field=value with one of {', '.join(_FIELDS)}")
        given += [f"--{key}", value]
    try:
        return parse((VRPOConfig,), [*given, "--num_times", str(budget)], prog="plan", description="")[0]
    except ValueError as error:
        raise ValueError(f"plan {name!r}: {error}") from error


def _groups(config: VRPOConfig, num_times: int) -> int:
    """How many independent groups the plan's draws of one row form; read off a row."""
    whole = torch.ones(2, 2, dtype=torch.bool)
    row = Tokens(torch.tensor([[0, 1], [1, 0]]), whole, whole, torch.arange(2))
    draws = config.sampling_plan(num_times)(row, Pairs(torch.tensor([0]), torch.tensor([1]), row.length))
    return int(draws.group.max()) + 1
