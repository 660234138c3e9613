"""What makes many short runs fast."""

import gc

import pytest


@pytest.fixture(autouse=True, scope="package")
def _imports_are_no_garbage() -> None:
    """Every run starts with a full garbage collection (accelerate's); imported modules need not be searched again."""
    gc.collect()
    gc.freeze()
