"""Plans as a user names them, `name` or `name:field=value,field=value`, by the fields of `vrpo train`."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from typing import Any

from vrpo.diagnostics.designs import Design
from vrpo.leaves import chosen, parameters
from vrpo.plans import PLANS, groups_of, plan_named
from vrpo.training.preference_config import VRPOConfig
from vrpo.training.recipe import coupled
from vrpo.types import Plan

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
    plan, given = _parts(name)
    per_time = given.get("num_masks", 1)
    if budget % per_time:
        raise ValueError(f"plan {name!r}: num_masks = {per_time} does not divide {budget} draws (--plan_draws)")
    try:
        groups = groups_of(plan_named(plan, budget // per_time, _own(given)))
        if plan in _GROUPED:
            given["num_groups"] = groups * draws // budget
        made = _plan(plan, draws // per_time, given)
    except ValueError as error:
        raise ValueError(f"plan {name!r} with {budget} draws: {error}") from error
    return Design(name, made, draws, budget // groups, (budget,))


def _parts(name: str) -> tuple[str, dict[str, Any]]:
    """The plan's name and its parameters, with `pair_coupling` among them."""
    plan, _, rest = name.partition(":")
    known = [*parameters(chosen("plan", PLANS, plan)), "pair_coupling"]
    given: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if key not in known or key == "num_times" or not equals:
            having = ", ".join(each for each in known if each != "num_times")
            raise ValueError(f"plan {name!r}: {part!r} is not field=value with one of {having}")
        given[key] = value if key == "pair_coupling" else _number(name, key, value)
    return plan, given


def _number(name: str, key: str, value: str) -> int | float:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(value)
    raise ValueError(f"plan {name!r}: {key} takes a number, not {value!r}")


def _plan(name: str, num_times: int, given: Mapping[str, Any]) -> Plan:
    return coupled(plan_named(name, num_times, _own(given)), name, given.get("pair_coupling"))


def _own(given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key != "pair_coupling"}
