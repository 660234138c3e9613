"""`backward_by_draw` with fewer passes: what fits into one call's budget together keeps its graphs."""

from collections.abc import Sequence
from itertools import accumulate

import torch

from vrpo.estimator import ENGINE, Engine, Pack, pack_terms, plan_packs, terms_of
from vrpo.losses.objective import Objective
from vrpo.preference import Step, loss_and_slope, push_back
from vrpo.reference import Reference
from vrpo.types import AnyDraws, AnyTokens, Denoiser, Structure, Terms


def backward_keeping_graphs(
    policy: Denoiser,
    reference: Reference,
    tokens: AnyTokens,
    structure: Structure,
    draws: AnyDraws,
    objective: Objective,
    engine: Engine = ENGINE,
) -> Step:
    """`backward_by_draw`, with the graphs of the first packs kept: as many as fit into one pack's budget together.

    Every other pack costs a forward pass without a graph more. The gradient and the memory are the same.
    """
    packs = plan_packs(tokens, draws, draws.in_use, engine)
    first = packs[: kept_packs(packs, tokens, engine)]
    reference_terms = reference(tokens, draws, structure, engine)
    with torch.no_grad():
        values = terms_of(policy, tokens, draws, packs[len(first) :])
    row, draw = torch.cat(first).unbind(1)
    with engine.around(len(first) == len(packs)):
        with engine.together():
            kept = torch.cat([pack_terms(policy, tokens, draws, pack) for pack in first])
        values[row, draw] = kept.detach()
        terms = Terms(values, reference_terms, draws.group)
        loss, slope = loss_and_slope(objective, terms, structure)
        engine.backward(engine.scale * (kept * slope[row, draw]).sum())
    del kept  # and its graph
    done = torch.zeros_like(draws.in_use).index_put((row, draw), torch.ones_like(row, dtype=torch.bool))
    again = (slope != 0) & draws.in_use
    if len(first) < len(packs):
        push_back(policy, tokens, draws, slope, again & ~done, engine)
    return Step(loss, terms, again | done)


def kept_packs(packs: Sequence[Pack], tokens: AnyTokens, engine: Engine = ENGINE) -> int:
    """How many packs, from the first, keep their graphs: as many as fill one pack's budget; the same on all
    processes."""
    if engine.max_tokens is None:
        return 1
    size = tokens.size
    total = [len(pack) * int(size[pack[:, 0]].max()) if len(pack) else int(size[0]) for pack in packs]
    fits = max(1, sum(1 for some in accumulate(total) if some <= engine.max_tokens))
    return len(packs) + 1 - engine.agree(len(packs) + 1 - fits)  # the least of any; `agree` gives 1 at least


def all_graphs_fit(tokens: AnyTokens, draws: AnyDraws, engine: Engine = ENGINE) -> bool:
    """Whether `backward_keeping_graphs` keeps all graphs, and so needs one pass and no buffers."""
    packs = plan_packs(tokens, draws, draws.in_use, engine)
    return kept_packs(packs, tokens, engine) == len(packs)
