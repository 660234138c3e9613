"""Whether a shape can be a model's, and that of the tensors beside it: said before anything is built of it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from vrpo.models.folder import shapes_of, shards_of

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


def check_tensors(name_or_path: str, fields: Mapping[str, Any]) -> None:
    """Compare layers and width with the tensors of a folder, by their names and shapes.

    Raises:
        ValueError: config.json tells of another model; or a file of weights is not whole.
    """
    if not Path(name_or_path).is_dir():
        return
    shapes = {name: shape for path in shards_of(Path(name_or_path)) for name, shape in shapes_of(path).items()}
    layers = [re.search(r"\.(?:layers|blocks|h)\.(\d+)\.", name) for name in shapes]
    there = {
        ("num_hidden_layers", "n_layers"): max((int(layer[1]) for layer in layers if layer), default=-1) + 1,
        ("hidden_size", "d_model"): next((shape[-1] for name, shape in shapes.items() if _EMBEDDING.search(name)), 0),
    }
    for names, found in there.items():
        field, told = _given(fields, names)
        if found and told and found != told:
            raise ValueError(
                f"{name_or_path}: its weights have {field} = {found}, and config.json says {told}: they are not of one "
                "model, copy or download both again"
            )


def check_sizes(*, num_heads: int, num_kv_heads: int | None = None, **sizes: int) -> None:
    """Of a new model, under the names that `from_config` and `vrpo sft --from_scratch` have for them.

    Raises:
        ValueError: a size is absurd or does not go with another, or the model does not fit into this machine.
    """
    given = {"num_heads": num_heads, "num_kv_heads": num_heads if num_kv_heads is None else num_kv_heads, **sizes}
    for name, value in given.items():
        least, most = (262, 1 << 24) if name == "vocab_size" else (1, _MOST.get(name, 10_000))
        if not least <= value <= most:
            raise ValueError(f"{name} must be from {least} to {most:,}, not {value}")
    if given["hidden_size"] % (2 * num_heads):
        raise ValueError(f"hidden_size {given['hidden_size']} must be divisible by 2 * num_heads = {2 * num_heads}")
    if num_heads % given["num_kv_heads"]:
        raise ValueError(f"num_heads {num_heads} must be divisible by num_kv_heads = {given['num_kv_heads']}")
    width, vocab = given["hidden_size"], given.get("vocab_size", 0)
    size = 4 * (2 * vocab * width + given["num_layers"] * width * (2 * width + 3 * given["intermediate_size"]))
    memory = psutil.virtual_memory().total
    if size > memory:
        raise ValueError(
            f"hidden_size, num_layers, intermediate_size: the weights alone are {size / 1e9:,.0f} GB in float32, and "
            f"this machine has {memory / 1e9:,.0f} GB: make them smaller"
        )


_EMBEDDING = re.compile(r"(?:embed_tokens|wte|word_embeddings)\.weight$")


def _given(fields: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, int | None]:
    return next(((name, fields[name]) for name in names if fields.get(name) is not None), (names[0], None))
