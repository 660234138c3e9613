"""Plans as a user names them, `name` or `name:field=value,field=value`, by the fields of `vrpo train`."""

from collections.abc import Sequence
from dataclasses import fields

import torch

from vrpo.commands.arguments import parse
from vrpo.diagnostics.designs import Design
from vrpo.training.preference_config import VRPOConfig
from vrpo.types import Pairs, Tokens

_FIELDS = ("num_masks", "t_min", "num_groups", "count_exponent", "pair_coupling")
_BUDGETS = (1, 2, 4, 8)  # enough for an n, and the default among them
_GROUPED = ("stratified", "balanced")


def named_designs(names: Sequence[str], budgets: Sequence[int] | None, most: int) -> list[Design]:
    """A design for each plan at each budget, replicated `most` / budget times over in one run where that is whole, so
    that plans are measured as finely as the paper's, and budgets with equal groups in one run.

    Args:
        budgets: None: 1, 2, 4 and 8, as far as the plan has them.

    Raises:
        ValueError: a plan has no such name or field, or not at this budget; or at none of the four.
    """
    if budgets is None:
        return [design for name in names for design in _possible(name, most)]
    if not budgets or min(budgets) < 1:
        raise ValueError(f"plan_draws must be at least 1, not {list(budgets)}")
    return [_design(name, n, _run(n, most)) for name in names for n in sorted(set(budgets))]


def _possible(name: str, most: int) -> list[Design]:
    found, refused = [], ValueError()
    for n in _BUDGETS:
        try:
            found.append(_design(name, n, _run(n, most)))
        except ValueError as error:
            refused = error
    if not found:
        raise refused
    return found


def _run(budget: int, most: int) -> int:
    """Draws of a run that is reported at this budget."""
    return most if most % budget == 0 else budget


def trained_by_default() -> tuple[str, int]:
    """The plan and the draws per answer that `vrpo train` has when nothing is said about them."""
    default = {field.name: field.default for field in fields(VRPOConfig)}
    return str(default["plan"]), int(str(default["num_times"]))


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
        return parse((VRPOConfig,), [*given, "--num_times", str(budget)], prog="plan")[0]
    except ValueError as error:
        raise ValueError(f"plan {name!r}: {error}") from error


def _groups(config: VRPOConfig, num_times: int) -> int:
    """How many independent groups the plan's draws of one row form; read off a row."""
    whole = torch.ones(2, 2, dtype=torch.bool)
    row = Tokens(torch.tensor([[0, 1], [1, 0]]), whole, whole, torch.arange(2))
    draws = config.sampling_plan(num_times)(row, Pairs(torch.tensor([0]), torch.tensor([1]), row.length))
    return int(draws.group.max()) + 1
