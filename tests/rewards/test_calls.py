"""Calls between two ends, here in two threads of one process: what crosses, how, and what cannot."""

import array
import collections
import datetime
import decimal
import fractions
import itertools
import json
import math
import operator
import os
import struct
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.loops import each
from vrpo.rewards import calls
from vrpo.rewards.calls import Gone, Peer, Remote

PROGRAM = """
import collections, enum, re
class Point:
    def __init__(self, x): self.x = x
class Equal:
    def __eq__(self, other): return True
    def __hash__(self): return 0
    def __float__(self): return 0.0
class Number(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
class Own(ValueError): pass
class Level(enum.IntEnum):
    LOW = 1
Pair = collections.namedtuple("Pair", "a b")
def same(x): return x
def kinds(x): return type(x).__name__
def count(n):
    for i in range(n): yield i
def fail(kind, *parts): raise kind(*parts)
def own(): raise Own("mine")
def look(x, name): return getattr(x, name)
def text(x): return str(x)
def item(x): return x[0]
def add(x, y=0, *, z=0): return x + y + z
def fill(xs, d, s, p):
    xs[:] = [3, xs[0]]; d["b"] = d.pop("a"); s.add(9); p.x = xs
    return xs
def apply(f, *xs): return f(*xs)
def again(f, n): return f(again, n)
def adder(n): return lambda x: x + n
def swallow(f):
    try: f()
    except ZeroDivisionError as error: return str(error)
"""


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Peer, types.ModuleType]]:
    """The end of the tests, and the program's module, for which a thread answers."""
    (read, answer), (hear, ask) = os.pipe(), os.pipe()
    module, tests = types.ModuleType("program"), types.ModuleType("tests")
    monkeypatch.setitem(sys.modules, "program", module)
    exec(PROGRAM, vars(module))
    exec("class Point:\n    def __eq__(self, other): return type(other) is Point and self.x == other.x", vars(tests))
    thread = threading.Thread(target=calls.serve, args=((hear, answer), module, lambda name: vars(module)[name]))
    thread.start()
    end = Peer((read, ask), tests, trusted=True)
    end.share(["Point"])
    end.ask("share", ["Point"])
    yield end, module
    os.close(ask)
    thread.join(5)
    assert not thread.is_alive()
    os.close(answer)


@pytest.fixture
def ask(ends: tuple[Peer, types.ModuleType]) -> Callable[..., Any]:
    return lambda name, *values, **named: ends[0].ask("name", name)(*values, **named)


class Point:
    """Neither side's."""


CYCLE: list[Any] = [1]
CYCLE.append((CYCLE, {"self": CYCLE}))
VALUES = [
    None, True, False, 1, -1, 1 << 64, -(1 << 5000), 1.5, -0.0, math.inf, 1j, "", "a\0\ud800\U0001f600", b"\0\xff",
    bytearray(b"\xff"), [], (), {}, set(), frozenset(), [1, [2, (3, {4: {5}})]], {1: "a", "1": b"b", (1, 2): None},
    {1, 1.5, "a", (1,), frozenset({2})}, range(1, 9, 3), slice(1, None), fractions.Fraction(1, 3),
    decimal.Decimal("1.10"), datetime.date(2024, 2, 29), datetime.timedelta(1, 2, 3), datetime.time(1, 2, 3, 4),
    datetime.datetime(2024, 2, 29, 1, 2, 3, 4, datetime.UTC), collections.deque([1, 2], 3),
    array.array("d", [1, 2]), {1: 2, "a": 3}.keys(), {1: [2]}.items(), collections.ChainMap({1: 2}, {3: 4}),
    collections.Counter("aab"), collections.OrderedDict([("b", 1), ("a", 2)]), collections.defaultdict(list, a=[1]),
    int, ValueError, type(None), object, ..., NotImplemented,
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_plain_values(ask, value):
    """Kills: a value or an exact type lost on the way there or back; an order or a sign lost."""
    back = ask("same", value)
    assert (type(back), repr(back)) == (type(value), repr(value))
    assert back == value
    assert ask("kinds", value) == type(value).__name__


def test_sharing_and_cycles(ask):
    """Kills: a value that holds itself followed without end; two places of one list made two lists; a value's depth
    limited by recursion."""
    shared: list[int] = []
    one, two = ask("same", ([shared], (shared,)))
    assert one[0] is two[0] is shared
    assert math.isnan(ask("same", math.nan))
    assert ask("same", CYCLE) is CYCLE
    deep: Any = ()
    for _ in range(1500):
        deep = (deep,)
    back = ask("same", deep)
    for _ in range(1500):
        (back,) = back
    assert back == ()


def test_what_a_call_changes(ask, ends):
    """Kills: arguments changed in place that stay as they were, or become others; a result that was an argument."""
    point = vars(ends[0].module)["Point"]()
    point.x = 1
    xs, inner = [1, 2], {"a": 1}
    held, found = xs, {1}
    result = ask("fill", xs, inner, found, point)
    assert result is xs is held is point.x
    assert (xs, inner, found) == ([3, 1], {"b": 1}, {1, 9})


def test_arguments_by_name_and_errors(ask):
    """Kills: an exception of another class, without what it was made with, or with a class of the program's."""
    assert ask("add", 1, z=2) == 3
    for kind, made in ((ValueError, ("a", 1)), (KeyError, ("k",)), (ZeroDivisionError, ()), (SystemExit, (2,))):
        with pytest.raises(kind) as caught:
            ask("fail", kind, *made)
        assert caught.value.args == made
    with pytest.raises(PermissionError, match=r"\[Errno 13\] no: '/x'"):
        ask("fail", OSError, 13, "no", "/x")
    with pytest.raises(RuntimeError, match="UnicodeDecodeError: "):
        ask("fail", UnicodeDecodeError, "utf8", b"x", 0, 1, "bad")
    with pytest.raises(ValueError, match="mine") as own:
        ask("own")
    assert type(own.value) is ValueError
    with pytest.raises(TypeError, match="missing 1 required"):
        ask("add")


def test_results_of_the_program_s_own_classes(ask):
    """Kills: a class of the program's that equals everything, as itself, in a container, or as a number."""
    for name, arguments in (("Equal", ()), ("same", (ask("Equal"),))):
        one = ask(name, *arguments)
        assert isinstance(one, Remote)
        for compare in (
            lambda one=one: one == 3, lambda one=one: one != 3, lambda one=one: one in [3],
            lambda one=one: [one] == [3], lambda one=one: {"a": one} == {"a": 3}, lambda one=one: operator.eq(3, one),
            lambda one=one: one < 3,
            lambda one=one: abs(one), lambda one=one: math.isclose(one, 3), lambda one=one: float(one),
            lambda one=one: one - 3, lambda one=one: 3 in one,
        ):  # fmt: skip
            with pytest.raises(TypeError):
                compare()
    assert ask("Number", 7) != 3
    assert type(ask("Number", 7)) is int
    level = ask("same", vars(sys.modules["program"])["Level"].LOW)
    assert (type(level), level) == (int, 1)
    assert ask("Pair", 1, 2) == (1, 2)


SHARED = """
import dataclasses, enum, typing
class Level(enum.Enum):
    LOW, HIGH = 1, (2, 3)
class Pair(typing.NamedTuple):
    a: int
    b: object = None
@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    x: int
class Stack(list): pass
class Vector:
    def __init__(self, x): self.x = x
    def close(self, other): return self.x == other.x
    def __eq__(self, other): return self.close(other)
"""


@pytest.fixture
def classes(ends):
    """The tests' names, after both sides have got the classes of a prompt."""
    names = ["Level", "Pair", "Cell", "Stack", "Vector"]
    for module in (ends[0].module, ends[1]):
        exec(SHARED, vars(module))
    ends[0].share(names)
    ends[0].ask("share", names)
    return types.SimpleNamespace(**{name: vars(ends[0].module)[name] for name in names})


def test_classes_of_the_prompt(ask, classes):
    """Kills: a member, a named tuple or an object with slots that both sides have and that stays on one of them."""
    for value in (classes.Level.LOW, classes.Level.HIGH, classes.Pair(1, [2]), classes.Cell(3), classes.Vector(4)):
        back = ask("same", value)
        assert type(back) is type(value)
        assert back == value
        assert ask("kinds", value) == type(value).__name__
    assert ask("same", classes.Level.HIGH) is classes.Level.HIGH
    assert {ask("same", classes.Cell(3))} == {classes.Cell(3)}
    assert ask("same", classes.Stack([1])) == [1]


def test_no_object_hides_the_methods_of_its_class(ask, ends, classes):
    """Kills: an `__eq__` of the prompt that calls what a program has put into the object."""
    for planted in ("bool", "lambda other: True"):
        exec(f"def plant(x):\n    one = Vector(x)\n    one.close = {planted}\n    return one", vars(ends[1]))
        with pytest.raises(TypeError, match="'close' of an object hides the method"):
            assert ask("plant", 1) == classes.Vector(2)


def test_an_object_is_itself_and_not_none(ask):
    one = ask("same", vars(sys.modules["program"])["Equal"])()
    assert one == one
    assert one != None  # noqa: E711
    assert ask("same", one) is one


def test_objects_that_stay_in_the_program(ask):
    """Kills: iterators, functions and objects of a right program that the tests cannot use."""
    assert list(ask("count", 3)) == [0, 1, 2]
    assert list(itertools.islice(ask("count", 10**9), 2)) == [0, 1]
    each = ask("count", 2)
    assert [next(each), next(each), next(each, None)] == [0, 1, None]
    assert ask("adder", 2)(3) == 5
    own = ask("apply", ask("same", vars(sys.modules["program"])["Equal"]))
    own.x = [1]
    assert own.x == [1]
    assert ask("same", own).x == [1]
    assert "Equal object" in str(own)
    with pytest.raises(AttributeError):
        own.missing  # noqa: B018


def test_functions_of_the_tests(ask, ends):
    """Kills: a function, an iterator or a class of the library that tests pass and the program cannot use; an exception
    of a test's function that the program does not see; calls back and forth."""
    seen: list[int] = []
    assert ask("apply", lambda x: seen.append(x) or x + 1, 1) == 2
    assert seen == [1]
    assert ask("apply", sorted, [2, 1]) == [1, 2]
    assert ask("apply", operator.add, 1, 2) == 3
    assert ask("apply", fractions.Fraction, 1, 2) == fractions.Fraction(1, 2)
    assert ask("apply", sum, iter([1, 2])) == 3
    assert ask("again", lambda again, n: n and 1 + again(lambda _, m: m, n - 1), 4) == 4
    assert ask("swallow", lambda: 1 / 0) == "division by zero"
    with pytest.raises(KeyError):
        ask("apply", {}.__getitem__, "x")


def test_a_program_may_only_call_what_it_was_given(ask):
    """Kills: a program that looks into the objects of the tests, or calls what was not given to it."""
    with pytest.raises(AttributeError):
        ask("look", lambda: 1, "__globals__")
    for name, arguments in (("look", ("f_globals",)), ("text", ()), ("item", ())):
        with pytest.raises(KeyError):
            ask(name, lambda: 1, *arguments)


FORGED = [
    b"[]", b"{", b"[" * 10**5, b"\xff", b"1", b'{"values": [[0]], "nodes": [["named", "os", "system"]], "changes": []}',
    b'{"values": [[0]], "nodes": [["yours", 5]], "changes": []}', b'{"values": [[7]], "nodes": [], "changes": []}',
    b'{"values": [[0]], "nodes": [["object Own"]], "changes": []}',
    b'{"values": [1], "nodes": [], "changes": [[9, []]]}', b'{"values": [], "nodes": [], "changes": []}',
    b'{"values": [[0]], "nodes": [["builtins.tuple", [0]]], "changes": []}', b'{"error": [["exec"], [], ""]}',
    b'{"error": [[], [], ""], "values": [0], "nodes": [], "changes": []}',
    b'{"values": [[0]], "nodes": [["shared", "Point", 1]], "changes": []}',
    b'{"values": [[0]], "nodes": [["builtins.eval", "1"]], "changes": []}',
    b'{"values": [[0]], "nodes": [["type", "eval"]], "changes": []}',
]  # fmt: skip


@each("data", FORGED)
def test_forged_messages(data):
    """Kills: an object of the tests' process made, changed or found by what is no message of ours."""
    (read, answer), (_, ask) = os.pipe(), os.pipe()
    end = Peer((read, ask), types.ModuleType("tests"), trusted=True)
    threading.Thread(target=os.write, args=(answer, struct.pack("=Q", len(data)) + data)).start()
    with pytest.raises((Gone, ValueError, LookupError, StopIteration, RuntimeError)):
        end.ask("name", "x")


def test_forged_calls():
    """A call of what was not given away is answered with an error. Kills: `OF_TESTS` not enforced."""
    (read, answer), (hear, ask) = os.pipe(), os.pipe()
    end = Peer((read, ask), types.ModuleType("tests"), trusted=True)
    for operation, target, nodes in (("call", [0], [["type", "int"]]), ("get", [0], [["yours", 0]]), ("call", 1, [])):
        end.mine, end.numbers = [test_forged_calls], {id(test_forged_calls): 0}
        values = [target, [1], [2]] if operation == "call" else [target, "__globals__"]
        nodes = [*nodes, *[["builtins.list"], ["builtins.dict"]]][:3]
        for message in (
            {"ask": operation, "values": values, "nodes": nodes},
            {"values": [7], "nodes": [], "changes": []},
        ):
            data = json.dumps(message).encode()
            os.write(answer, struct.pack("=Q", len(data)) + data)
        assert end.ask("name", "x") == 7
        with os.fdopen(os.dup(hear), "rb", buffering=0) as heard:
            replies = [json.loads(heard.read(struct.unpack("=Q", heard.read(8))[0])) for _ in range(2)]
        assert "ask" in replies[0]
        assert "error" in replies[1]


def test_an_end_that_is_gone():
    """Kills: the end of the other process taken for an exception that tests may expect, and forgotten."""
    (read, answer), (_, ask) = os.pipe(), os.pipe()
    os.close(answer)
    end = Peer((read, ask), types.ModuleType("tests"), trusted=True)
    for _ in range(2):
        with pytest.raises(Gone, match="process ended"):
            end.ask("name", "x")
    assert not issubclass(Gone, Exception)
    assert end.gone
