"""Commands killed with SIGKILL and run again leave the files of a run that was left alone (benchmarks/kill)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_killed_and_run_again() -> None:
    """The study's own check. Kills: parts or half-written files left over; answers that depend on where a run was
    stopped; replies asked for twice; a comparison that sees no difference."""
    paths = [str(ROOT / "src"), str(ROOT)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "benchmarks", "kill", "--tiny"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
