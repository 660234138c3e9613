"""docs/losses.md and the numbers behind it: what a loss does with noise, by quadrature and as committed."""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.loops import each
from vrpo.losses.named import LOSSES, NOT_OFFERED
from vrpo.training.arguments import ModelArguments
from vrpo.training.preference_config import VRPOConfig

ROOT = Path(__file__).parents[1]
ZOO, PAGE = ROOT / "benchmarks" / "loss_zoo", ROOT / "docs" / "losses.md"
METHODS = {0.0: -1.149, 1.0: -0.950, 2.2: -0.817, 7.3: -0.571, 44.0: -0.267}  # dmpo_rkl's mean slope at u = 0


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    return json.loads((ZOO / "noise.json").read_text())


def test_suprema_by_formula_are_those_of_the_grid(stored: dict[str, Any]) -> None:
    for name, one in stored["exact"].items():
        for what in ("lipschitz", "smooth"):
            formula, grid = one["constants"][what], one["constants"][f"{what}_on_grid"]
            assert (formula is None) == (grid is None), name
            assert formula is None or formula == pytest.approx(grid, rel=1e-4), name


def test_the_page_names_every_loss_and_every_refusal() -> None:
    """Kills: a loss added, renamed or refused without a word on the page."""
    offered, refused = PAGE.read_text().split("\n## What is refused, and why\n")
    rows = [line.split("|")[1] for line in offered.split("\n## What is offered\n")[1].split("\n## ")[0].splitlines()
            if line.startswith("| `")]  # fmt: skip
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == {*LOSSES, "sft", "loss_type"}
    rows = [line.split("|")[1] for line in refused.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(NOT_OFFERED) | {
        "loss_type"
    }  # its head


BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@each("block", BLOCKS, ids=lambda block: block.splitlines()[0])
def test_examples_of_the_page_are_legal(block: str, tmp_path: Path) -> None:
    """Kills: a field renamed, or a combination refused, that the page still recommends."""
    values = yaml.safe_load(block)
    assert values.keys() <= {field.name for part in (VRPOConfig, ModelArguments) for field in fields(part)}
    ours = {name: value for name, value in values.items() if name in {field.name for field in fields(VRPOConfig)}}
    config = VRPOConfig(output_dir=str(tmp_path), **ours)
    assert config.make_recipe().objective is not None


def test_intervals_in_the_text_are_measured(stored: dict[str, Any]) -> None:
    """Of every `value [low, high]` outside the tables. Kills: a figure of an earlier run left in a sentence."""
    measured: list[tuple[float, float, float]] = []

    def gather(found: object) -> None:
        if isinstance(found, dict) and {"value", "low", "high"} <= found.keys():
            measured.append((found["value"], found["low"], found["high"]))
        elif isinstance(found, dict):
            for each in found.values():
                gather(each)

    def same(value: float, shown: str, factor: int) -> bool:
        digits = len(shown.partition(".")[2])
        return abs(factor * value - float(shown)) < 0.501 * 10**-digits

    gather(stored)
    prose = "\n".join(line for line in PAGE.read_text().splitlines() if not line.startswith("|"))
    shown = re.findall(r"(-?[\d.]+) \[(-?[\d.]+), (-?[\d.]+)\]", prose)
    assert len(shown) >= 9
    for three in shown:
        assert any(
            all(same(value, text, factor) for value, text in zip(one, three, strict=True))
            for one in measured
            for factor in (1, 100)
        ), f"{three} is not in noise.json"
