"""Where masks come from: plans, and the keyed hash that makes every draw replayable.

A uniform number is a pure function of (row key, purpose, draw, position within the response); there is no generator
and no state. The integer arithmetic is exact on every device, so equal keys give bit-identical draws.

What deliberately does not live here: sampling of text (decoding/), and anything that evaluates a model.
"""

from dataclasses import dataclass, replace

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
