"""Keys and values of all columns of some rows, so that a few columns can be computed again without the others.

Positions count from a row's first real token, so that padding added or cut on the left changes nothing that is kept.
What does not live here: which columns are computed again, and when (decoding/calls.py).
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer


@dataclass(frozen=True)
class KeyValues:
    """One tensor per layer for the keys, after rotation, and one for the values; and the last hidden states, which say
    the token of the next column where logits are shifted."""

    keys: list[Float[Tensor, "B H L D"]]
    values: list[Float[Tensor, "B H L D"]]
    hidden: Float[Tensor, "B L W"]

    def rows(self, index: Int[Tensor, " R"]) -> "KeyValues":
        if torch.equal(index, torch.arange(len(self.keys[0]), device=index.device)):
            return self
        return self._each(lambda tensor: tensor[index])

    def put(self, index: Int[Tensor, " R"], other: "KeyValues") -> "KeyValues":
        """These rows replaced."""
        pairs = zip(self.keys + self.values, other.keys + other.values, strict=True)
        changed = [mine.index_copy(0, index, theirs) for mine, theirs in pairs]
        hidden = self.hidden.index_copy(0, index, other.hidden)
        return KeyValues(changed[: len(self.keys)], changed[len(self.keys) :], hidden)

    def resized(self, rows: int, columns: int) -> "KeyValues":
        """Columns added or cut on the left, rows of zeros added below."""
        count, length, _ = self.hidden.shape
        more = (0, 0, columns - length, 0), (0, rows - count)
        return self._each(lambda tensor: pad(tensor, more[0] + (0, 0) * (tensor.dim() - 3) + more[1]))

    def hidden_with(self, column: Int[Tensor, "B C"], new: Float[Tensor, "B C W"]) -> Float[Tensor, "B L W"]:
        """The hidden states of all columns, these ones being new."""
        return self.hidden.scatter(1, column[..., None].expand_as(new), new)

    def _each(self, change: Any) -> "KeyValues":
        keys, values = ([change(tensor) for tensor in part] for part in (self.keys, self.values))
        return KeyValues(keys, values, change(self.hidden))


class _Beside(DynamicLayer):
    """A layer whose kept keys and values are joined by new ones for one call, and stay as they are."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        return torch.cat((self.keys, key_states), -2), torch.cat((self.values, value_states), -2)


def hidden_and_columns(
    backbone: Any, input_ids: Int[Tensor, "B L"], attention_mask: Bool[Tensor, "B L"], block: Int[Tensor, "B L"]
) -> tuple[Float[Tensor, "B L W"], KeyValues]:
    """Hidden states of all columns, and their keys and values; a column sees blocks up to its own."""
    cache = DynamicCache()
    found = backbone(
        input_ids=input_ids,
        attention_mask=additive(attention_mask[:, None] & (block[:, None] <= block[:, :, None]), backbone.dtype),
        position_ids=positions(attention_mask),
        past_key_values=cache,
        use_cache=True,
    )
    layers: Any = cache.layers
    return found[0], KeyValues([layer.keys for layer in layers], [layer.values for layer in layers], found[0])


def hidden_of_columns(
    backbone: Any,
    input_ids: Int[Tensor, "B C"],
    column: Int[Tensor, "B C"],
    attention_mask: Bool[Tensor, "B L"],
    block: Int[Tensor, "B L"],
    kept: KeyValues,
) -> Float[Tensor, "B C W"]:
    """Hidden states of these columns, which see each other as they are now and all others as they were kept."""
    layers: list[Any] = []
    for keys, values in zip(kept.keys, kept.values, strict=True):
        layer = _Beside()
        layer.keys, layer.values, layer.is_initialized = keys, values, True
        layers.append(layer)
    old = attention_mask.scatter(1, column, False)  # in the kept columns those computed again are not seen
    seen = torch.cat((old, attention_mask.gather(1, column)), dim=1)[:, None]
    seen = seen & (torch.cat((block, block.gather(1, column)), 1)[:, None] <= block.gather(1, column)[:, :, None])
    found = backbone(
        input_ids=input_ids,
        attention_mask=additive(seen, backbone.dtype),
        position_ids=positions(attention_mask).gather(1, column),
        past_key_values=Cache(layers=layers),
        use_cache=True,
    )
    return found[0]


def positions(attention_mask: Bool[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)


def additive(seen: Bool[Tensor, "B Q K"], dtype: torch.dtype) -> Float[Tensor, "B 1 Q K"]:
    """The mask that sdpa and eager attention both take."""
    zeros = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return zeros.masked_fill(~seen, torch.finfo(dtype).min)[:, None]
