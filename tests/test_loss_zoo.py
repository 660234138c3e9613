"""benchmarks/loss_zoo: figures are what they are called, tables are of whole comparisons, and the script runs."""

import gzip
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from vrpo import DPO, Pairs

ROOT = Path(__file__).parents[1]
ZOO = ROOT / "benchmarks" / "loss_zoo"
PAIRS = Pairs(torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor([5, 6, 7, 8]))


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of the folder, under a name of its own: other benchmarks have scripts of the same names."""
    monkeypatch.syspath_prepend(str(ZOO))
    spec = importlib.util.spec_from_file_location(f"loss_zoo_{name}", ZOO / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, loaded)  # dataclasses look there
    spec.loader.exec_module(loaded)
    return loaded


def terms(replicates: int, draws: int, seed: int) -> torch.Tensor:
    return torch.randn(replicates, 4, draws, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) / draws


def test_loss_zoo_estimates_of_one_draw_and_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kills: single draws that are not scaled to an estimate; draws mixed up between rows; a sum instead of a mean."""
    measure = module("measure", monkeypatch)
    given = terms(3, 8, 0)
    one, every = measure.singles(given), measure.together(given)
    assert one.shape == (24, 4, 1)
    assert every.shape == (1, 4, 24)
    mean = given.sum(-1).mean(0)
    torch.testing.assert_close(one.sum(-1).mean(0), mean)
    torch.testing.assert_close(every.sum(-1)[0], mean)


def test_loss_zoo_slopes_and_variances(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of DPO, whose slope is known. Kills: a slope divided by the draws; the wrong sign; the noise of the bounds
    taken for that of their differences."""
    measure = module("measure", monkeypatch)
    policy, reference = terms(6, 8, 1), terms(6, 8, 2)
    found = measure.figures(policy, reference, PAIRS, DPO(0.7))
    change = (policy - reference).sum(-1)
    h = change[:, :2] - change[:, 2:]
    assert found["slope_n8"] == pytest.approx(float(0.7 * torch.sigmoid(-0.7 * h).mean()))
    assert found["slope_all"] == pytest.approx(float(0.7 * torch.sigmoid(-0.7 * h.mean(0)).mean()))
    assert found["variance_n8"] == pytest.approx(float(h.var(0).mean()))
    assert found["variance_alone_n8"] != pytest.approx(found["variance_n8"])
    assert found["ordered"] == "".join(str(int(value > 0)) for value in h.mean(0).tolist())
    assert "slope_n8" not in measure.figures(policy, reference, PAIRS, None)


def run_of(arm: str, rate: float, seed: int, solved: str, **changes: Any) -> dict[str, Any]:
    job = {"task": "sudoku", "objective": "sigmoid", "arm": arm, "rate": rate, "seed": seed, "flipped": False}
    marks = {"solved": solved, "ordered": solved, "margin": 1.0, "chosen_change": 0.0, "tokens": 17.0}
    figures = {f"{name}_{draws}": 0.5 for name in ("variance", "slope") for draws in ("n1", "n8", "all", "default")}
    test = {**marks, **figures}
    return {"job": job, "log": [[0.5, 1.0]], "validate": {**marks}, "test": test, **changes}


def test_loss_zoo_tables_have_whole_seeds_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Kills: a seed that was cut off in the middle counted; the rate chosen on test problems; a gain with the wrong
    sign; marks that lose their leading zeros; a run without a finite loss taken for a stable one."""
    report = module("report", monkeypatch)
    arms = ("n8", "n1", "default", "n1_same_steps")
    better = {"n8": "0011", "n1": "0001", "default": "0111", "n1_same_steps": "0000"}
    runs = [run_of(arm, rate, seed, better[arm]) for arm in arms for rate in (1e-4, 1e-3) for seed in (1, 2)]
    runs += [run_of("n8", 1e-4, 3, "1111")]  # the others of this seed were cut off
    for run in runs:
        if run["job"]["rate"] == 1e-3:  # better on test problems, worse on validation
            run["test"]["solved"], run["validate"]["solved"] = "1111", "0000"
    runs[3]["log"] = [[float("nan"), 1.0]]
    report.report(runs, {"sudoku": "0001"}, tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    cells = report.cells_of(result["runs"], "sudoku", False)["sigmoid"]
    assert {len(cell.marks) for cell in cells.values()} == {2}
    assert [cells[arm].marks[0] for arm in arms] == [[int(mark) for mark in better[arm]] for arm in arms]
    for against, gain in (("n1", 0.25), ("n1_same_steps", 0.5)):
        found = report.gains({"sigmoid": cells}, "n8", against).interval("sigmoid")
        assert found == (
            pytest.approx(gain),
            pytest.approx(1.96 * 0.25**0.5 / 2 if gain == 0.25 else 1.96 * (1 / 3) ** 0.5 / 2),
        )
    assert cells["n8"].collapsed(0.25) == (1, 4)
    assert report.base_score(result, "sudoku") == 0.25
    page = (tmp_path / "README.md").read_text()
    assert "| sigmoid | 0.250 [" in page
    assert (tmp_path / "zoo.png").is_file()


def test_loss_zoo_intervals_pool_the_chance_of_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kills: degrees of freedom of one objective, or one too many; a variance over problems taken for one over seeds; a
    seed's interval not divided by the number of seeds."""
    cells = module("cells", monkeypatch)
    for freedom, exact in ((1, 12.706), (4, 2.776), (5, 2.571), (10, 2.228), (30, 2.042)):
        assert cells.student(freedom) == pytest.approx(exact, rel=0.01)
    steady, shaky = [[1, 0], [0, 1]], [[1, 1], [0, 0]]
    column = cells.Column({"steady": steady, "shaky": shaky})
    assert column.over_seeds == pytest.approx(4.303 * (0.5 / 2) ** 0.5)  # variances 0 and 1 / 2, two degrees of freedom
    assert column.interval("steady") == (0.5, pytest.approx(column.over_seeds / 2**0.5))
    assert cells.Column({"one": [[1, 0]]}).over_seeds == 0
    assert cells.Column({}).interval("none") is None


def test_loss_zoo_labels_learnt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of two seeds with pairs of their own, right and wrong labels apart. Kills: a wrong label counted as learnt where
    the true order is; problems of several seeds taken for the same; seeds that are not paired; one rate for both."""
    report = module("report", monkeypatch)
    arms = {"n8": "1110", "n1": "1111", "default": "1100", "n1_same_steps": "1000"}
    runs = [run_of(arm, rate, seed, "01") for arm in arms for rate in (1e-4, 1e-3) for seed in (1, 2)]
    for run in runs:
        job = run["job"]
        job |= {"task": "ultrafeedback", "flipped": True}
        right = arms[job["arm"]][: 2 + job["seed"]] if job["rate"] == 1e-4 else "0000"
        run |= {"right": {"ordered": right}, "wrong": {"ordered": "001" if job["seed"] == 1 else "0"}}
        run["test"]["solved"] = run["validate"]["solved"] = ""
    report.report(runs, {"ultrafeedback": ""}, tmp_path)
    cells = report.cells_of(json.loads((tmp_path / "result.json").read_text())["runs"], "ultrafeedback", True)
    assert report.learnt(cells, "n8", "right", 1e-4).marks["sigmoid"] == [[1, 1, 1], [1, 1, 1, 0]]
    assert report.learnt(cells, "n8", "wrong", 1e-4).marks["sigmoid"] == [[1, 1, 0], [1]]
    page = (tmp_path / "README.md").read_text().split("\n")
    first, second = (page[page.index(f"Learning rate {rate}:") + 4].split(" | ") for rate in ("0.0001", "0.001"))
    half = 12.706 * (1 / 2 * (2 / 3 - 1 / 2) ** 2) ** 0.5 / 2**0.5
    assert first[1:5] == ["0.875", "1.000", "0.583", "0.292"]
    assert first[5:9] == ["0.833"] * 4
    assert first[9] == f"+0.583 [{7 / 12 - half:.3f}, {7 / 12 + half:.3f}]"
    assert first[10] == " |"
    assert second[1:5] == ["0.000"] * 4
    assert (tmp_path / "learnt.png").is_file()
    for run in runs:
        run["job"]["flipped"] = False
    report.report([run for run in runs if run["job"]["seed"] == 1], {"ultrafeedback": ""}, tmp_path)
    page = (tmp_path / "README.md").read_text().split("\n")
    only = page[page.index("Learning rate 0.0001:") + 4].split(" | ")
    assert only[1:] == [f"{4 / 6:.3f}", f"{4 / 6:.3f}", f"{3 / 6:.3f}", f"{2 / 6:.3f}", " |"]  # one seed: no interval
    assert "learnt.png" not in page[-3]


def test_loss_zoo_without_the_arm_of_the_same_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Kills: whole seeds thrown away for an arm that was cut off; a picture of nothing."""
    report = module("report", monkeypatch)
    runs = [run_of(arm, 1e-4, seed, "0011") for arm in ("n8", "n1", "default") for seed in (1, 2)]
    for some in (runs, [*runs, run_of("n1_same_steps", 1e-4, 1, "0011")]):
        cells = report.cells_of([report.short(run) for run in some], "sudoku", False)["sigmoid"]
        assert {arm: len(cell.marks) for arm, cell in cells.items()} == {"n8": 2, "n1": 2, "default": 2}
        report.report(some, {"sudoku": "0001"}, tmp_path)
        (line,) = [line for line in (tmp_path / "README.md").read_text().split("\n") if "| sigmoid | 0.500 [" in line]
        assert line.endswith("|  |")


def test_loss_zoo_page_is_that_of_its_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Kills: a figure that was renamed in the script and not in the committed result; a table edited by hand."""
    report = module("report", monkeypatch)
    monkeypatch.setattr(report, "picture", lambda *given: None)  # seconds
    page = (ZOO / "README.md").read_text()
    (tmp_path / "README.md").write_text(page)
    report.write(json.loads((ZOO / "result.json").read_text()), tmp_path)
    assert (tmp_path / "README.md").read_text() == page


def test_loss_zoo_base_models_see_no_held_out_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of UltraFeedback. Kills: validation rows that SFT or a run has seen; a run on true labels where they are flipped;
    wrong labels taken for right ones."""
    tasks = module("tasks", monkeypatch)
    rows = [{"prompt": f"p{at}", "chosen": f"good {at}", "rejected": f"bad {at}"} for at in range(60)]
    wrong = {at for at in range(60) if at % 5 == 0}
    flipped = [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]} if at in wrong else row
        for at, row in enumerate(rows)
    ]
    rows[7]["rejected"] = flipped[7]["rejected"] = rows[7]["chosen"]  # unusable
    for name, some in (("train", rows), ("train_flipped20", flipped), ("eval", rows[:6])):
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in some)
    monkeypatch.setattr(tasks, "command", lambda *arguments: None)
    task = tasks.UltraFeedback.tiny(tmp_path / "task", tmp_path)
    task.folder.mkdir()
    task.prepare()
    seen = [json.loads(line) for line in (task.folder / "sft.jsonl").read_text().splitlines()]
    held = {row["prompt"] for row in task.measured_on("validate", 1)}
    assert held == {f"p{at}" for at in range(4)}
    assert {row["chosen"] for row in seen} == {
        f"{kind} {at}" for kind in ("good", "bad") for at in range(4, 60) if at != 7
    }
    true, given = task.pairs(1, False), task.pairs(1, True)
    assert len(true) == 32
    assert not held & {row["prompt"] for row in true}
    assert all(row["chosen"].startswith("good") for row in true)
    right, turned = task.measured_on("right", 1), task.measured_on("wrong", 1)
    assert {row["prompt"] for row in turned} == {row["prompt"] for row in given if row["chosen"].startswith("bad")}
    assert {row["prompt"] for row in turned} == {row["prompt"] for row in true} & {f"p{at}" for at in wrong}
    assert sorted(row["prompt"] for row in [*right, *turned]) == sorted(row["prompt"] for row in true)
    assert all(row["chosen"].startswith("good") for row in [*right, *turned])


@pytest.mark.slow
def test_loss_zoo_runs_and_goes_on(tmp_path: Path) -> None:
    """Kills: a field that has moved; an arm or an objective that does not run; a finished run made again; a deadline
    that is not kept."""
    given = ["--tiny", "--runs", str(tmp_path), "--page", str(tmp_path / "page"), "--workers", "sudoku=1"]
    few = ["--objectives", "sigmoid", "sigmoid_sft"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT / "src")}
    lines = []
    for more in (["--stage", "train", "--deadline_seconds", "0"], [], []):
        command = [sys.executable, str(ZOO / "run.py"), *given, *few, *more]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        results = tmp_path / "results.jsonl"
        lines.append(results.read_text().split("\n")[:-1] if results.is_file() else [])
    assert not lines[0]
    assert len(lines[1]) == 2 * 4
    assert lines[1] == lines[2]
    for line in lines[1]:
        run = json.loads(line)
        assert "failed" not in run, run
        assert run["steps"] == {"n1": 32}.get(run["job"]["arm"], 4)
        assert len(run["test"]["solved"]) == 8
    assert "| sigmoid_sft |" in (tmp_path / "page" / "README.md").read_text()
