"""What an answer costs when its tests run in a process of their own.

    python benchmarks/sandbox/pairs.py

Judges one right answer to a small HumanEval problem, in two processes, and runs the same program with its tests in one;
times one call between the two processes. Writes pairs.json.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from vrpo.rewards.code import HumanEval
from vrpo.rewards.sandbox import Sandbox
from vrpo.rewards.verdict import Answer

ROW = {"prompt": "def total(xs):\n", "entry_point": "total", "test": "def check(f):\n    assert f([1, 2]) == 3\n"}
CODE = "def total(xs):\n    return sum(xs)\n"
CALLS = 2000


def milliseconds(action: Callable[[], float], repeats: int = 40) -> dict[str, float]:
    """Wall time, and CPU time as the action returns it in seconds."""
    wall, cpu = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        cpu.append(1000 * action())
        wall.append(1000 * (time.perf_counter() - start))
    return {"wall_median": round(statistics.median(wall), 1), "cpu_median": round(statistics.median(cpu), 1)}


def judged(calls: int) -> float:
    test = f"def check(f):\n    for _ in range({calls}):\n        assert f([1, 2]) == 3\n"
    outcome = HumanEval()._program(Answer("", CODE, {**ROW, "test": test}), 0).run(Sandbox())
    assert outcome.passed, outcome
    return outcome.cpu_seconds


if __name__ == "__main__":
    one = milliseconds(lambda: Sandbox()(CODE, f"{ROW['test']}check(total)").cpu_seconds)
    two, many = milliseconds(lambda: judged(1)), milliseconds(lambda: judged(CALLS), 5)
    result = {
        "machine": {"processor": platform.machine(), "python": platform.python_version()},
        "one process": one,
        "two processes": two,
        "a call, microseconds": {
            name: round(1000 * (many[name] - two[name]) / CALLS) for name in ("wall_median", "cpu_median")
        },
    }
    (Path(__file__).parent / "pairs.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
