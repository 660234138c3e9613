"""Whether two expressions are the same, exactly, where the library that compares them rounds.

math-verify rounds decimals to six places and drops what is below 1e-15, so 3/10^17 equals 1/10^17 there. What lives
here: a second look at what it takes for equal. What does not: finding and reading expressions (mathematics.py).
"""

from collections.abc import Sequence
from typing import Any

from sympy import Expr, FiniteSet, Float, Interval, MatrixBase, Rational, Symbol, Tuple, UnevaluatedExpr, prime
from sympy.core.relational import Relational

_DIGITS = 60  # of a value; two values differ if they do in the first 40
_ROUNDED = Rational(5, 10**6)  # six significant digits, of a decimal for a value that no decimal is
_UNDECIDED = (ArithmeticError, AttributeError, NotImplementedError, RecursionError, TypeError, ValueError)


def same(one: Any, other: Any) -> bool:
    """Whether two of sympy's objects that are taken for equal are: their numbers, one by one, to 40 digits.

    Decimals are exact. Only a plain decimal beside a value that has no decimal of its own, such as 0.333333 beside
    1/3, is taken for a rounded one, and must agree in six significant digits. What cannot be decided is the same.
    """
    try:
        return _same(one, other)
    except _UNDECIDED:
        return True


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Symbol) or isinstance(other, Symbol):  # words, which the library compares as texts
        return True
    if isinstance(one, Relational) and isinstance(other, Relational):
        return _same_relation(one, other)
    if isinstance(one, Relational) or isinstance(other, Relational):  # x = 5 beside 5
        return _same(*(each.rhs if isinstance(each, Relational) else each for each in (one, other)))
    mine, theirs = _numbers_in(one), _numbers_in(other)
    if mine is None or theirs is None:
        return True
    if isinstance(one, FiniteSet) and isinstance(other, FiniteSet):
        return _matched(mine, theirs)
    return len(mine) == len(theirs) and all(_same_value(a, b) for a, b in zip(mine, theirs, strict=True))


def _numbers_in(value: Any) -> Sequence[Any] | None:
    """The numbers of an object; None if they are not all that it is."""
    if isinstance(value, Interval):
        return [value.start, value.end]
    if isinstance(value, MatrixBase):
        return list(value)
    if isinstance(value, Expr):
        return [value]
    found = list(value.args) if isinstance(value, Tuple | FiniteSet) else None
    return found if found is not None and all(isinstance(each, Expr) for each in found) else None


def _matched(mine: Sequence[Any], theirs: Sequence[Any]) -> bool:
    """Whether each has one of the others, in whatever order."""
    left = list(theirs)
    for each in mine:
        partner = next((place for place, there in enumerate(left) if _same_value(each, there)), None)
        if partner is None:
            return False
        del left[partner]
    return not left


def _same_relation(one: Any, other: Any) -> bool:
    """x > 1/10^17 is not x > 3/10^17; of relations that are not linear the library's word counts."""
    mine, theirs = one.lhs - one.rhs, other.lhs - other.rhs
    symbols = sorted(mine.free_symbols | theirs.free_symbols, key=str)
    if any(each.diff(s, t) != 0 for each in (mine, theirs) for s in symbols for t in symbols):
        return True
    ratios = [_exact(mine).subs(point) / _exact(theirs).subs(point) for point in _points(symbols)]
    return all(_same_value(ratio, ratios[0]) for ratio in ratios[1:])


def _same_value(one: Any, other: Any) -> bool:
    """As numbers; a percent sign that only one side has may mean its hundredth or nothing."""
    signs = [each.has(UnevaluatedExpr) for each in (one, other)]
    bare = [each.xreplace({UnevaluatedExpr(Rational(1, 100)): Rational(1)}) for each in (one, other)]
    return _same_number(*bare) or (any(signs) and not all(signs) and _same_number(one, other))


def _same_number(one: Any, other: Any) -> bool:
    decimals = [each.has(Float) for each in (one, other)]
    mine, theirs = _exact(one), _exact(other)
    rounded = decimals != [True, True] and any(decimals) and [_is_decimal(mine), _is_decimal(theirs)] == decimals
    limit = _ROUNDED if rounded else Rational(1, 10**40)
    return all(
        _distance(mine.subs(point), theirs.subs(point)) <= limit
        for point in _points(one.free_symbols | other.free_symbols)
    )


def _exact(value: Any) -> Any:
    """With decimals as the fractions that they are."""
    return value.xreplace({number: Rational(str(number)) for number in value.atoms(Float)}).doit()


def _is_decimal(value: Any) -> bool:
    """Whether a value can be written as a decimal that ends."""
    if not isinstance(value, Rational):
        return False
    rest = int(value.q)
    for factor in (2, 5):
        while rest % factor == 0:
            rest //= factor
    return rest == 1


def _points(symbols: Any) -> list[dict[Symbol, Rational]]:
    """Values for symbols: three of nothing special, or none if there are no symbols."""
    ordered = sorted(symbols, key=str)
    count = 3 if ordered else 1
    return [
        {symbol: Rational(prime(7 + 5 * at + 11 * time), prime(6 + 3 * at)) for at, symbol in enumerate(ordered)}
        for time in range(count)
    ]


def _distance(one: Any, other: Any) -> Any:
    """Relative to the larger one.

    Raises:
        ArithmeticError: a value cannot be told from 0.
    """
    if one == other:
        return Rational(0)
    if isinstance(one, Rational) and isinstance(other, Rational):
        return abs(one - other) / max(abs(one), abs(other))
    mine, theirs = (each.evalf(_DIGITS, strict=True) for each in (one, other))
    return abs(mine - theirs) / max(abs(mine), abs(theirs))
