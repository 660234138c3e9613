"""The machine and the code of a run, and what is measured on any machine: seconds, memory, speed of products."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets")
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}  # freed tensors go back at once


def facts(device: str) -> dict[str, Any]:
    """Commit, versions and hardware."""
    gpu = torch.cuda.get_device_name() if torch.device(device).type == "cuda" else None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    hardware = {"cpu": cpu_name(), "cores": os.cpu_count(), "memory_gb": round(memory / 1e9), "gpu": gpu}
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    return {"commit": commit(), "versions": versions, "hardware": hardware}


def commit() -> str:
    """Of the code that runs; it ends with a plus where files were changed since."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "..", "../../src")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if changed else "")


def cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.is_file() else ""
    lines = [line.split(":")[1].strip() for line in text.split("\n") if line.startswith("model name")]
    return (lines[0] if lines else platform.processor()) + (", AMX" if "amx_bf16" in text else "")


def seconds(function: Callable[..., Any], *args: Any, device: Any = "cpu", **options: Any) -> tuple[float, Any]:
    """How long a call takes, the device's work included, and what it returns."""
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    value = function(*args, **options)
    wait()
    return time.perf_counter() - start, value


def product_flops(
    tokens: int, width: int, inner: int, dtype: torch.dtype, *, device: Any = "cpu", times: int = 1
) -> float:
    """Operations per second of [T, D] x [D, I] products here and now: median of five tries."""
    one, other = (torch.randn(n, m, device=device).to(dtype) for n, m in ((tokens, width), (width, inner)))
    tries = [seconds(lambda: [one @ other for _ in range(times)], device=device)[0] for _ in range(6)][1:]
    return times * 2 * tokens * width * inner / statistics.median(tries)


def reset_peak(device: Any = "cpu") -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM: Linux


def peak_bytes(device: Any = "cpu") -> int:
    """Most bytes in tensors since the reset; on a CPU resident bytes of the whole process."""
    return torch.cuda.max_memory_allocated() if torch.device(device).type == "cuda" else resident("VmHWM")


def resident(name: str = "VmRSS") -> int:
    """A field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().split("\n")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def in_fresh_process(function: Callable[..., Any], environment: Mapping[str, str], **given: Any) -> Any:
    """What a function of a module of ours returns in a process of its own; arguments and result are JSON values."""
    command = [sys.executable, "-m", "benchmarks.harness.machine", function.__module__, function.__name__]
    done = subprocess.run(
        [*command, json.dumps(given)],
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.strip().split("\n")[-1])


def vrpo_command(*words: Any, log: Path) -> None:
    """A vrpo command in a process of its own, on one thread; what it says goes to the log."""
    command = [sys.executable, "-m", "vrpo", *map(str, words)]
    with log.open("w") as file:
        done = subprocess.run(command, stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise RuntimeError(f"vrpo {words[0]}: {log.read_text()[-2000:]}")


if __name__ == "__main__":
    module, name, given = sys.argv[1:]
    print(json.dumps(getattr(import_module(module), name)(**json.loads(given))))
