"""Whether the numbers in a config.json can be those of a model with these tensors, before anything is made of them.

Of every architecture, under the official names and transformers'. What does not live here: which fields there must be,
and which of their values are implemented (official.py).
"""

import math
from collections.abc import Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]

_LAYERS = ("n_layers", "num_hidden_layers", "n_layer")
_WIDTHS = (
    *("d_model", "hidden_size", "n_embd", "mlp_hidden_size", "intermediate_size", "vocab_size", "embedding_size"),
    *("moe_intermediate_size", "expert_intermediate_size", "head_dim"),
)
_HEADS = ("n_heads", "num_attention_heads", "n_head")
_GROUPS = ("n_kv_heads", "num_key_value_heads")
_COUNTS = ("max_sequence_length", "max_position_embeddings", "num_experts", "num_experts_per_tok", "block_size")
_POSITIVE = ("rms_norm_eps", "layer_norm_eps", "rope_theta")
_SHARES = ("attention_dropout", "embedding_dropout", "residual_dropout", "hidden_dropout")
_IDS = ("eos_token_id", "pad_token_id", "bos_token_id", "mask_token_id")
_DTYPES = ("float64", "float32", "bfloat16", "float16", "auto")
_MOST = 1 << 31


def check_plausible(fields: Mapping[str, Any], shapes: Shapes, place: str) -> None:
    """
    Args:
        shapes: of the tensors that are here; none: nothing is known of them.
        place: the file, for messages.

    Raises:
        ValueError: a field is not of its kind, or does not fit the others or the tensors; names the file and the field.
    """
    widest = max((max(shape) for shape in shapes.values() if math.prod(shape) and shape), default=_MOST)
    limits = dict.fromkeys(_WIDTHS + _HEADS + _GROUPS, widest) | dict.fromkeys(_LAYERS, len(shapes) or _MOST)
    limits |= dict.fromkeys(_COUNTS, _MOST)
    for field in [field for field in limits if fields.get(field) is not None]:
        value = fields[field]
        if type(value) is not int or value < 1:
            _refuse(place, field, value, "must be a whole number of at least 1")
        if value > limits[field]:
            _refuse(place, field, value, f"does not fit the weights, which have {limits[field]} at most")
    for names, right, what in (
        (_POSITIVE, lambda value: _is_real(value) and value > 0, "must be a positive number"),
        (_SHARES, lambda value: _is_real(value) and 0 <= value < 1, "must be a number from 0 to less than 1"),
        (_IDS, _are_ids, "must be the number of a token"),
        (("torch_dtype", "dtype"), _is_dtype, f"must be one of {', '.join(_DTYPES)}"),
        (("architectures",), _are_names, "must be a list of names"),
        (("model_type",), lambda value: isinstance(value, str), "must be a name"),
    ):
        for field in names:
            if fields.get(field) is not None and not right(fields[field]):
                _refuse(place, field, fields[field], what)
    _check_heads(fields, place)
    rows, padding = _first(fields, ("embedding_size", "vocab_size")), fields.get("pad_token_id")
    if rows and type(padding) is int and padding >= rows:
        _refuse(place, "pad_token_id", padding, f"must be below the {rows} rows of the embedding")


def _check_heads(fields: Mapping[str, Any], place: str) -> None:
    heads, groups = (_first(fields, names) for names in (_HEADS, _GROUPS))
    width = _first(fields, ("d_model", "hidden_size", "n_embd"))
    if heads and width and fields.get("head_dim") is None and width % heads:
        raise ValueError(f"{place}: {heads} attention heads do not divide a width of {width}: {_REMEDY}")
    if heads and groups and heads % groups:
        raise ValueError(f"{place}: {groups} heads of keys do not divide {heads} attention heads: {_REMEDY}")


_REMEDY = "copy or download the folder's own config.json again"


def _refuse(place: str, field: str, value: Any, what: str) -> None:
    raise ValueError(f"{place}: {field} is {str(value)[:40]!r} and {what}: {_REMEDY}")


def _first(fields: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    return next((fields[name] for name in names if fields.get(name) is not None), None)


def _is_real(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < _MOST


def _are_ids(value: Any) -> bool:
    """Old files say -1 for none."""
    return all(type(each) is int and -1 <= each < _MOST for each in (value if isinstance(value, list) else [value]))


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_dtype(value: Any) -> bool:
    return isinstance(value, str) and value.removeprefix("torch.") in _DTYPES
