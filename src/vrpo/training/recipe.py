"""What a run is, made once from its configuration: plans, objectives, and every check of what goes together.

What deliberately does not live here: formulas (losses/), plans (plans.py), where references come from (references.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from vrpo.coupling import Paired
from vrpo.leaves import chosen, made, name_of, parameters
from vrpo.losses.corrections import CrossFit, Jackknife
from vrpo.losses.named import FLAT, LOSSES, NOT_OFFERED, against_zero
from vrpo.losses.objective import ItemObjective, Mixture, Objective, WeightedSum
from vrpo.losses.pools import POOLS, SINGLE, Apart, Confidence, Pool, Pooled, ReferenceFree
from vrpo.losses.setwise import KTO, SFT
from vrpo.losses.temperature import TEMPERATURES, Custom, RewardScaling, Temperature
from vrpo.plans import groups_of, plan_named, within_blocks
from vrpo.types import Plan

Kind = Literal["rows", "pairs", "labels", "rankings"]
Sum = Callable[[Float[Tensor, " 2"]], Float[Tensor, " 2"]]
BETA = 0.2  # the paper's
_UNCOUPLED = ("fixed_count", "bernoulli", "exact")  # plans that share nothing between answers by default
_COUPLINGS = ("none", "quantile", "aligned")
_SLOPES = ("plain", "cross_fit", "jackknife", "halves")


@dataclass(frozen=True)
class Recipe:
    """What a step and an evaluation are made of.

    Args:
        plan: how a training step draws; `eval_plan`: an evaluation.
        objective: what a step minimises, its slope where `slope` says.
        plain: the same, its slope as it is: what evaluations show. An item's loss is its.
        judged: the first loss that prefers something. What metrics call the reward is its; None in SFT.
        kind: what batches are about.
    """

    plan: Plan
    eval_plan: Plan
    objective: Objective
    plain: ItemObjective
    judged: Any = None
    kind: Kind = "rows"


def plans_of(config: Any, kind: Kind = "rows", block_size: int | None = None) -> tuple[Plan, Plan]:
    """The plans of a training step and of an evaluation.

    Args:
        block_size: of a block diffusion model, whose plan is of each block.

    Raises:
        ValueError: `plan`, its parameters, or `pair_coupling`.
    """
    plan, eval_plan = (_plan(config, name, kind, block_size) for name in ("num_times", "eval_num_times"))
    return plan, eval_plan


def _plan(config: Any, times: str, kind: Kind, block_size: int | None) -> Plan:
    try:
        plan = plan_named(config.plan, getattr(config, times), config.plan_kwargs)
    except ValueError as error:
        raise ValueError(f"{error} (plan={config.plan} with {times} = {getattr(config, times)})") from error
    plan = within_blocks(plan, block_size)
    return plan if kind == "rows" else coupled(plan, config.plan, config.pair_coupling, kind)


def coupled(plan: Plan, name: str, coupling: str | None, kind: Kind = "pairs") -> Plan:
    """The plan with the answers of a pair coupled as `pair_coupling` says: None: as is best for the plan of this name.

    Raises:
        ValueError: there is no such coupling, or nothing to couple.
    """
    if coupling is None:
        coupling = "none" if name in _UNCOUPLED or kind != "pairs" else "aligned"
    if coupling not in _COUPLINGS:
        raise ValueError(f"pair_coupling must be one of {', '.join(_COUPLINGS)}, not {coupling!r}")
    if coupling != "none" and name == "exact":
        raise ValueError("pair_coupling: plan=exact draws nothing that answers could share. Leave it out")
    if coupling != "none" and kind != "pairs":
        raise ValueError(f"pair_coupling={coupling} couples the two answers of a pair. Leave it out with {kind}")
    return plan if coupling == "none" else Paired(plan, align=coupling == "aligned")


# Preferences ----------------------------------------------------------------------------------------------------------


def losses_of(config: Any) -> list[tuple[float, str]]:
    """Weight and name of each loss; `sft_coef` is one of them.

    Raises:
        ValueError: a name or a weight.
    """
    names = [config.loss_type] if isinstance(config.loss_type, str) else list(config.loss_type)
    for name in names:
        if name in NOT_OFFERED:
            raise ValueError(f"loss_type {name!r} is not offered: {NOT_OFFERED[name]}")
        if name != "sft":
            chosen("loss_type", LOSSES, name)
    if len(set(names)) < len(names) or not set(names) - {"sft"}:
        raise ValueError(f"loss_type must name one or more preference losses, each once, not {names}")
    weights = [1.0] * len(names) if config.loss_weights is None else list(config.loss_weights)
    if len(weights) != len(names):
        raise ValueError(f"loss_weights has {len(weights)} weights for {len(names)} losses in loss_type")
    for name, value in (*(("loss_weights", weight) for weight in weights), ("sft_coef", config.sft_coef)):
        if not 0 <= value < inf:
            raise ValueError(f"{name} must not be negative, and finite, not {value}")
    if not any(weights) and not config.sft_coef:
        raise ValueError(f"loss_weights are {weights}: nothing would be learnt")
    if config.sft_coef and "sft" in names:
        raise ValueError("sft_coef and loss_type sft are the same term. Give its weight in one of them")
    about = {LOSSES[name].about for name in names if name != "sft"}
    if len(about) > 1 or (about != {"pairs"} and len(set(names) - {"sft"}) > 1):
        raise ValueError(f"loss_type {names}: kto is about labelled answers and plackett_luce about lists, and only "
                         "sft goes beside them")  # fmt: skip
    return [*zip(weights, names, strict=True), *([(config.sft_coef, "sft")] if config.sft_coef else [])]


def structure_of_losses(config: Any) -> Literal["pairs", "labels", "rankings"]:
    """What the losses are about. Losses of pairs take ranked lists, too."""
    return next(LOSSES[name].about for _, name in losses_of(config) if name != "sft")


def compares(config: Any) -> bool:
    """Whether there is a reference."""
    return not config.reference_free and any(LOSSES[name].reference for _, name in losses_of(config) if name != "sft")


def preference_recipe(
    config: Any, kind: Kind | None = None, block_size: int | None = None, over_processes: Sum | None = None
) -> Recipe:
    """The recipe of preference training.

    Args:
        config: a `VRPOConfig`.
        kind: what the rows are. None: what the losses are about.
        over_processes: as in `losses.KTO`.

    Raises:
        ValueError: fields that do not go together, with the reason.
    """
    losses, about = losses_of(config), structure_of_losses(config)
    plan, eval_plan = plans_of(config, kind or about, block_size)
    temperature, pool, builds = _temperature(config, about), _pool(config, kind or about), _builds(config)

    def built(name: str, pool: Pool) -> Any:
        objective = builds[name](temperature, pool if LOSSES[name].reference else ReferenceFree())
        if config.reference_free and against_zero(objective):
            raise ValueError(
                f"reference_free: {name} compares single log-ratios with 0, and a bound without a reference is so far "
                "below 0 that this comparison has no slope. Give a reference"
                + ", or loss_kwargs: {baseline: batch_mean}"
                * (name == "kto")
            )
        of_batch = isinstance(objective, KTO) and over_processes is not None
        return replace(objective, over_processes=over_processes) if of_batch else objective

    def part(name: str) -> ItemObjective:
        if name == "sft":
            return SFT()
        if isinstance(pool, Apart) and LOSSES[name].reference:
            return Mixture(built(name, SINGLE), pool.weights)
        return built(name, pool)

    plain = WeightedSum(tuple((weight, part(name)) for weight, name in losses))
    judged = built(next(name for _, name in losses if name != "sft"), pool)
    return Recipe(plan, eval_plan, _corrected(config, plain), plain, judged, kind or about)


def _corrected(config: Any, plain: WeightedSum) -> Objective:
    """The objective with its slope where `slope` says.

    Raises:
        ValueError: the plan's draws form one group, of which nothing is left without it.
    """
    slope = config.slope
    if slope not in _SLOPES:
        raise ValueError(f"slope must be one of {', '.join(_SLOPES)}, not {slope!r}")
    if slope == "plain":
        return plain
    if slope != "cross_fit" and "orpo" in [name for _, name in losses_of(config)]:
        raise ValueError(f"slope={slope} subtracts losses, and orpo takes odds of a likelihood. Set plain or cross_fit")
    groups = groups_of(plan_named(config.plan, config.num_times, config.plan_kwargs))
    if groups < 2:
        raise ValueError(f"slope={slope} needs independent groups of draws. Raise num_times, or num_groups in "
                         "plan_kwargs")  # fmt: skip
    if slope == "halves" and groups % 2:
        raise ValueError(f"slope=halves needs an even number of independent groups of draws, not {groups}")
    if slope == "cross_fit":
        return CrossFit(plain, groups)
    return Jackknife(plain, 2 if slope == "halves" else groups)


def _pool(config: Any, kind: str) -> Pool:
    given = config.ref_pool_kwargs or {}
    said = "ref_pool" if config.ref_pool is not None else "ref_pool_kwargs" if given else None
    if said is not None and not compares(config):
        names = ", ".join(name for _, name in losses_of(config))
        raise ValueError(f"{said} is about references, and {names} has none here. Leave it out")
    if config.ref_pool is None:
        if given:
            raise ValueError("ref_pool_kwargs goes with several references. Say in ref_pool how they are put together")
        return ReferenceFree() if config.reference_free else SINGLE
    make = chosen("ref_pool", POOLS, config.ref_pool)
    pool = made("ref_pool_kwargs", make, given, f"ref_pool={config.ref_pool}")
    if isinstance(pool, Pooled) and isinstance(pool.weights, Confidence) and kind != "pairs":
        raise ValueError("ref_pool_kwargs: weights arwc compares the two answers of a pair. Leave it out with kto, "
                         "plackett_luce and ranked lists")  # fmt: skip
    return pool


def reference_weights(config: Any) -> int | None:
    """How many weights of references are given; None: any number of references goes."""
    given = (config.ref_pool_kwargs or {}).get("weights")
    return len(given) if isinstance(given, list | tuple) else None


def _builds(config: Any) -> dict[str, Any]:
    """How each loss is made of a temperature and a pool, with its own parameters.

    Raises:
        ValueError: a parameter that no loss has.
    """
    names = [name for _, name in losses_of(config) if name != "sft"]
    flat = {each: getattr(config, each) for each, neutral in FLAT.items() if getattr(config, each) != neutral}
    for key in FLAT.keys() & (config.loss_kwargs or {}).keys():
        raise ValueError(f"loss_kwargs: {key} is a field of its own. Set it there")
    given: Mapping[str, Any] = {**flat, **(config.loss_kwargs or {})}
    owned = {name: list(parameters(LOSSES[name].make)) for name in names}
    for key in given:
        if not any(key in each for each in owned.values()):
            field_name = key if key in flat else f"loss_kwargs: {key}"
            having = [name for name, each in LOSSES.items() if key in parameters(each.make)]
            meant = f"belongs to loss_type {' or '.join(having)}" if having else "belongs to no loss"
            raise ValueError(f"{field_name} {meant}; {', '.join(names)} has {_listed(owned)}")
    return {
        name: made("loss_kwargs", LOSSES[name].make, {key: given[key] for key in owned[name] if key in given}, name)
        for name in names
    }


def _listed(owned: Mapping[str, list[str]]) -> str:
    return ", ".join(key for each in owned.values() for key in each) or "none"


def _temperature(config: Any, about: str) -> Temperature:
    if callable(config.temperature):
        if config.beta != BETA or config.temperature_kwargs:
            raise ValueError("temperature is a function that gives each pair its beta. Leave out beta and "
                             "temperature_kwargs")  # fmt: skip
        return Custom(config.temperature, name_of(config.temperature))
    make = chosen("temperature", TEMPERATURES, config.temperature)
    given = config.temperature_kwargs or {}
    found = made("temperature_kwargs", make, given, f"temperature={config.temperature}", beta=config.beta)
    if isinstance(found, RewardScaling) and about != "pairs":
        raise ValueError("temperature=reward_scaling scales by the rewards of a pair's two answers: not with kto and "
                         "plackett_luce")  # fmt: skip
    return found
