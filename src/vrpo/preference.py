"""A preference step: the loss with all its graphs, or the same gradient at the memory of one draw.

A loss that is a function of the terms has the gradient sum_k (d loss / d term_k) * grad term_k. The slopes need only
the VALUES of the terms; so the values come first, without a graph, and then one pack of draws at a time is run again
and pushed back with its slopes. Nothing is approximated.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vrpo.estimator import Agree, Pack, elbo, pack_terms, plan_packs, terms_of
from vrpo.losses import Objective
from vrpo.reference import Reference
from vrpo.types import AnyDraws, AnyTokens, Denoiser, Draws, Structure, Tokens

Parameters = Sequence[Tensor]
Backward = Callable[[Float[Tensor, ""]], None]  # differentiates a scalar into the parameters' .grad
Around = Callable[[bool], AbstractContextManager[object]]  # (is it the last backward of the step?) -> its context
Told = Callable[[Bool[Tensor, "N K"]], None]  # which draws of which rows have a pass with a graph


@dataclass(frozen=True)
class Step:
    """What a preference step computed: the loss and the terms it came from, for metrics.

    `graphs` says which draws had a pass with a graph, for the gradient.
    """

    loss: Float[Tensor, ""]
    policy_terms: Float[Tensor, "N K"]
    reference_terms: Float[Tensor, "N R J"]
    graphs: Bool[Tensor, "N K"]


def preference_loss(
    policy: Denoiser,
    reference: Reference,
    tokens: AnyTokens,
    structure: Structure,
    draws: AnyDraws,
    objective: Objective,
    *,
    max_tokens: int | None = None,
    agree: Agree = int,
) -> Step:
    """The loss, differentiable through all draws at once: memory grows with the number of draws."""
    reference_terms = reference(tokens, draws, structure, max_tokens=max_tokens, agree=agree)
    policy_terms = elbo(policy, tokens, draws, max_tokens=max_tokens, agree=agree).terms
    return Step(objective(policy_terms, reference_terms, structure), policy_terms, reference_terms, draws.in_use)


def backward_by_draw(
    policy: Denoiser,
    reference: Reference,
    tokens: AnyTokens,
    structure: Structure,
    draws: AnyDraws,
    objective: Objective,
    *,
    max_tokens: int | None = None,
    agree: Agree = int,
    scale: float = 1.0,
    backward: Backward = Tensor.backward,
    around: Around = nullcontext,
    together: Callable[[], AbstractContextManager[object]] = nullcontext,
    told: Told | None = None,
) -> Step:
    """Accumulate scale * grad(loss) into the policy's parameters, holding one pack's graph at a time.

    The same gradient as `scale * preference_loss(...).loss.backward()`, at an activation memory that does not grow with
    the number of draws: by default that of one draw of every row. The first packs, as many as fit into the budget
    together, keep their graphs; every other costs an extra forward pass without one. Items whose slope is zero are not
    run again. The policy must be deterministic (no dropout), since its terms are computed twice.

    Args:
        max_tokens: tokens (padding included) per call; None: as many as one draw of every row.
        agree: makes the number of calls equal across processes.
        scale: factor on the gradient (not on the returned loss).
        backward: instead of `Tensor.backward`, for trainers that scale losses.
        around: context of each pack's forward and backward, given whether it is the last one: where a trainer defers
            the synchronisation of gradients.
        together: context of the forwards whose graphs are alive at once, where they can share what they have in common:
            the weights that an autocast has cast.
        told: called with the items that have a slope, before any pass with a graph. No graph is then kept from the
            passes for the values.
    """
    packs = plan_packs(tokens, draws, draws.in_use, max_tokens, agree)
    kept = kept_packs(packs, tokens, max_tokens, agree) if told is None else 0
    reference_terms = reference(tokens, draws, structure, max_tokens=max_tokens, agree=agree)
    with torch.no_grad():
        values = terms_of(policy, tokens, draws, packs[kept:])
    only = kept == len(packs)
    with around(only) if kept else nullcontext():
        with together():
            first = [pack_terms(policy, tokens, draws, pack) for pack in packs[:kept]]
        items = torch.cat(packs[:kept]) if kept else packs[0][:0]
        done = torch.zeros_like(draws.in_use).index_put(items.unbind(1), torch.ones_like(items[:, 0], dtype=torch.bool))
        for pack, found in zip(packs[:kept], first, strict=True):
            values[pack[:, 0], pack[:, 1]] = found.detach()
        terms = values.requires_grad_()
        loss = objective(terms, reference_terms, structure)
        (slope,) = torch.autograd.grad(loss, terms)
        again = (slope != 0) & draws.in_use
        if told is not None:
            told(again)
        if kept:
            backward(scale * (torch.cat(first) * slope[items.unbind(1)]).sum())
    del first  # and its graph
    step = Step(loss.detach(), terms.detach(), reference_terms, again | done)
    if only:
        return step
    packs = plan_packs(tokens, draws, again & ~done, max_tokens, agree)
    for index, pack in enumerate(packs):
        with around(index == len(packs) - 1):
            repeated = pack_terms(policy, tokens, draws, pack)
            backward(scale * (repeated * slope[pack[:, 0], pack[:, 1]]).sum())
    return step


def kept_packs(packs: Sequence[Pack], tokens: AnyTokens, max_tokens: int | None, agree: Agree = int) -> int:
    """How many packs, from the first, keep their graphs: as many as fill one pack's budget; the same on all
    processes."""
    if max_tokens is None:
        return 1
    size = tokens.size
    total = [len(pack) * int(size[pack[:, 0]].max()) if len(pack) else int(size[0]) for pack in packs]
    fits = max(1, sum(1 for some in accumulate(total) if some <= max_tokens))
    return len(packs) + 1 - agree(len(packs) + 1 - fits)  # the least of any; `agree` gives 1 at least


def all_graphs_fit(tokens: AnyTokens, draws: AnyDraws, max_tokens: int | None) -> bool:
    """Whether `backward_by_draw` keeps all graphs, and so needs one pass and no buffers."""
    packs = plan_packs(tokens, draws, draws.in_use, max_tokens)
    return kept_packs(packs, tokens, max_tokens) == len(packs)


def backward_in_one_pass(
    policy: Denoiser,
    reference: Reference,
    tokens: Tokens,
    structure: Structure,
    draws: Draws,
    objective: Objective,
    parameters: Parameters,
    family: Int[Tensor, " N"],
    *,
    max_tokens: int | None = None,
    scale: float = 1.0,
    around: Around = nullcontext,
    by_group: bool = False,
) -> Step:
    """Accumulate scale * grad(loss) into the .grad of `parameters` with one forward pass of the policy per draw.

    The same gradient as `backward_by_draw`. Where a row's draws all have one slope, sum_k slope_k grad term_k is the
    slope times the gradient of the row's sum: so each row is pushed back as it comes, into a buffer of the parameters'
    size, and scaled when its family's terms are known. Worth it where the parameters are few (adapters): a family needs
    as many buffers as it has rows. Memory does not grow with the number of draws, nor of families.

    The reference sees the packs that the policy sees, so that what rounding does to both cancels. It must be one of the
    same draws. Gradients do not pass any wrapper's hooks: the caller sums `.grad` over processes.

    Args:
        parameters: all that are trained.
        family: rows of equal number have slopes that depend on each other's terms, and on no others' (`Pairs.family`).
        around: context of each forward and backward, told that it is not the last one.
        by_group: the objective's slopes differ between groups of draws (`CrossFit`, `Jackknife`): a buffer for each.

    Raises:
        ValueError: draws of a buffer have slopes of their own, or a slope changed with terms of another family.
    """
    terms = torch.zeros(draws.group.shape, dtype=torch.float64, device=draws.group.device)
    applied = torch.zeros_like(terms)
    reference_terms = reference(tokens, draws.only(torch.zeros_like(draws.in_use)), structure, max_tokens=max_tokens)
    for number in family.unique():
        rows = family == number
        buffers = []
        for unit in rows_of(rows[:, None] & draws.in_use, draws, by_group):
            found = reference(tokens, draws.only(unit), structure, max_tokens=max_tokens)
            reference_terms = torch.where(unit[:, None], found, reference_terms)
            values, gradient = _pushed_back(policy, tokens, draws, unit, parameters, max_tokens, around)
            terms = terms + values
            buffers.append((unit, gradient))
        slope = _slope(objective, terms, reference_terms, structure)
        for unit, gradient in buffers:
            own = slope[unit]
            if not torch.allclose(own, own[:1], rtol=0, atol=0, equal_nan=True):
                raise ValueError("the slopes of one row's draws differ: use backward_by_draw, or by_group")
            _accumulate(parameters, gradient, scale * float(own[0]))
            applied[unit] = own
    loss = objective(terms, reference_terms, structure)
    whole = _slope(objective, terms, reference_terms, structure) * draws.in_use
    if not torch.allclose(whole, applied, rtol=1e-9, atol=0, equal_nan=True):
        raise ValueError("the objective couples rows of different families: use backward_by_draw")
    return Step(loss, terms, reference_terms, draws.in_use)


def rows_of(keep: Bool[Tensor, "N K"], draws: Draws, by_group: bool) -> list[Bool[Tensor, "N K"]]:
    """The kept items, row by row, and group by group of a row if asked."""
    number = torch.arange(len(keep), device=keep.device)[:, None] * (draws.group.max() + 1)
    number = number + draws.group if by_group else number.expand_as(draws.group)
    return [keep & (number == value) for value in number[keep].unique()]


def _pushed_back(
    policy: Denoiser,
    tokens: Tokens,
    draws: Draws,
    unit: Bool[Tensor, "N K"],
    parameters: Parameters,
    max_tokens: int | None,
    around: Around,
) -> tuple[Float[Tensor, "N K"], list[Tensor | None]]:
    """The unit's terms, and the gradient of their sum."""
    terms = torch.zeros(unit.shape, dtype=torch.float64, device=unit.device)
    total: list[Tensor | None] = [None] * len(parameters)
    for pack in plan_packs(tokens, draws, unit, max_tokens):
        with around(False):
            values = pack_terms(policy, tokens, draws, pack)
            found = torch.autograd.grad(values.sum(), parameters, allow_unused=True)
        terms[pack[:, 0], pack[:, 1]] = values.detach()
        total = [_sum(*both) for both in zip(total, found, strict=True)]
    return terms, total


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other


def _slope(
    objective: Objective, terms: Float[Tensor, "N K"], reference_terms: Float[Tensor, "N R J"], structure: Structure
) -> Float[Tensor, "N K"]:
    leaf = terms.clone().requires_grad_()
    (slope,) = torch.autograd.grad(objective(leaf, reference_terms, structure), leaf)
    return slope


def _accumulate(parameters: Parameters, gradient: Sequence[Tensor | None], factor: float) -> None:
    for parameter, part in zip(parameters, gradient, strict=True):
        if part is not None:
            parameter.grad = part * factor if parameter.grad is None else parameter.grad.add_(part, alpha=factor)
