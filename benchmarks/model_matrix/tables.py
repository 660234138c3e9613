"""README.md's tables, from the JSON files beside it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Result = dict[str, Any]


def matrix(result: Result) -> str:
    head = ("family", "architecture", "load and save", "all weights: loss, accuracy", "LoRA: loss, accuracy")
    lines = [_row(*head, "reload", "generates", "export"), "|---" * 8 + "|"]
    for row in result["rows"]:
        trained = [row["full"], row["lora"]]
        names = "official names" if row["exported"]["names"] else "OTHER NAMES"
        lines.append(
            _row(
                row["family"],
                f"{row['architecture']}, {row['parameters'] / 1e3:.0f}k",
                "bit for bit" if row["round_trip"] else "DIFFERENT",
                *(f"{run['loss'][0]:.3f} to {run['loss'][1]:.3f}, {run['accuracy']:.2f}" for run in trained),
                _size(max(run["reload_difference"] for run in trained)),
                f"{row['generated']['answers']} answers, {row['generated']['first_half']:.2f}",
                f"{names}, {_size(row['exported']['difference'])}",
            )
        )
    return "\n".join(lines)


def parity(result: Result) -> str:
    lines = ["| folder | code | largest difference of a logit, float32 |", "|---|---|---|"]
    lines += [f"| {row['folder']} | {row['code']} | {_size(row['difference'])} |" for row in result["rows"]]
    return "\n".join(lines)


TABLES: dict[str, Callable[[Result], str]] = {"matrix": matrix, "parity": parity}


def write_table(folder: Path) -> None:
    """Every table whose JSON file is there, between its marks in README.md."""
    page = folder / "README.md"
    text = page.read_text() if page.exists() else "".join(f"{_mark(name)}{_END}\n" for name in TABLES)
    for name, table in TABLES.items():
        if (folder / f"{name}.json").exists():
            before, rest = text.split(_mark(name), 1)
            text = before + _mark(name) + table(json.loads((folder / f"{name}.json").read_text())) + "\n"
            text += _END + rest.split(_END, 1)[1]
    page.write_text(text)


_END = "<!-- end -->"


def _mark(name: str) -> str:
    return f"<!-- table of {name}.json -->\n"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _size(value: float) -> str:
    return "0" if value == 0 else f"{value:.0e}"
