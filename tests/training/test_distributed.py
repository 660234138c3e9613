"""Two processes are one: DDP through the Trainer and accelerate, FSDP2 directly, both on gloo; float64, to 1e-9.

accelerate ignores FSDP on a CPU and returns DDP, hence `fully_shard` by hand, with the parameters asserted to be
DTensors. All scenarios share one launch of torchrun (worker.py).
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import GradientState
from accelerate.utils import DistributedType

from tests.loops import each
from tests.training.runs import distance, log_lines, moved
from tests.training.worker import SCENARIOS, Result
from vrpo.training.preference import VRPOTrainer

TOLERANCE = 1e-9
LOOSE = {"kept_lora": 1e-5}  # a row's gradient scaled, or its slope: transformers' RMSNorm rounds to float32 in between
ROOT = Path(__file__).parents[2]
DDP = [name for name in SCENARIOS if not name.startswith("sharded")]

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes left the results of all scenarios."""
    folder = tmp_path_factory.mktemp("two")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    try:
        done = subprocess.run(
            [*launcher, "-m", "tests.training.worker", str(folder)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
    except subprocess.TimeoutExpired:
        pytest.fail("two processes did not finish: a deadlock")
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture
def both(of_two: Path, tmp_path: Path) -> Callable[[str], tuple[Result, Result]]:
    """Results of a scenario in one process and in two."""

    def run(name: str) -> tuple[Result, Result]:
        return SCENARIOS[name](tmp_path / name, 1), torch.load(of_two / f"{name}.pt", weights_only=True)

    return run


@pytest.mark.parametrize("name", DDP)
def test_same_trajectory(both: Callable[[str], tuple[Result, Result]], name: str) -> None:
    """Kills: the unwrapped module called (no averaging at all); gradients synchronised at every draw AND averaged once
    more; a missing world size in a process's share; a number of packs that is not agreed on; a reference whose adapter
    is off on one process only; draws that depend on the rank; a baseline of kto that is a process's own."""
    one, two = both(name)
    assert moved(one["trajectory"]) > 1e-3
    assert two["equal_on_all"]
    assert distance(one["trajectory"], two["trajectory"]) < LOOSE.get(name, TOLERANCE)


@pytest.mark.parametrize("name", ["full", "lora", "unequal", "sft", "labels", "batch_mean", "ranked"])
def test_same_evaluation(both: Callable[[str], tuple[Result, Result]], name: str) -> None:
    """5 pairs in batches of 2 on two processes, which pad to 8. Kills: duplicates counted; a mean of means."""
    one, two = both(name)
    assert one["evaluation"].keys() == two["evaluation"].keys()
    assert two["evaluation"] == pytest.approx(one["evaluation"], rel=1e-9, abs=1e-9)


def test_pairs_taken_apart_are_all_evaluated(both: Callable[[str], tuple[Result, Result]]) -> None:
    """5 pairs, of two answers each, in batches of 2 on two processes; but for the baseline, which is a batch's. Kills:
    gathered answers that are cut off as if each were an example."""
    one, two = both("apart")
    names = [name for name in one["evaluation"] if "elbo/" in name or "rewards/chosen" in name]
    assert len(names) > 4
    assert {name: two["evaluation"][name] for name in names} == pytest.approx(
        {name: one["evaluation"][name] for name in names}, rel=1e-9
    )


@pytest.mark.parametrize("name", ["full", "accumulated", "unequal", "one_pass", "labels", "ranked", "filled"])
def test_same_log(both: Callable[[str], tuple[Result, Result]], tmp_path: Path, name: str) -> None:
    """Kills: metrics of process 0 alone, or of the last micro-batch alone; a loss scaled by the world size."""
    _, two = both(name)
    one = log_lines(tmp_path / name)
    assert len(one) == len(two["log"])
    for expected, found in zip(one, two["log"], strict=True):
        assert expected.keys() == found.keys()
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)  # the loss is logged in float32


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name.startswith("sharded")])
def test_fsdp2_gradients(both: Callable[[str], tuple[Result, Result]], name: str) -> None:
    """Kills: a head called outside the module's forward (raises on DTensors); packs not agreed on (deadlock); an empty
    pack that changes a gradient."""
    one, two = both(name)
    assert one["packs"] != two["packs"]
    assert float(two["loss"]) == pytest.approx(float(one["loss"]), abs=TOLERANCE)
    for name, expected in one["gradient"].items():
        torch.testing.assert_close(two["gradient"][name], expected, atol=TOLERANCE, rtol=0)
    assert max(float(value.abs().max()) for value in one["gradient"].values()) > 1e-2


class Stub(VRPOTrainer):
    """A trainer without a model: only what it asks of accelerate."""

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.args: Any = SimpleNamespace(world_size=2, device=torch.device("cpu"))


def test_a_step_without_work_still_synchronises() -> None:
    """Kills: `agree` returning 0 packs to several processes: no backward, so no synchronisation of what earlier
    micro-batches accumulated."""
    trainer = Stub(SimpleNamespace(gather=lambda count: count))
    assert trainer.agree(0) == 1
    assert trainer.agree(3) == 3


@each("kind", [DistributedType.MULTI_CPU, DistributedType.DEEPSPEED])
@each("due", [True, False])
def test_gradients_synchronise_once_a_step(kind: DistributedType, due: bool) -> None:
    """Kills: a synchronisation at every pack (the same gradients, n times the traffic; under DeepSpeed n optimizer
    steps), and a `sync_gradients` that is not put back, which skips the optimizer step."""
    entered: list[bool] = []

    @contextmanager
    def no_sync(model: Any) -> Iterator[None]:
        entered.append(True)
        yield

    state = GradientState()
    state._set_sync_gradients(due)
    accelerator = SimpleNamespace(gradient_state=state, distributed_type=kind, no_sync=no_sync)
    around = Stub(accelerator).around(torch.nn.Identity())
    seen = []
    for last in (False, False, True):
        with around(last):
            seen.append(state.sync_gradients)
        assert state.sync_gradients is due
    assert seen == [False, False, due]
    assert len(entered) == (2 if due and kind != DistributedType.DEEPSPEED else 0)
    state._set_sync_gradients(True)
