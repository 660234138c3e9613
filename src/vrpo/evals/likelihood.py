"""Likelihoods of continuations under a diffusion language model, as bounds with a standard error.

A request's draws come from its own key, so its value does not depend on the requests beside it, up to the 4e-7 by
which padding moves float32 log-probabilities. What deliberately does not live here: text (harness.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from vrpo.decoding.canvas import blank
from vrpo.decoding.flight import Pilot, at_start
from vrpo.decoding.sampling import Sampling
from vrpo.draws import draw_key
from vrpo.estimator import Engine, elbo
from vrpo.models.hf import HFDenoiser
from vrpo.plans import Enumerate
from vrpo.types import Plan, Tokens

_ROWS = 16  # whose draws exist at a time: 128 draws of 1,000 tokens of one row are 1.2 MB


@dataclass(frozen=True)
class Request:
    """log p(continuation | context) is asked for. `about`: what the draws are keyed by, beside the seed; requests about
    the same thing have common random numbers, so that their difference is less noisy."""

    context: list[int]
    continuation: list[int]
    about: int
    window: int = 0  # number of the piece of a long text, each with draws of its own


@dataclass(frozen=True)
class Likelihood:
    """`elbo`: the bound or an estimate of it, in nats, a sum over `length` tokens. `standard_error`: 0 if it was
    enumerated, None if the plan has fewer than two independent groups of draws. `plan`: what was evaluated."""

    elbo: float
    standard_error: float | None
    length: int
    key: int
    plan: str


def number_of(text: str) -> int:
    """64 bits that stand for a text in a key."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def keys_of(requests: Sequence[Request], seed: int) -> Tensor:
    about = torch.tensor([request.about for request in requests], dtype=torch.int64)
    window = torch.tensor([request.window for request in requests], dtype=torch.int64)
    return draw_key(seed, about, window, 0)


def tokens_of(requests: Sequence[Request], seed: int, pad_id: int) -> Tokens:
    """Rows of context and continuation, which is the response; padded on the right."""
    size = [len(request.context) + len(request.continuation) for request in requests]
    ids = torch.full((len(requests), max(size)), pad_id)
    attention = torch.zeros(ids.shape, dtype=torch.bool)
    response = torch.zeros(ids.shape, dtype=torch.bool)
    for row, (request, end) in enumerate(zip(requests, size, strict=True)):
        ids[row, :end] = torch.tensor(request.context + request.continuation)
        attention[row, :end] = True
        response[row, len(request.context) : end] = True
    return Tokens(ids, response, attention, keys_of(requests, seed))


def likelihoods(
    denoiser: HFDenoiser, requests: Sequence[Request], plan: Plan, *, seed: int, batch_size: int, exact: int = 0
) -> list[Likelihood]:
    """The bounds B(continuation | context) (Eq. 14-15 of arXiv 2505.19223), in the requests' order.

    An empty continuation has likelihood 1. Not to be confused with the log-likelihood of a causal model: a bound lies
    below it, by how much depends on model and text.

    Args:
        batch_size: (request, draw) items per call of the model, of the longest request; more of shorter ones.
        exact: continuations of at most so many tokens, L, are not sampled but enumerated, in 2^L - 1 passes.
    """
    exactly = Enumerate(max(exact, 1))
    kinds: dict[Plan, list[int]] = {exactly: [], plan: []}
    for at, request in enumerate(requests):
        kinds[exactly if len(request.continuation) <= exact else plan].append(at)
    found: dict[int, Likelihood] = {}
    for kind, rows in kinds.items():
        rows.sort(key=lambda at: -len(requests[at].context) - len(requests[at].continuation))
        for first in range(0, len(rows), _ROWS):
            chosen = rows[first : first + _ROWS]
            values = _estimates(denoiser, [requests[at] for at in chosen], kind, seed, batch_size)
            found |= dict(zip(chosen, values, strict=True))
    return [found[at] for at in range(len(requests))]


@torch.no_grad()
def _estimates(
    denoiser: HFDenoiser, requests: Sequence[Request], plan: Plan, seed: int, batch_size: int
) -> list[Likelihood]:
    asked = [request for request in requests if request.continuation]
    values: Iterator[tuple[float, float | None]] = iter(())
    if asked:
        tokens = tokens_of(asked, seed, denoiser.pad_id).to(denoiser.device)
        draws = plan(tokens)
        estimate = elbo(denoiser, tokens, draws, Engine(batch_size * int(tokens.size.max())))
        several = int(draws.group.max()) >= 1
        alone = 0.0 if isinstance(plan, Enumerate) else None
        error = estimate.standard_error.tolist() if several else [alone] * len(asked)
        values = zip(estimate.value.tolist(), error, strict=True)
    keys, nothing = keys_of(requests, seed).tolist(), (0.0, 0.0)
    return [
        Likelihood(*(next(values) if one.continuation else nothing), len(one.continuation), key, repr(plan))
        for one, key in zip(requests, keys, strict=True)
    ]


def exact_up_to(num_draws: int) -> int:
    """The largest L for which enumeration takes no more passes than so many draws: 2^L - 1 <= num_draws, L <= 12."""
    return min((num_draws + 1).bit_length() - 1, 12)


def written_greedily(denoiser: HFDenoiser, requests: Sequence[Request], *, batch_size: int) -> list[bool]:
    """Whether decoding at temperature 0 writes exactly the continuation: low-confidence remasking, one token a step, in
    one block of just its length.

    The canvas tells the model how long the continuation is, which a causal model is not told. Costs up to as many model
    calls as it has tokens; a row leaves at its first wrong token.
    """
    found = [not request.continuation for request in requests]
    order = sorted(range(len(requests)), key=lambda at: (len(requests[at].continuation), len(requests[at].context)))
    order = [at for at in order if requests[at].continuation]
    while order:
        length = len(requests[order[0]].continuation)
        chosen = [at for at in order[:batch_size] if len(requests[at].continuation) == length]
        order = order[len(chosen) :]
        for at in _survivors(denoiser, requests, chosen, length):
            found[at] = True
    return found


def _survivors(denoiser: HFDenoiser, requests: Sequence[Request], chosen: list[int], length: int) -> list[int]:
    """Those of the chosen requests, all of this length, of which every token was written as it stands."""
    block_size = length if denoiser.block_size is None else denoiser.block_size
    canvas = -(-length // block_size) * block_size  # what a Sampling can say; the rows are as long as they are
    pilot = Pilot.of(denoiser, Sampling(canvas, block_size, canvas))
    prompts = [requests[at].context for at in chosen]
    flight = at_start(chosen, blank(prompts, length, denoiser.mask_id, denoiser.pad_id, denoiser.device))
    wanted = torch.tensor([requests[at].continuation for at in chosen], device=denoiser.device)
    for step in range(1, length + 1):
        flight = pilot.step(flight, [None] * len(flight.row))
        response = flight.canvas.response
        right = (response == wanted) & (flight.written > 0)
        stay = (right.sum(-1) == step).nonzero()[:, 0]
        if not len(stay):
            return []
        flight, wanted = flight.rows(stay), wanted[stay]
    return flight.row
