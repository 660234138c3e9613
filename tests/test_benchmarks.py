"""Every living benchmark runs, tiny, as its page says, and checks what it found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STUDIES = [path.parent.name for path in sorted(ROOT.glob("benchmarks/*/run.py")) if "\nSTUDY = " in path.read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in STUDIES if name != "kill"])  # kill: e2e/test_kill.py
def test_runs_tiny(name: str, tmp_path: Path) -> None:
    """Kills: a command or a field that has moved; a claim that its own study refutes; a run without its facts."""
    paths = [str(ROOT / "src"), str(ROOT)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "benchmarks", name, "--tiny", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = tmp_path.glob("*.json")
    found = json.loads(path.read_text())
    assert found["finished"]
    assert found.keys() >= {"commit", "versions", "hardware", "options", "seconds"}
    assert all(rows for rows in found["parts"].values())
    assert path.with_suffix(".md").read_text().strip() in done.stdout
