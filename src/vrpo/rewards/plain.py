"""Plain values as a graph in JSON: what can cross between a program and its tests.

This file's text is run in sandboxes (code.py), so it imports the standard library only. What does not live here: the
two processes and what they say to each other (calls.py).

A graph has nodes, each a tag and what it holds. Held are atoms, and [number] for another node: sharing and cycles stay.
An object of a subclass crosses as what it is a subclass of: an own `__eq__` does not cross. What is no plain value is
named by a number, by whoever owns it (`Owner`). Of classes that both sides have, objects cross by their attributes,
tuples and members of enumerations by their values.
"""

import builtins
import enum
import functools
import importlib
from collections import deque
from collections.abc import Callable, Sequence
from types import FunctionType, MemberDescriptorType, MethodType
from typing import Any, NamedTuple

ATOMS = (type(None), bool, float, str)
TYPES: dict[str, Any] = {
    one.__name__: one
    for one in (bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, dict, range, slice)
}
TYPES |= {"object": object, "NoneType": type(None)}
ERRORS = {name: one for name, one in vars(builtins).items() if isinstance(one, type) and issubclass(one, BaseException)}
SINGLE = {"Ellipsis": ..., "NotImplemented": NotImplemented}

# immutable values: class by module and name -> what its constructor is called with
VALUES: dict[str, Callable[[Any], Sequence[Any]]] = {
    "builtins.int": lambda one: (hex(one),),
    "builtins.float": lambda one: (float.__pos__(one),),
    "builtins.complex": lambda one: (one.real, one.imag),
    "builtins.str": lambda one: (str.__str__(one),),
    "builtins.bytes": lambda one: (bytes.decode(one, "latin-1"), "latin-1"),
    "builtins.range": lambda one: (one.start, one.stop, one.step),
    "builtins.slice": lambda one: (one.start, one.stop, one.step),
    "builtins.tuple": lambda one: list(tuple.__iter__(one)),
    "builtins.frozenset": lambda one: list(frozenset.__iter__(one)),
    "builtins.dict_keys": list,
    "builtins.dict_items": list,
    "collections.ChainMap": lambda one: one.maps,
    "fractions.Fraction": lambda one: (one.numerator, one.denominator),
    "decimal.Decimal": lambda one: (str(one),),
    "datetime.timedelta": lambda one: (one.days, one.seconds, one.microseconds),
    "datetime.timezone": lambda one: (one.utcoffset(None),),
    "datetime.datetime": lambda one: (*one.timetuple()[:6], one.microsecond, one.tzinfo),
    "datetime.date": lambda one: (one.year, one.month, one.day),
    "datetime.time": lambda one: (one.hour, one.minute, one.second, one.microsecond, one.tzinfo),
}
GATHERED = ("builtins.tuple", "builtins.frozenset", "builtins.dict_keys", "builtins.dict_items")  # made of a list
UNSET = object()  # of a slot
VIEWS: dict[str, Any] = {
    "builtins.dict_keys": lambda parts: dict.fromkeys(parts).keys(),
    "builtins.dict_items": lambda parts: dict(parts).items(),
}


class Kind(NamedTuple):
    """Values that can be changed in place: made empty, what they hold in a list, and made to hold such a list."""

    empty: Callable[[list[Any]], Any]
    parts: Callable[[Any], list[Any]]
    fill: Callable[[Any, list[Any]], object]


def fill_set(value: set[Any], parts: list[Any]) -> None:
    value.clear()
    value.update(parts)


def fill_deque(value: deque[Any], parts: list[Any]) -> None:
    value.clear()
    value.extend(parts[1:])


def items_of(names: dict[Any, Any]) -> list[Any]:
    return [part for item in dict.items(names) for part in item]


def fill_dict(names: dict[Any, Any], parts: list[Any]) -> None:
    names.clear()
    for place in range(0, len(parts), 2):
        names[parts[place]] = parts[place + 1]


def fill_default(value: Any, parts: list[Any]) -> None:
    fill_dict(value, parts[1:])
    value.default_factory = parts[0]


def fill_array(value: Any, parts: list[Any]) -> None:
    value[:] = type(value)(value.typecode, parts[1:])


@functools.lru_cache(1000)
def slots_of(kind: type) -> tuple[str, ...]:
    return tuple(name for one in kind.__mro__ for name, each in vars(one).items() if type(each) is MemberDescriptorType)


def attributes_of(one: Any) -> list[Any]:
    kind: Any = type(one)
    own = items_of(vars(one)) if kind.__dictoffset__ else []
    slots = [(name, getattr(one, name, UNSET)) for name in slots_of(kind)]
    return own + [part for name, value in slots if value is not UNSET for part in (name, value)]


def fill_attributes(one: Any, parts: list[Any]) -> None:
    """
    Raises:
        TypeError: a function in the place of a method of the class, which its comparisons may call.
    """
    kind: Any = type(one)
    given, slots = dict(zip(parts[::2], parts[1::2], strict=True)), slots_of(kind)
    for name, value in given.items():
        if callable(value) and isinstance(getattr(kind, name, None), FunctionType | MethodType):
            raise TypeError(f"{name!r} of an object hides the method of its class {kind.__name__}")
    for name in slots:
        if name in given:
            object.__setattr__(one, name, given[name])
        elif getattr(one, name, UNSET) is not UNSET:
            object.__delattr__(one, name)
    rest = [part for name, value in given.items() if name not in slots for part in (name, value)]
    if kind.__dictoffset__ != 0:
        fill_dict(vars(one), rest)


@functools.cache
def class_of(tag: str) -> Any:
    if tag in VIEWS:
        return VIEWS[tag]
    module, name = tag.split(".")
    return getattr(importlib.import_module(module), name)


def of_collections(name: str) -> Callable[[list[Any]], Any]:
    return lambda parts: class_of(f"collections.{name}")()


KINDS = {
    "builtins.list": Kind(
        lambda parts: [], lambda one: list(list.__iter__(one)), lambda one, parts: one.__setitem__(slice(None), parts)
    ),
    "builtins.set": Kind(lambda parts: set(), lambda one: list(set.__iter__(one)), fill_set),
    "builtins.bytearray": Kind(
        lambda parts: bytearray(),
        lambda one: [one.decode("latin-1")],
        lambda one, parts: one.__setitem__(slice(None), parts[0].encode("latin-1")),
    ),
    "collections.deque": Kind(
        lambda parts: deque(maxlen=parts[0]), lambda one: [one.maxlen, *deque.__iter__(one)], fill_deque
    ),
    "collections.defaultdict": Kind(
        of_collections("defaultdict"), lambda one: [one.default_factory, *items_of(one)], fill_default
    ),
    "collections.Counter": Kind(of_collections("Counter"), items_of, fill_dict),
    "collections.OrderedDict": Kind(
        of_collections("OrderedDict"), lambda one: [part for item in one.items() for part in item], fill_dict
    ),
    "builtins.dict": Kind(lambda parts: {}, items_of, fill_dict),
    "array.array": Kind(
        lambda parts: class_of("array.array")(parts[0]), lambda one: [one.typecode, *one.tolist()], fill_array
    ),
}
OBJECT = "object "  # before the name of a class that both sides have
OBJECTS = Kind(lambda parts: object(), attributes_of, fill_attributes)


@functools.lru_cache(1000)
def name_of(kind: type) -> str | None:
    """The class of `KINDS` or `VALUES` that this class is, or is a subclass of."""
    names = (f"{one.__module__}.{one.__qualname__}" for one in kind.__mro__)
    return next((name for name in names if name in KINDS or name in VALUES), None)


class Owner:
    """What knows the objects that do not cross, and the classes that both sides have."""

    types: dict[str, Any]
    shared: dict[str, Any]

    def node_of(self, value: Any) -> list[Any]:
        raise NotImplementedError

    def object_of(self, tag: str, *parts: Any) -> Any:
        raise NotImplementedError


def tag_of(owner: Owner, value: Any) -> str | None:
    """The tag of a value that can be changed in place, or None."""
    kind: Any = type(value)
    if is_shared(owner, kind) and kind.__new__ is object.__new__:  # it is what its attributes are
        return f"{OBJECT}{kind.__name__}"
    name = name_of(kind)
    return name if name in KINDS else None


def is_shared(owner: Owner, kind: type) -> bool:
    return bool(owner.shared) and owner.shared.get(kind.__name__) is kind


def kind_of(tag: str) -> Kind:
    return KINDS.get(tag, OBJECTS)


class Packed:
    """Values as a graph: `nodes`, to which a value refers by [number]; atoms stand for themselves.

    `given`: objects that the other side gave, to which it is referred by negative numbers.
    """

    def __init__(self, owner: Owner, given: Sequence[Any] = ()) -> None:
        self.owner, self.nodes, self.objects, self.todo = owner, list[Any](), list[Any](), list[int]()
        self.places = {id(one): -1 - place for place, one in enumerate(given) if tag_of(owner, one) is not None}

    def refs(self, values: Sequence[Any]) -> list[Any]:
        refs = [self._ref(value) for value in values]
        while self.todo:
            place = self.todo.pop()
            self.nodes[place] = self._node(self.objects[place])
        return refs

    def _ref(self, value: Any) -> Any:
        kind = type(value)
        if kind in ATOMS or (kind is int and -(1 << 64) < value < 1 << 64):
            return value
        if id(value) not in self.places:
            self.places[id(value)] = len(self.nodes)
            self.todo.append(len(self.nodes))
            self.nodes.append(None)
            self.objects.append(value)  # kept, so that its number is nobody else's
        return [self.places[id(value)]]

    def _node(self, value: Any) -> list[Any]:
        kind: Any = type(value)
        if (tag := tag_of(self.owner, value)) is not None:
            return [tag, *[self._ref(part) for part in kind_of(tag).parts(value)]]
        if is_shared(self.owner, kind) and issubclass(kind, enum.Enum | tuple):
            parts = [value.value] if isinstance(value, enum.Enum) else tuple.__iter__(value)
            return ["shared", kind.__name__, *[self._ref(part) for part in parts]]
        if (known := name_of(kind)) is not None:
            return [known, *[self._ref(part) for part in VALUES[known](value)]]
        for single, one in SINGLE.items():
            if one is value:
                return ["single", single]
        name = value.__name__ if isinstance(value, type) else ""
        if name and self.owner.types.get(name) is value:
            return ["type", name]
        if kind.__module__ == "numpy" and getattr(value, "shape", None) == ():
            return ["same", self._ref(value.item())]
        return self.owner.node_of(value)


class Unpacked:
    """Values from a graph; `given`: objects of ours to which it may refer by negative numbers.

    Raises:
        Exception: of any kind, where it is no such graph.
    """

    def __init__(self, owner: Owner, nodes: list[list[Any]], given: Sequence[Any] = ()) -> None:
        self.owner, self.nodes, self.given = owner, nodes, given
        self.made = [node[0] in KINDS or node[0].startswith(OBJECT) for node in nodes]
        self.objects = [self._empty(*node) if made else None for node, made in zip(nodes, self.made, strict=True)]
        changeable = [place for place, made in enumerate(self.made) if made]
        for place in reversed(range(len(nodes))):  # held comes after what holds it, mostly
            if not self.made[place]:
                self._make(place)
        hashed = ("builtins.set", "builtins.dict", "Counter", "OrderedDict", "defaultdict")
        for place in sorted(changeable, key=lambda place: nodes[place][0].endswith(hashed)):
            kind_of(nodes[place][0]).fill(self.objects[place], self.values(nodes[place][1:]))

    def _empty(self, tag: str, *parts: Any) -> Any:
        if tag in KINDS:
            return KINDS[tag].empty(list(parts))
        return object.__new__(self.owner.shared[tag.removeprefix(OBJECT)])

    def values(self, refs: Sequence[Any]) -> list[Any]:
        return [self._value(ref) for ref in refs]

    def _value(self, ref: Any) -> Any:
        if type(ref) is not list:
            return ref
        return self.objects[ref[0]] if ref[0] >= 0 else self.given[-1 - ref[0]]

    def _make(self, start: int) -> None:
        """Makes an immutable value after those that it holds, which are immutable too or are there already."""
        left, opened = [start], set[int]()
        while left:
            place = left[-1]
            held = [] if self.made[place] else [ref[0] for ref in self.nodes[place][1:] if type(ref) is list]
            missing = [one for one in held if one >= 0 and not self.made[one]]
            if not missing:
                if not self.made[place]:
                    self.objects[place], self.made[place] = self._immutable(*self.nodes[place]), True
                left.pop()
            elif place in opened:
                raise ValueError("an immutable value holds itself")
            else:
                opened.add(place)
                left += missing

    def _immutable(self, tag: str, *parts: Any) -> Any:
        if tag in VALUES:
            kind, values = class_of(tag), self.values(parts)
            return int(values[0], 16) if kind is int else kind(values) if tag in GATHERED else kind(*values)
        if tag == "same":
            return self._value(parts[0])
        if tag == "shared":
            kind, values = self.owner.shared[parts[0]], self.values(parts[1:])
            return kind(*values) if issubclass(kind, enum.Enum) else tuple.__new__(kind, values)
        return SINGLE[parts[0]] if tag == "single" else self.owner.object_of(tag, *parts)
