"""Rows that are being written together: each at its own block and step; finished ones leave, waiting ones enter.

What lives here: one step of all rows in flight, and who is in flight. What does not: arithmetic on logits (select.py),
calls of the model (calls.py), prompts and texts (decode.py).
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vrpo.decoding.calls import CachingDenoiser, Caller, LogitDenoiser, plain_logits
from vrpo.decoding.canvas import Canvas, blank
from vrpo.decoding.sampling import Sampling
from vrpo.decoding.select import Commit, Proposer

_BYTES = 2**26  # of logits in float64 at a time


@dataclass(frozen=True)
class Flight:
    """The state of B rows of G response positions.

    `row` is the index of a row's prompt; `block` the block that it is in, `step` the steps taken in it, `calls` those
    taken in all. `written` is the call that wrote a position, counted from 1, 0 where none did; `confidence` that of
    the token then.
    """

    row: list[int]
    canvas: Canvas
    block: Int[Tensor, " B"]
    step: Int[Tensor, " B"]
    calls: Int[Tensor, " B"]
    written: Int[Tensor, "B G"]
    confidence: Float[Tensor, "B G"]

    def rows(self, index: Int[Tensor, " R"]) -> "Flight":
        fields = (self.block, self.step, self.calls, self.written, self.confidence)
        return Flight(
            [self.row[at] for at in index.tolist()], self.canvas.rows(index), *(each[index] for each in fields)
        )

    def and_below(self, other: "Flight") -> "Flight":
        pairs = zip(
            (self.block, self.step, self.calls, self.written, self.confidence),
            (other.block, other.step, other.calls, other.written, other.confidence),
            strict=True,
        )
        return Flight(self.row + other.row, self.canvas.and_below(other.canvas), *(torch.cat(pair) for pair in pairs))


def at_start(row: list[int], canvas: Canvas) -> Flight:
    """Blank rows."""
    count, length = canvas.response.shape
    zeros = torch.zeros(count, dtype=torch.int64, device=canvas.ids.device)
    written = zeros[:, None].repeat(1, length)
    return Flight(row, canvas, zeros, zeros, zeros, written, written.double())


@dataclass(frozen=True)
class Pilot:
    """Takes rows from blank to written."""

    denoiser: LogitDenoiser
    sampling: Sampling
    propose: Proposer
    commit: Commit
    caller: Caller | None  # with a cache

    @staticmethod
    def of(denoiser: LogitDenoiser, sampling: Sampling) -> "Pilot":
        """
        Raises:
            ValueError: the denoiser cannot do it.
        """
        propose = _of_tokens(sampling.proposer(denoiser.mask_id, denoiser.eos_id, denoiser.eot_id), denoiser)
        if denoiser.block_size is not None:
            if denoiser.block_size != sampling.block_size:
                raise ValueError(
                    f"block_size {sampling.block_size}: this model writes blocks of {denoiser.block_size} tokens: give "
                    "that, or leave it out"
                )
            propose = replace(propose, banned=(denoiser.mask_id, *propose.banned))  # no block is written twice
        if sampling.cache == "none":
            return Pilot(denoiser, sampling, propose, sampling.commit(), None)
        if not isinstance(denoiser, CachingDenoiser):
            raise ValueError(f"cache {sampling.cache}: a {type(denoiser).__name__} cannot compute some columns alone")
        return Pilot(denoiser, sampling, propose, sampling.commit(), Caller(denoiser, sampling))

    def fly(
        self, prompts: Sequence[list[int]], size: int, generators: Sequence[torch.Generator | None]
    ) -> Iterator[tuple[Flight, Bool[Tensor, " B"]]]:
        """After every step: the rows in flight, at most `size`, and which of them are done. Those leave, and others
        enter: longest prompts first, so that rows of a call are alike and lack of memory shows at once."""
        waiting = deque(sorted(range(len(prompts)), key=lambda row: -len(prompts[row])))
        flight = self._turnover(None, torch.ones(0, dtype=torch.bool), waiting, prompts, size)
        while flight is not None:
            flight = self.step(flight, [generators[row] for row in flight.row])
            done, flight = self._ended(flight)
            yield flight, done
            if done.any():
                flight = self._turnover(flight, done, waiting, prompts, size)

    @torch.no_grad()
    def step(self, flight: Flight, generators: Sequence[torch.Generator | None]) -> Flight:
        """Write some of the hidden positions of each row's blocks so far, by one call of the model.

        Positions of earlier blocks that still hold the mask token compete again.
        """
        canvas = flight.canvas
        begin = self._begin(flight)
        length = begin + self.sampling.block_size
        hidden = canvas.hidden(length)
        if self.caller is None:
            logits = plain_logits(self.denoiser, canvas, hidden, self.sampling.cfg_scale)
        else:
            logits = self.caller.logits(canvas, hidden, begin, flight.step)
        token, sure = self._proposed(logits, hidden, generators)
        _check(sure, hidden, flight.row)
        confidence = torch.full(hidden.shape, -torch.inf, dtype=torch.float64, device=hidden.device)
        confidence[hidden] = sure
        proposal = canvas.ids.masked_scatter(hidden, token)
        kept = self.commit.kept(confidence, flight.step) & (proposal != canvas.mask_id)
        canvas = replace(canvas, ids=torch.where(kept, proposal, canvas.ids))
        over = self.commit.done(flight.step + 1, canvas.hidden(length))
        new = kept[:, canvas.start :]
        return replace(
            flight,
            canvas=canvas,
            block=flight.block + over,
            step=(flight.step + 1) * ~over,
            calls=flight.calls + 1,
            written=torch.where(new, flight.calls[:, None] + 1, flight.written),
            confidence=torch.where(new, confidence[:, canvas.start :], flight.confidence),
        )

    def _proposed(
        self, logits: Float[Tensor, "S V"], hidden: Bool[Tensor, "B L"], generators: Sequence[torch.Generator | None]
    ) -> tuple[Int[Tensor, " S"], Float[Tensor, " S"]]:
        """Some positions at a time, so that copies in float64 stay small; with noise row by row, each with its own."""
        if self.sampling.random:
            pieces = logits.split(hidden.sum(-1).tolist())
            found = [self.propose(piece, own) for piece, own in zip(pieces, generators, strict=True)]
        else:
            found = [self.propose(piece, None) for piece in logits.split(max(1, _BYTES // (8 * logits.shape[1])))]
        token, sure = (torch.cat(each) for each in zip(*found, strict=True))
        return token, sure

    def _begin(self, flight: Flight) -> Int[Tensor, " B"]:
        """Where in its response each row's block begins: before it, where a model counts blocks from the prompt's first
        token and the prompt ends inside of one."""
        begin = flight.block * self.sampling.block_size
        if self.denoiser.block_size is None:
            return begin
        canvas = flight.canvas
        return begin - canvas.attention[:, : canvas.start].sum(-1) % self.sampling.block_size

    def _ended(self, flight: Flight) -> tuple[Bool[Tensor, " B"], Flight]:
        """Rows that are done, what they leave hidden after an end token filled with end-of-sequence: with all blocks
        written; or, with `stop_at_end`, with nothing hidden before their first end token, when their text is final."""
        done = self._begin(flight) >= self.sampling.max_new_tokens
        if not self.sampling.stop_at_end:
            return done, flight
        response, mask_id = flight.canvas.response, flight.canvas.mask_id
        ends = [self.denoiser.eos_id] + [self.denoiser.eot_id] * (self.denoiser.eot_id is not None)
        after = torch.isin(response, torch.tensor(ends, device=response.device)).cummax(-1).values
        final = after[:, -1] & ~((response == mask_id) & ~after).any(-1)
        rest = final[:, None] & (flight.canvas.ids == mask_id)
        rest[:, : flight.canvas.start] = False
        canvas = replace(flight.canvas, ids=flight.canvas.ids.masked_fill(rest, self.denoiser.eos_id))
        return done | final, replace(flight, canvas=canvas)

    def _turnover(
        self,
        flight: Flight | None,
        done: Bool[Tensor, " B"],
        waiting: deque[int],
        prompts: Sequence[list[int]],
        size: int,
    ) -> Flight | None:
        """Those that are not done, and new ones from the queue in the places of the others; None if there are none."""
        stay = (~done).nonzero()[:, 0]
        entering = [waiting.popleft() for _ in range(min(len(waiting), size - len(stay)))]
        parts = [] if flight is None or not len(stay) else [flight.rows(stay)]
        if entering:
            length, mask_id = self.sampling.max_new_tokens, self.denoiser.mask_id
            given = [prompts[row] for row in entering]
            parts.append(at_start(entering, blank(given, length, mask_id, self.denoiser.pad_id, self.denoiser.device)))
        if not parts:
            return None
        new = parts[0] if len(parts) == 1 else parts[0].and_below(parts[1])
        if self.caller is not None:
            self.caller.follow(len(done), stay, len(entering), new.canvas.ids.shape[1])
        return new


def _of_tokens(propose: Proposer, denoiser: LogitDenoiser) -> Proposer:
    """Only what the tokenizer can turn into text, and the special ids: embeddings have more rows than tokens."""
    if denoiser.tokenizer is None:
        return propose
    special = {denoiser.mask_id, denoiser.eos_id, denoiser.eot_id}
    known = set(denoiser.tokenizer.get_vocab().values())
    limit = max(known) + 1
    holes = sorted(set(range(limit)) - known - special)
    beyond = tuple(sorted(each for each in special if each is not None and each >= limit))
    return replace(propose, banned=(*propose.banned, *holes), limit=limit, beyond=beyond)


def _check(sure: Float[Tensor, " S"], hidden: Bool[Tensor, "B L"], row: list[int]) -> None:
    """
    Raises:
        ValueError: a confidence is not a number. Nothing could be kept by it, and a threshold would wait for ever.
    """
    bad = sure.isnan()
    if bad.any():
        at = int(hidden.nonzero()[bad][0, 0])
        raise ValueError(
            f"prompts[{row[at]}]: the model's logits are not numbers (NaN or infinite): broken weights, or a dtype "
            "whose range is too small for them"
        )
