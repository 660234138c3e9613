"""Where masks come from: plans, and the keyed hash that makes every draw replayable.

A uniform number is a pure function of (row key, purpose, draw, position within the response); there is no generator
and no state. The integer arithmetic is exact on every device, so equal keys give bit-identical draws.

What deliberately does not live here: sampling of text (decoding/), and anything that evaluates a model.
"""

from dataclasses import dataclass, replace
from math import comb

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vrpo.types import Draws, Structure, Tokens

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
_TIME, _MASK, _INDEPENDENT = 1, 2, 3  # purposes, so that no two uses share a random number


def _shift_right(x: Int[Tensor, "..."], bits: int) -> Int[Tensor, "..."]:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # logical, where torch's is arithmetic


def mix(x: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """The splitmix64 finaliser (Steele, Lea, Flood 2014) on int64 with wrapping arithmetic: a bijection of 64 bits."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def fold(key: Int[Tensor, "..."], data: Int[Tensor, "..."] | int) -> Int[Tensor, "..."]:
    """A new key from a key and a number; broadcasts. Not commutative: fold(fold(k, a), b) != fold(fold(k, b), a)."""
    data = torch.as_tensor(data, dtype=torch.int64, device=key.device)
    return mix(key * _GOLDEN + mix(data + _GOLDEN))


def uniform(bits: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Float64 in [0, 1) from the top 53 of 64 random bits; exact, hence equal on every device."""
    return _shift_right(bits, 11).to(torch.float64) * 2.0**-53


def draw_key(seed: int, example: Int[Tensor, " N"], side: Int[Tensor, " N"], epoch: int) -> Int[Tensor, " N"]:
    """The replay key of a row: hash(seed, example id, side, epoch); `side` tells apart the answers of one example.

    With a cached reference the epoch is 0, so that its draws come back at every epoch.
    """
    key = torch.full_like(example, seed)
    for part in (example, side, torch.full_like(example, epoch)):
        key = fold(key, part)
    return key


def rekeyed(tokens: Tokens) -> Tokens:
    """The same rows with keys for draws that are independent of the original ones (`share_draws=False`)."""
    return replace(tokens, key=fold(tokens.key, _INDEPENDENT))


def _slot(tokens: Tokens) -> Int[Tensor, "N L"]:
    """What names a position in its row's randomness: `tokens.slot`, or its place in the response (0 at the first)."""
    return tokens.response.cumsum(-1) - 1 if tokens.slot is None else tokens.slot


@dataclass(frozen=True)
class FixedCount:
    """The fixed-count plan (Eq. 14-15 of arXiv 2505.19223): m ~ U{1..L}, then m of the L tokens without replacement.

    `num_times` values of m, `num_masks` masks for each; K = num_times * num_masks, weight L / m / K on masked tokens.
    Unbiased for the ELBO, with Var = V_t / num_times + V_y / K (Lemma 5), so num_masks = 1 is best at a given K. The
    masks drawn at one m form a group.

    Not to be confused with the official likelihood code, whose rounded linspace makes the counts slightly non-uniform:
    here m is the floor of a real number.
    """

    num_times: int = 8
    num_masks: int = 1

    def __post_init__(self) -> None:
        check_budget(self.num_times, self.num_masks)

    def __call__(self, tokens: Tokens, structure: Structure | None = None) -> Draws:
        time, group = times(tokens, self.num_times, self.num_masks)
        length = tokens.length[:, None]
        count = 1 + (time * length).floor().long()  # [N, K], uniform on 1..L
        masked = orders(tokens, self.num_times * self.num_masks) < count[..., None]
        masked = masked & tokens.response[:, None]
        weight = length.double() / count / (self.num_times * self.num_masks)
        return Draws(masked, masked * weight[..., None], group)


@dataclass(frozen=True)
class Bernoulli:
    """The t-form: t ~ U(t_min, 1), each response token masked with probability t, weight 1 / t / K on masked tokens.

    t_min has no default on purpose: the variance grows like log(1 / t_min) without limit as t_min -> 0, and t_min > 0
    biases the mean, since draws below t_min are missing from it (`tests/test_exact.py` integrates both).

    Args:
        t_min: smallest masking time, in (0, 1).
    """

    t_min: float
    num_times: int = 8
    num_masks: int = 1

    def __post_init__(self) -> None:
        check_budget(self.num_times, self.num_masks)
        if not 0 < self.t_min < 1:
            raise ValueError(f"t_min must lie in (0, 1), not {self.t_min}: at 0 the estimate has infinite variance")

    def __call__(self, tokens: Tokens, structure: Structure | None = None) -> Draws:
        time, group = times(tokens, self.num_times, self.num_masks)
        mask_prob = self.t_min + (1 - self.t_min) * time  # [N, K]
        masked = uniform(mask_bits(tokens, self.num_times * self.num_masks)) < mask_prob[..., None]
        masked = masked & tokens.response[:, None]
        weight = 1 / mask_prob / (self.num_times * self.num_masks)
        return Draws(masked, masked * weight[..., None], group)


@dataclass(frozen=True)
class Enumerate:
    """No randomness: every non-empty subset of the response, weighted so that the sum IS the ELBO.

    A subset of m of L tokens has probability 1 / (L * C(L, m)) under the fixed-count law, hence weight
    1 / (m * C(L, m)) on its tokens. Costs 2^L - 1 forward passes per row: the oracle of the test suite.

    Raises:
        ValueError: a response is longer than `max_length`.
    """

    max_length: int = 12

    def __call__(self, tokens: Tokens, structure: Structure | None = None) -> Draws:
        length = tokens.length
        longest = int(length.max())
        if longest > self.max_length:
            row = int(length.argmax())
            raise ValueError(
                f"row {row} has {longest} response tokens; enumeration costs 2^{longest} forward passes and is limited "
                f"to {self.max_length} tokens (use vrpo.elbo with a sampling plan, or raise max_length)"
            )
        subset = torch.arange(1, 1 << longest, device=length.device)  # bit p set = response token p masked
        bit = (subset[:, None] >> torch.arange(longest, device=length.device)) & 1
        count = bit.sum(-1)
        table = torch.tensor(
            [[1.0 / (m * comb(n, m)) if 1 <= m <= n else 0.0 for m in range(longest + 1)] for n in range(longest + 1)],
            dtype=torch.float64,
            device=length.device,
        )
        in_use = subset < (1 << length)[:, None]  # [N, K]
        position = (tokens.response.cumsum(-1) - 1).clamp(min=0)
        masked = bit.bool()[None].expand(len(length), -1, -1)
        masked = masked.gather(2, position[:, None].expand(-1, len(subset), -1))
        masked = masked & tokens.response[:, None] & in_use[..., None]
        weight = masked * table[length[:, None], count.expand(len(length), -1)][..., None]
        return Draws(masked, weight, torch.where(in_use, 0, -1))


@dataclass(frozen=True)
class Exact:
    """No randomness and nothing masked: one draw that scores the whole response. The sum is the log-likelihood itself,
    of a denoiser that says each token from those before it (a causal language model).

    Raises:
        ValueError: a response begins its row, and nothing stands before its first token.
    """

    def __call__(self, tokens: Tokens, structure: Structure | None = None) -> Draws:
        first = tokens.attention & (tokens.attention.cumsum(-1) == 1)
        if bool((tokens.response & first).any()):
            raise ValueError(
                f"row {int((tokens.response & first).any(-1).nonzero()[0])} has an empty prompt: nothing stands before "
                "the first token of its answer, of which a causal language model then says nothing. Begin the prompt "
                "with a token, such as the one that begins a text"
            )
        response = tokens.response[:, None]
        return Draws(torch.zeros_like(response), response.to(torch.float64), torch.zeros_like(tokens.key)[:, None])


def check_budget(num_times: int, num_masks: int) -> None:
    if num_times < 1 or num_masks < 1:
        raise ValueError(f"num_times and num_masks must be at least 1, not {num_times} and {num_masks}")


def times(tokens: Tokens, num_times: int, num_masks: int) -> tuple[Float[Tensor, "N K"], Int[Tensor, "N K"]]:
    """Uniform times in [0, 1), each repeated num_masks times in a row, and their group: the index of the time."""
    if bool((tokens.length == 0).any()):
        raise ValueError(f"row {int((tokens.length == 0).nonzero()[0])} has no response token: nothing can be masked")
    index = torch.arange(num_times, device=tokens.key.device).repeat_interleave(num_masks)
    time = uniform(fold(fold(tokens.key, _TIME)[:, None], index))
    return time, index.expand(len(tokens.key), -1).clone()


def orders(tokens: Tokens, num_orders: int) -> Int[Tensor, "N O L"]:
    """Uniform random orders of the response: the rank, 0 to L - 1, of each of its positions (meaningless elsewhere)."""
    bits = mask_bits(tokens, num_orders).masked_fill(~tokens.response[:, None], torch.iinfo(torch.int64).max)
    return bits.argsort(dim=-1, stable=True).argsort(dim=-1)


def mask_bits(tokens: Tokens, num_draws: int) -> Int[Tensor, "N K L"]:
    """64 random bits per (row, draw, response position); padding and prompt length do not enter."""
    draw = fold(fold(tokens.key, _MASK)[:, None], torch.arange(num_draws, device=tokens.key.device))
    return fold(draw[..., None], _slot(tokens)[:, None])
