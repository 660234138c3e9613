"""Which results of a tested function are what they seem."""

import collections
import decimal
import fractions
import re
import types

import pytest

from vrpo.rewards.honest import honest, main, own_class

PROGRAM: dict = {"__name__": "__main__"}  # where a program's classes say that they are
exec(
    "class Equal:\n    def __eq__(self, other): return True\n    def __hash__(self): return 0\n"
    "class EqualNumber(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"
    "class Named(Equal): pass\nNamed.__module__, Named.__qualname__ = 'builtins', 'int'\n"
    "class Pair: pass\n"
    "def count(n): return [count] if n == 0 else count(n - 1)\n"
    "def use(pair): return 1\n"
    "def make(): return Pair()\n",
    PROGRAM,
)
Equal, EqualNumber, Named = PROGRAM["Equal"], PROGRAM["EqualNumber"], PROGRAM["Named"]
CYCLE: list = []
CYCLE.append(CYCLE)
THEIRS = [
    None, 1, 2.5, "a", b"a", 1j, True, [], {"a": [1, (2, {3})]}, frozenset({1}), range(3), CYCLE, iter([1]),
    map(str, [1]), {}.keys(), (each for each in "a"), lambda: 0, len, re.match("a", "a"), fractions.Fraction(1, 2),
    decimal.Decimal(1), collections.Counter("a"), collections.OrderedDict(a=1),
    collections.defaultdict(int), collections.deque([1]), int,
]  # fmt: skip
OWN = [
    Equal(), EqualNumber(3), Named(), [Equal()], {"a": (1, [Equal()])}, {Equal(): 1}, {Equal()},
    collections.deque([Equal()]), collections.namedtuple("Pair", "a b")(1, 2),
]  # fmt: skip


@pytest.mark.parametrize("value", THEIRS, ids=lambda value: type(value).__name__)
def test_types_of_the_library(value):
    """Kills: honest results refused; a list that holds itself looked at without end."""
    assert own_class(value) is None
    assert honest(lambda: value)() is value


@pytest.mark.parametrize("value", OWN, ids=lambda value: type(value).__name__)
def test_types_of_a_program(value):
    """Kills: an object that equals everything, as it is, in a container, under a name of Python's own."""
    with pytest.raises(TypeError, match="object of the program's own class"):
        honest(lambda: value)()


def test_a_class_of_the_main_program(monkeypatch):
    """Kills: the program itself taken for a library."""
    program = types.ModuleType("__main__")
    program.Equal = type("Equal", (), {"__module__": "__main__"})
    monkeypatch.setitem(__import__("sys").modules, "__main__", program)
    assert own_class(program.Equal()) is program.Equal


def test_tests_see_honest_functions_and_the_program_its_own():
    """Kills: recursion that goes through the check; classes that tests construct, refused; names of the tests that stay
    behind in the program."""
    main(PROGRAM, ["count"], "inner = count(3)[0]\nassert count.__wrapped__ is inner")
    main(PROGRAM, ["use", "Pair", "missing"], "assert use(Pair()) == 1")
    assert "inner" not in PROGRAM
    with pytest.raises(AssertionError):
        main(PROGRAM, ["use"], "assert use(0) == 2")
    with pytest.raises(TypeError, match="own class Pair"):
        main(PROGRAM, ["make"], "make()")
