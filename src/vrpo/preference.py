"""A preference step: the loss with all its graphs, or the same gradient at the memory of one draw.

A loss that is a function of the terms has the gradient sum_k (d loss / d term_k) * grad term_k. The slopes need only
the VALUES of the terms; so the values come first, without a graph, and then one pack of draws at a time is run again
and pushed back with its slopes. Nothing is approximated. Beside it, what saves
passes: kept_graphs.py, one_pass.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vrpo.estimator import ENGINE, Engine, elbo, pack_terms, plan_packs
from vrpo.losses.objective import Objective
from vrpo.reference import Reference
from vrpo.types import AnyDraws, AnyTokens, Denoiser, Structure, Terms


@dataclass(frozen=True)
class Step:
    """What a preference step computed: the loss and the terms it came from, for metrics.

    `graphs` says which draws had a pass with a graph, for the gradient.
    """

    loss: Float[Tensor, ""]
    terms: Terms
    graphs: Bool[Tensor, "N K"]


def preference_loss(
    policy: Denoiser,
    reference: Reference,
    tokens: AnyTokens,
    structure: Structure,
    draws: AnyDraws,
    objective: Objective,
    engine: Engine = ENGINE,
) -> Step:
    """The loss, differentiable through all draws at once: memory grows with the number of draws."""
    reference_terms = reference(tokens, draws, structure, engine)
    terms = Terms(elbo(policy, tokens, draws, engine).terms, reference_terms, draws.group)
    return Step(objective(terms, structure), terms, draws.in_use)


def backward_by_draw(
    policy: Denoiser,
    reference: Reference,
    tokens: AnyTokens,
    structure: Structure,
    draws: AnyDraws,
    objective: Objective,
    engine: Engine = ENGINE,
    told: Callable[[Bool[Tensor, "N K"]], None] | None = None,
) -> Step:
    """Accumulate engine.scale * grad(loss) into the policy's parameters, holding one pack's graph at a time.

    The same gradient as `engine.scale * preference_loss(...).loss.backward()`, at an activation memory that does not
    grow with the number of draws: by default that of one draw of every row. Items whose slope is zero are not run
    again. The policy must be deterministic (no dropout), since its terms are computed twice.

    Args:
        told: called with the items that are run again, before the first of them.
    """
    reference_terms = reference(tokens, draws, structure, engine)
    with torch.no_grad():
        values = elbo(policy, tokens, draws, engine).terms
    terms = Terms(values, reference_terms, draws.group)
    loss, slope = loss_and_slope(objective, terms, structure)
    again = (slope != 0) & draws.in_use
    if told is not None:
        told(again)
    push_back(policy, tokens, draws, slope, again, engine)
    return Step(loss, terms, again)


def loss_and_slope(
    objective: Objective, terms: Terms, structure: Structure
) -> tuple[Float[Tensor, ""], Float[Tensor, "N K"]]:
    """The loss, and its slope in each of the policy's terms."""
    leaf = terms.policy.detach().clone().requires_grad_()
    loss = objective(Terms(leaf, terms.reference, terms.group), structure)
    (slope,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), slope


def push_back(
    policy: Denoiser,
    tokens: AnyTokens,
    draws: AnyDraws,
    slope: Float[Tensor, "N K"],
    keep: Bool[Tensor, "N K"],
    engine: Engine,
) -> None:
    """Run the kept items again, pack by pack, and differentiate their terms times their slopes."""
    packs = plan_packs(tokens, draws, keep, engine)
    for index, pack in enumerate(packs):
        with engine.around(index == len(packs) - 1):
            terms = pack_terms(policy, tokens, draws, pack)
            engine.backward(engine.scale * (terms * slope[pack[:, 0], pack[:, 1]]).sum())
