"""The estimator: evidence lower bounds of rows under a denoiser, for given draws.

Every function here is deterministic: randomness is in the draws. Work is done in packs of (row, draw) items, each pack
one call of the denoiser; what an item contributes does not depend on the pack it is in.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vrpo.plans import Enumerate
from vrpo.types import AnyDraws, AnyTokens, Denoiser, Estimate, Tokens

SIMILAR = 0.8  # more calls, or more padding: benchmarks/step_cost has the shares of real tokens
Pack = Int[Tensor, "_ 2"]  # (row, draw) items that share one call of the denoiser


@dataclass(frozen=True)
class Engine:
    """How this process runs a model. The default serves a reader, and training on one process.

    Args:
        max_tokens: tokens (padding included) per call of the denoiser; None: as many as one draw of every row.
        agree: from this process's number of packs to the number that all processes run, where calls communicate.
        around: context of a pass with a graph and its backward, given whether it is the step's last one: where a
            trainer defers the synchronisation of gradients.
        together: context of forwards whose graphs are alive at once, where they can share the weights that an autocast
            has cast.
        backward: differentiates a scalar into the parameters' `.grad`.
        scale: factor on every gradient, not on a returned loss: a micro-batch's share of its step.
    """

    max_tokens: int | None = None
    agree: Callable[[int], int] = int
    around: Callable[[bool], AbstractContextManager[object]] = nullcontext
    together: Callable[[], AbstractContextManager[object]] = nullcontext
    backward: Callable[[Float[Tensor, ""]], None] = Tensor.backward
    scale: float = 1.0


ENGINE = Engine()


def elbo(denoiser: Denoiser, tokens: AnyTokens, draws: AnyDraws, engine: Engine = ENGINE) -> Estimate:
    """Estimate B(y | x) = E_m E_S (L / m) sum_{i in S} log p(y_i | y without S, x) for every row (Eq. 14-15 and 5-6).

    The value is a sum over tokens, in nats, unbiased if the plan of the draws is, and independent of padding and of
    the other rows. Gradients flow if enabled; then all graphs are alive at once (see `preference.backward_by_draw`).
    """
    packs = plan_packs(tokens, draws, draws.in_use, engine)
    return Estimate(terms_of(denoiser, tokens, draws, packs), draws.group)


def exact_elbo(denoiser: Denoiser, tokens: Tokens, *, max_length: int = 12) -> Estimate:
    """B(y | x) by enumeration of all 2^L - 1 masks, for responses of at most `max_length` tokens."""
    return elbo(denoiser, tokens, Enumerate(max_length)(tokens))


def plan_packs(tokens: AnyTokens, draws: AnyDraws, keep: Bool[Tensor, "N K"], engine: Engine = ENGINE) -> list[Pack]:
    """Group the kept (row, draw) items by length into packs of at most `engine.max_tokens` tokens, padding included.

    Items of similar length share a pack, so little padding is computed: none is shorter than SIMILAR of its pack's
    longest, if there is a limit. Every pack holds at least one item. If the engine agrees on more packs than there is
    work for, the surplus packs are empty.
    """
    limit = engine.max_tokens
    budget = len(tokens.size) * int(tokens.size.max()) if limit is None else limit
    similar = 0.0 if limit is None else SIMILAR
    items = keep.nonzero().cpu()
    width = tokens.size.cpu()[items[:, 0]]
    width, order = width.sort(descending=True, stable=True)
    packs, start = [], 0
    while start < len(items):
        size = max(1, budget // int(width[start]))
        size = int((width[start : start + size] >= similar * width[start]).sum())
        packs.append(items[order[start : start + size]].to(keep.device))
        start += size
    surplus = engine.agree(len(packs)) - len(packs)
    return packs + [items[:0].to(keep.device)] * surplus


def terms_of(denoiser: Denoiser, tokens: AnyTokens, draws: AnyDraws, packs: list[Pack]) -> Float[Tensor, "N K"]:
    """The terms of all items in the packs; 0 elsewhere."""
    terms = torch.zeros(draws.group.shape, dtype=torch.float64, device=draws.group.device)
    for pack in packs:
        values = pack_terms(denoiser, tokens, draws, pack)
        terms = terms.index_put((pack[:, 0], pack[:, 1]), values, accumulate=True)
    return terms


def pack_terms(denoiser: Denoiser, tokens: AnyTokens, draws: AnyDraws, pack: Pack) -> Float[Tensor, " _"]:
    """The terms of the items of one pack: sum_i weight_i * log p(y_i | what the draw left visible).

    An empty pack still calls the denoiser, on the first item and without a result, so that processes that must call it
    equally often do.
    """
    items = pack if len(pack) else pack.new_zeros(1, 2)
    arguments, weight = draws.inputs(tokens, items)
    values = denoiser(**arguments).to(weight.dtype) * weight[weight != 0]
    terms = weight.new_zeros(len(items)).index_add(0, weight.nonzero()[:, 0], values)
    return terms[: len(pack)]
