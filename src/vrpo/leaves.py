"""Leaves by name: `plan: balanced` with `plan_kwargs: {exponent: 0.5}` becomes a call of a constructor.

A dictionary names the constructors of a kind (`plans.PLANS`, `losses.named.LOSSES`, `losses.pools.POOLS`,
`losses.temperature.TEMPERATURES`). A constructor's signature says which parameters it has, and of which types.
"""

import inspect
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

T = TypeVar("T")
_KINDS: dict[Any, Any] = {int: Integral, float: Real, list: list | tuple}


def chosen(field: str, leaves: Mapping[str, T], name: str) -> T:
    """The constructor of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in leaves:
        raise ValueError(f"{field} must be one of {', '.join(leaves)}, not {name!r}")
    return leaves[name]


def parameters(make: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """What a constructor takes."""
    return dict(inspect.signature(make).parameters)


def made(field: str, make: Callable[..., T], given: Mapping[str, Any], name: str = "", **fixed: Any) -> T:
    """make(**fixed, **given), with errors in the words of a configuration.

    Args:
        field: what holds `given`, such as plan_kwargs.
        name: the leaf's, for messages.
        fixed: arguments that have fields of their own.

    Raises:
        ValueError: a parameter is unknown, missing or of another type, or its value is refused.
    """
    known = {key: each for key, each in parameters(make).items() if key not in fixed}
    for key, value in given.items():
        if key not in known:
            raise ValueError(f"{field}: {name} has no parameter {key!r}" + (f", only {', '.join(known)}" * bool(known)))
        check_type(f"{field}.{key}", value, known[key].annotation)
    for key, each in known.items():
        if each.default is inspect.Parameter.empty and key not in given:
            raise ValueError(f"{field}: {name} needs {key}")
    try:
        return make(**fixed, **given)
    except ValueError as error:
        raise ValueError(f"{field}: {error}" if given else str(error)) from error


def check_type(name: str, value: Any, hint: Any) -> None:
    """
    Raises:
        ValueError: the value is of another type than the hint says, such as a number in quotes.
    """
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = [get_origin(each) or each for each in parts]
    wanted = tuple(_KINDS.get(each, each) for each in kinds if each is bool or not isinstance(value, bool))
    if not isinstance(value, wanted):
        said = " or ".join(each.__name__ for each in kinds).replace("NoneType", "None")
        raise ValueError(f"{name} is {value!r}, of type {type(value).__name__}, and takes {said}")


def name_of(function: Any) -> str:
    """What a function is called where it cannot be written down: module.name."""
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__name__)}"
