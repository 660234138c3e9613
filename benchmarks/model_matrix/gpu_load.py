"""Saving and loading a checkpoint in its official layout, against reading the same bytes and nothing else."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_checks import problem
from safetensors.torch import load_file
from step import timed

import vrpo
from vrpo.models.load import adapt

CHUNK = 2**26


def load_row(module: Any, device: torch.device, folder: Path, left: Callable[[], float]) -> dict[str, Any]:
    """Seconds to save the module and to load it again in several ways; whether all its tensors came back bit for bit.

    The files were written just before, so they are read from memory where it has room: what is measured is the loading,
    not a disk. Each way is left out if what the slowest took so far is not left.
    """
    folder.mkdir(parents=True)
    row: dict[str, Any] = {}
    try:
        row["save"] = timed(lambda: adapt(module, None).save_pretrained(folder, max_shard_size="4GB"), device)[0]
        shards = sorted(folder.glob("*.safetensors"))
        row |= {"bytes": sum(each.stat().st_size for each in shards), "shards": len(shards)}
        ways: dict[str, Callable[[], Any]] = {
            "read": lambda: read(shards),
            "safetensors": lambda: [load_file(each, device=str(device)) for each in shards],
            "load": lambda: vrpo.load(folder, device=device).module,
            "device_map": lambda: type(module).from_pretrained(str(folder), dtype="auto", device_map={"": device}),
        }
        for name, way in ways.items():
            if left() < max(value for key, value in row.items() if key in ("save", *ways)):
                row[f"{name}_skipped"] = "no time left"
                continue
            row[name], made = timed(way, device)
            if name in ("load", "device_map"):
                row[f"{name}_equal"] = equal(module, made)
            del made
    except Exception as error:  # a full disk, say: the other parts may still be had
        row["failed"] = problem(error)
    finally:
        shutil.rmtree(folder)
    return row


def read(files: list[Path]) -> None:
    """Every byte into a buffer that is used again."""
    buffer = bytearray(CHUNK)
    for each in files:
        with each.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def equal(module: Any, other: Any) -> bool:
    """Whether all tensors of two modules are the same bit for bit."""
    one, two = module.state_dict(), other.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def fresh(parent: Path, name: str) -> Path:
    return parent / f"vrpo-{name.lower()}-{time.time_ns()}"
