"""Whether the shape that a config.json tells of can be a model's: said before anything is built of it."""

from collections.abc import Mapping
from typing import Any

_MOST = {  # numbers of a shape, by their names in all layouts -> far above any model there is
    **dict.fromkeys(("num_hidden_layers", "n_layers"), 10_000),
    **dict.fromkeys(("hidden_size", "d_model", "intermediate_size", "mlp_hidden_size", "head_dim"), 1 << 20),
    **dict.fromkeys(("num_attention_heads", "n_heads", "num_key_value_heads", "n_kv_heads"), 1 << 16),
    **dict.fromkeys(("vocab_size", "embedding_size"), 1 << 24),
    **dict.fromkeys(("num_experts", "moe_intermediate_size", "num_experts_per_tok"), 1 << 20),
    **dict.fromkeys(("max_position_embeddings", "max_sequence_length"), 1 << 31),
}
_MAY_BE_ZERO = ("num_experts", "moe_intermediate_size", "num_experts_per_tok")
_DIVIDES = (  # the second number divides the first
    (("hidden_size", "d_model"), ("num_attention_heads", "n_heads")),
    (("num_attention_heads", "n_heads"), ("num_key_value_heads", "n_kv_heads")),
)


def check_shape(name_or_path: str, fields: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: a number of the shape is none, is absurd, or does not go with another; names the field.
    """
    for name, most in _MOST.items():
        value = fields.get(name)
        least = 0 if name in _MAY_BE_ZERO else 1
        if value is not None and (type(value) is not int or not least <= value <= most):
            raise ValueError(
                f"{name_or_path}/config.json: {name} is {value!r}, not a whole number from {least} to {most:,}. "
                "Copy or download the file again"
            )
    for whole, part in _DIVIDES:
        (one, first), (other, second) = _given(fields, whole), _given(fields, part)
        explicit = part[0] == "num_attention_heads" and fields.get("head_dim")
        if first and second and first % second and not explicit:
            raise ValueError(f"{name_or_path}/config.json: {one} is {first}, which {other} = {second} does not divide")


def _given(fields: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, int | None]:
    return next(((name, fields[name]) for name in names if fields.get(name) is not None), (names[0], None))
