"""Fixtures every room shares: one thread, golden files, and a helper for data that is not in the repository."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow tests run only when asked for (`-m slow`, or by their own node id)."""
    if config.option.markexpr or any("::" in argument for argument in config.args):
        return
    skip = pytest.mark.skip(reason="slow: run with -m slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """One thread: reproducible sums, and no quarrel for cores with other processes."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_disks() -> Iterator[None]:
    """What a test writes need not outlive a loss of power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tables that are kept go into a folder of this session, also those of programs that a test starts."""
    folder = tmp_path_factory.mktemp("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        patch.setenv("HF_DATASETS_CACHE", str(folder))
        yield


@pytest.fixture
def no_global_randomness() -> Iterator[None]:
    """The test may neither draw from, nor reseed, torch's global generator."""
    before = torch.random.get_rng_state()
    yield
    assert torch.equal(before, torch.random.get_rng_state()), "torch's global generator has moved"


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the fixtures made with the public reference code (each has a README)."""
    return GOLDEN


@pytest.fixture(scope="session")
def vrpo_data() -> Callable[[str], Path]:
    """`vrpo_data("tokenizers/x")`: a path below $VRPO_DATA, or a skip: the suite needs no other data."""

    def find(relative: str) -> Path:
        if "VRPO_DATA" not in os.environ:
            pytest.skip("VRPO_DATA is not set")
        path = Path(os.environ["VRPO_DATA"]) / relative
        if not path.exists():
            pytest.skip(f"VRPO_DATA has no {relative}")
        return path

    return find
