"""Which implementation of attention a model may be run with, checked before it is loaded."""

from importlib.util import find_spec

_PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
_HERE = ("sdpa", "eager", "flex_attention")


def check_attention(name: str | None) -> None:
    """
    Raises:
        ValueError: no implementation of this name, or its package is not installed.
    """
    if name is None or name in _HERE:
        return
    if name not in _PACKAGES:
        raise ValueError(
            f"attn_implementation {name!r} is none of {', '.join((*_HERE, *_PACKAGES))}: sdpa is right everywhere, "
            "flex_attention computes no padding on a GPU"
        )
    if find_spec(_PACKAGES[name]) is None:
        raise ValueError(
            f"attn_implementation {name} needs the package {_PACKAGES[name]} and a GPU, and it is not installed: take "
            "sdpa, which is as exact, or flex_attention, which computes no padding either"
        )


def check_attention_trains(name: str | None, device: str) -> None:
    """
    Raises:
        ValueError: there is no gradient on this kind of device.
    """
    if name == "flex_attention" and device == "cpu":
        raise ValueError("flex_attention has no backward on a CPU: train with attn_implementation sdpa")
