"""End to end means as users run it: without the run-time type checks of the suite, which transformers' own argument
classes do not pass (an int for a float, None for a str)."""

from collections.abc import Iterator

import pytest
from jaxtyping import config


@pytest.fixture(autouse=True, scope="package")
def _no_type_checks() -> Iterator[None]:
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
