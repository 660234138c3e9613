"""A table of cases in one test: what `pytest.mark.parametrize` says, in a loop that lists all offenders.

For cheap cases of one law. A case that takes a second, or has a story of its own, stays a test of its own.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import pytest

Test = Callable[..., None]


def each(names: str | Sequence[str], values: Sequence[Any], ids: Any = None) -> Callable[[Test], Test]:
    """Run the test with each of the values; it fails with the names of all cases that do."""
    fields = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    cases = [tuple(value) if len(fields) > 1 else (value,) for value in values]
    assert cases, "a loop over nothing tests nothing"
    labels = ids if isinstance(ids, Sequence) else [repr(case)[:120] for case in cases]

    def decorate(test: Test) -> Test:
        signature = inspect.signature(test)

        @wraps(test)
        def run(*args: Any, **kwargs: Any) -> None:
            failed: dict[str, BaseException] = {}
            for number, (label, case) in enumerate(zip(labels, cases, strict=True)):
                try:
                    with _alone(kwargs, number) as own:
                        test(*args, **own, **dict(zip(fields, case, strict=True)))
                except (Exception, pytest.fail.Exception) as error:
                    failed[str(label)] = error
            if failed:
                said = "\n".join(f"{label}: {type(error).__name__}: {error}" for label, error in failed.items())
                raise AssertionError(f"{len(failed)} of {len(cases)}\n{said}") from next(iter(failed.values()))

        left = [each for each in signature.parameters.values() if each.name not in fields]
        run.__signature__ = signature.replace(parameters=left)  # type: ignore[attr-defined]  what pytest looks at
        return run

    return decorate


@contextmanager
def _alone(fixtures: Mapping[str, Any], number: int) -> Iterator[dict[str, Any]]:
    """The fixtures of one case: a folder of its own, and patches that are undone after it."""
    own = dict(fixtures)
    if "tmp_path" in own:
        own["tmp_path"] = own["tmp_path"] / str(number)
        own["tmp_path"].mkdir()
    if "monkeypatch" not in own:
        yield own
        return
    with own["monkeypatch"].context() as patch:
        yield {**own, "monkeypatch": patch}
