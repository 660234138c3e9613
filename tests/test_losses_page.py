"""docs/losses.md and the numbers behind it: what a loss does with noise, by quadrature and as committed."""

import importlib
import json
import math
import re
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from scipy.integrate import quad

from vrpo.commands.arguments import ModelArguments
from vrpo.training.objectives import _NOT_OFFERED, LOSSES
from vrpo.training.preference_config import VRPOConfig

ROOT = Path(__file__).parents[1]
ZOO, PAGE = ROOT / "benchmarks" / "loss_zoo", ROOT / "docs" / "losses.md"
METHODS = {0.0: -1.149, 1.0: -0.950, 2.2: -0.817, 7.3: -0.571, 44.0: -0.267}  # dmpo_rkl's mean slope at u = 0


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ZOO))
    return importlib.import_module("noise")


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    return json.loads((ZOO / "noise.json").read_text())


def sigmoid(u: float) -> float:
    return 1 / (1 + math.exp(-u))


def gaussian(u: float, variance: float) -> float:
    return math.exp(-u * u / (2 * variance)) / math.sqrt(2 * math.pi * variance)


def test_dmpo_loses_its_signal_as_predicted(noise: ModuleType) -> None:
    """Against METHODS.md's five numbers, which are right to 0.001, and an adaptive quadrature of the formula of the
    slope. Kills: noise of the wrong variance; a slope of the wrong sign or scale; another alpha."""
    dmpo, dpo = noise.CASES["dmpo_rkl, alpha 0.01"], noise.CASES["sigmoid"]
    for variance, published in METHODS.items():
        found = noise.expected(dmpo, 0.0, variance)["slope"]
        assert found == pytest.approx(published, abs=1.0e-3)
        assert noise.expected(dpo, 0.0, variance)["slope"] == pytest.approx(-0.5, abs=1e-12)
        if variance:
            value, _ = quad(
                lambda u, v=variance: sigmoid(u) * sigmoid(-u) * (u - math.log(99)) * gaussian(u, v),
                -90,
                90,
                limit=500,
                epsabs=1e-12,
            )
            assert found == pytest.approx(value, abs=1e-8)


def test_mean_slope_is_the_slope_of_the_mean(noise: ModuleType) -> None:
    """d/du E f(u^) = E f'(u^), and `pull` is dF/dV: by finite differences of the quadrature's means, for every loss.
    Kills: noise in other scores than the slope is of; a pull without its factor of one half."""
    for name, case in noise.CASES.items():
        if case.at is noise._orpo_at:
            continue  # its u is not a shift of the scores
        moment = case.closed or (lambda u, v, case=case: noise.expected(case, u, v))
        centre = torch.tensor([case.at(0.3 + step) for step in (-1e-4, 1e-4)], dtype=torch.float64)
        shift = float((case.loss(centre)[1] - case.loss(centre)[0]) / 2e-4)
        below, above = moment(0.3 - 1e-4, 2.2), moment(0.3 + 1e-4, 2.2)
        measured = (above["bias"] - below["bias"]) / 2e-4 + shift
        assert moment(0.3, 2.2)["slope"] == pytest.approx(measured, abs=1e-6), name
        less, more = moment(0.3, 2.2 - 1e-4), moment(0.3, 2.2 + 1e-4)
        if "pull" in less:
            assert moment(0.3, 2.2)["pull"] == pytest.approx((more["bias"] - less["bias"]) / 2e-4, abs=1e-6), name


def test_hinge_by_brute_force(noise: ModuleType) -> None:
    """The closed form of the kink against a fine sum. Kills: a sign of the density's term; mean and square mixed up."""
    for u, v in ((0.0, 1.0), (1.0, 7.3), (4.0, 44.0)):
        closed, sums = noise._hinge(u, v), noise.expected(noise.CASES["hinge"], u, v, 1e-4)
        for what in closed:
            assert closed[what] == pytest.approx(sums[what], abs=2e-4), what


def test_ipo_is_biased_by_its_variance_and_corrected_exactly(noise: ModuleType) -> None:
    for u in noise.MARGINS:
        cell = noise.cell(noise.CASES["ipo_sum, ipo"], u, 7.3)
        assert cell["bias"] == pytest.approx(7.3)
        assert cell["jackknife_bias"] == pytest.approx(0, abs=1e-12)
        assert cell["halves_bias"] == pytest.approx(0, abs=1e-12)
        assert cell["slope"] == cell["true_slope"]


def test_committed_numbers_are_those_of_the_script(noise: ModuleType, stored: dict[str, Any]) -> None:
    """At one variance and two margins, every loss; and the checks that were committed with them. Kills: a leaf whose
    formula changed and left its numbers behind."""
    assert stored["exact"].keys() == noise.CASES.keys()
    for name, one in stored["exact"].items():
        for cell in one["cells"]:
            if cell["V"] == 1 and cell["u"] in (-1, 2):
                assert noise.cell(noise.CASES[name], cell["u"], 1.0) == pytest.approx(cell, abs=1e-9), name
    checks = stored["checks"]
    assert checks["cells_beyond_a_bound"] == []
    assert max(checks["largest_change_when_the_step_is_halved"].values()) < 1e-9
    assert checks["ipo_by_quadrature_minus_formula"] < 1e-9


def test_suprema_by_formula_are_those_of_the_grid(stored: dict[str, Any]) -> None:
    for name, one in stored["exact"].items():
        for what in ("lipschitz", "smooth"):
            formula, grid = one["constants"][what], one["constants"][f"{what}_on_grid"]
            assert (formula is None) == (grid is None), name
            assert formula is None or formula == pytest.approx(grid, rel=1e-4), name


def test_tables_of_the_page_are_those_of_the_json(monkeypatch: pytest.MonkeyPatch, stored: dict[str, Any]) -> None:
    """Kills: a number edited by hand, or an old one."""
    monkeypatch.syspath_prepend(str(ZOO))
    report = importlib.import_module("noise_report")
    page = PAGE.read_text()
    assert report.filled(page, stored) == page
    assert report.filled(page.replace("0.113", "0.114"), stored) == page
    assert (ZOO / "noise.md").read_text() == report.everything(stored)


def test_the_page_names_every_loss_and_every_refusal() -> None:
    """Kills: a loss added, renamed or refused without a word on the page."""
    offered, refused = PAGE.read_text().split("\n## What is refused, and why\n")
    rows = [line.split("|")[1] for line in offered.split("\n## What is offered\n")[1].split("\n## ")[0].splitlines()
            if line.startswith("| `")]  # fmt: skip
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(LOSSES) | {"loss_type"}
    rows = [line.split("|")[1] for line in refused.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(_NOT_OFFERED) | {
        "loss_type"
    }  # its head


BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0])
def test_examples_of_the_page_are_legal(block: str, tmp_path: Path) -> None:
    """Kills: a field renamed, or a combination refused, that the page still recommends."""
    values = yaml.safe_load(block)
    assert values.keys() <= {field.name for part in (VRPOConfig, ModelArguments) for field in fields(part)}
    ours = {name: value for name, value in values.items() if name in {field.name for field in fields(VRPOConfig)}}
    config = VRPOConfig(output_dir=str(tmp_path), **ours)
    assert config.training_objective(config._assumed_references) is not None


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
