"""Benchmark scripts that need a GPU or a cluster: they run, small, and what they print is on their pages."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import vrpo
from vrpo.cli import main
from vrpo.estimator import Engine, plan_packs
from vrpo.models.load import _CLASSES

ROOT = Path(__file__).parents[1]
GPU, SCALING = ROOT / "benchmarks" / "gpu_8b", ROOT / "benchmarks" / "scaling"
MATRIX = ROOT / "benchmarks" / "model_matrix" / "gpu.py"


def script(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(path), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, str]:
    """Result, table and standard output of the 8B script at its tiny shape."""
    folder = tmp_path_factory.mktemp("gpu_8b")
    few = ("--draws", "1", "4", "--repeats", "1", "--pairs", "2", "--peak_tflops", "1", "--output", str(folder))
    done = script(GPU / "run.py", "--tiny", "--device", "cpu", *few)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "result.json").read_text()), (folder / "table.md").read_text(), done.stdout


@pytest.mark.slow
def test_gpu_8b_measures_every_row(tiny: tuple[dict[str, Any], str, str]) -> None:
    """Kills: a step whose API has moved; passes counted wrongly (a reference left out; a value pass not noticed)."""
    result, *_ = tiny
    assert result["finished"]
    assert {(row["mode"], row["workload"], row["draws"]) for row in result["rows"]} == {
        *(("one_pass", workload, draws) for workload in ("pairs", "full") for draws in (1, 4)),
        ("by_draw", "pairs", 4),
    }
    for row in result["rows"]:
        assert row.keys() >= {"seconds_per_pair", "tokens_per_second", "real_share", "peak_bytes"}, row
        passes = row["forward_tokens_per_second"] / row["tokens_per_second"]
        if row["mode"] == "one_pass":
            assert passes == pytest.approx(2)  # policy and reference
            assert row["real_share"] == 1  # rows of a pack are of one length
        else:
            assert 2 < passes < 3  # and the values of all packs but the first
        assert row["executed_flops_per_second"] > 1.2 * row["flops_per_second"]  # checkpointing


@pytest.mark.slow
def test_gpu_8b_says_what_it_found(tiny: tuple[dict[str, Any], str, str]) -> None:
    result, table, printed = tiny
    goals = result["goals"]
    assert goals["flat_ratio"] > 0  # says nothing at this size: the interpreter is a thousand times the model
    assert {"peak_below_24_gb", "flat_in_n", "mfu_at_least_half"} <= goals.keys()
    assert goals["mfu"] is None or 0 < goals["mfu"] < 1
    assert table.strip() in printed
    assert table.count("| sdpa | one_pass |") == 4
    assert "memory flat in n" in table


@pytest.mark.slow
def test_gpu_8b_names_what_it_left_out(tmp_path: Path) -> None:
    """Kills: a row missing without a word; an output folder's README losing its text."""
    (tmp_path / "README.md").write_text("above\n<!-- table of result.json -->\nold\n<!-- end -->\nbelow\n")
    done = script(GPU / "run.py", "--tiny", "--device", "cpu", "--budget_seconds", "0", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert all(row["skipped"] for row in result["rows"])
    assert result["goals"]["peak_below_24_gb"] is None
    page = (tmp_path / "README.md").read_text()
    assert page.startswith("above\n")
    assert page.endswith("<!-- end -->\nbelow\n")
    assert "skipped: no time left" in page
    assert "old" not in page


def test_counted_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cost.py says a step executes against torch's own counter, and weights against the module's.

    Not needed by the first block, which cost.py counts all the same: gradients of the inputs of q, k, v. Attention is
    eager, because the counter does not know the CPU's fused one. Kills: a backward counted double for frozen weights; a
    head at all positions; a reference forgotten; a factor of two.
    """
    monkeypatch.syspath_prepend(str(GPU))
    bench, cost = importlib.import_module("run"), importlib.import_module("cost")
    shared = importlib.import_module("step")
    device, shape = torch.device("cpu"), bench.TINY
    for checkpointed in (False, True):
        model = shared.Counting(bench.random_llada(shape, device, "eager", checkpointing=checkpointed), device)
        assert sum(p.numel() for p in model.module.parameters() if p.requires_grad) == shape.adapter_weights
        assert sum(p.numel() for p in model.module.parameters() if not p.requires_grad) == shape.weights
        optimizer = torch.optim.AdamW([p for p in model.module.parameters() if p.requires_grad])
        tokens, pairs = shared.batch([[8, 24, 24]], shape, device, 0)
        with FlopCounterMode(display=False) as counter:
            case = shared.Case("eager", "one_pass", "full", 4)
            _, draws = shared.run_step(case, model, optimizer, tokens, pairs, 128)
        work = cost.Work(4 * 64, 4 * 2 * 32**2, float((draws.weight != 0).sum()))
        expected = cost.lora_flops(shape, work)
        expected += cost.again_flops(shape, work, checkpointed=checkpointed, value_share=0.0, lora=True)
        expected -= work.tokens * 2 * 3 * (shape.width**2 + shape.rank * shape.width)
        assert counter.get_total_flops() == pytest.approx(expected, rel=1e-3)


def test_counted_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a block keeps for its backward, counted in storages that autograd holds: one more block, so much more."""
    monkeypatch.syspath_prepend(str(GPU))
    bench, cost = importlib.import_module("run"), importlib.import_module("cost")
    shared = importlib.import_module("step")
    length, kept = 256, []
    ids, on = torch.arange(length)[None], torch.ones(1, length, dtype=torch.bool)
    for layers in (1, 2):
        heads = dict.fromkeys(("heads", "key_heads"), 4)
        shape = cost.Shape(layers=layers, width=512, inner=1536, vocabulary=512, rank=2, **heads)
        module = bench.random_llada(shape, torch.device("cpu"), "sdpa", checkpointing=False)
        weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
        storages: dict[int, Any] = {}

        def hold(tensor: torch.Tensor, into: dict[int, Any] = storages) -> torch.Tensor:
            into[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
            out = shared.Counting(module, ids.device)(input_ids=ids, attention_mask=on, masked=~on, scored=on)
        assert out.requires_grad
        kept.append(sum(each.nbytes() for place, each in storages.items() if place not in weights) / length)
    assert kept[1] - kept[0] == pytest.approx(cost.kept_bytes(shape), rel=0.02)


def test_gpu_8b_memory_on_its_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kills: a formula that moved and left its figures behind; a default that misses the goal on paper."""
    monkeypatch.syspath_prepend(str(GPU))
    cost = importlib.import_module("cost")
    on, off = (cost.lora_memory(cost.Shape(), 4096, checkpointed=checkpointed) for checkpointed in (True, False))
    page = (GPU / "README.md").read_text()
    assert f"with gradient checkpointing {sum(on.values()) / 1e9:.1f} GB" in page
    assert f"weights {on['base, bf16'] / 1e9:.1f}, activations {on['activations'] / 1e9:.1f}" in page
    small = on["adapter, gradient, AdamW"] + on["one-pass buffers"]
    assert f"buffers {small / 1e9:.1f}, the head's chunk of logits {on['head chunk'] / 1e9:.1f}" in page.replace(
        "\n", " "
    )
    assert f"without it {sum(off.values()) / 1e9:.1f} GB" in page
    assert sum(on.values()) < 24e9 < sum(off.values())


def test_scaling_page_is_what_the_script_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kills: a formula, a length or an assumption changed without its tables. Measured inputs where they exist."""
    monkeypatch.syspath_prepend(str(SCALING))
    model = importlib.import_module("model")
    result = GPU / "result.json"
    page = (ROOT / "docs" / "scaling.md").read_text()
    assert model.filled(page, model.measured(result) if result.exists() else model.Inputs()) == page
    assert "ASSUMED" in page


def test_scaling_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs are the engine's; the expected maximum is exact. Kills: an order statistic off by one; another packing."""
    monkeypatch.syspath_prepend(str(SCALING))
    model = importlib.import_module("predict")
    for pair in ([10, 5, 30], [3000, 40, 50], [100, 1000, 20]):
        size = [pair[0] + answer for answer in pair[1:]]
        place = torch.arange(max(size)).expand(2, -1)
        attention = place < torch.tensor(size)[:, None]
        tokens = vrpo.Tokens(place.clone(), attention & (place >= pair[0]), attention, torch.arange(2))
        plan = plan_packs(tokens, draws := vrpo.FixedCount(8)(tokens), draws.in_use, Engine(4096))
        assert model.packs(pair, 8, 4096) == [int(tokens.size[pack[:, 0]].sum()) for pack in plan]
    values = [1.0, 2.0, 4.0]
    assert model.largest(values, 2) == pytest.approx(sum(max(a, b) for a in values for b in values) / 9)
    assert model.largest(values, 1) == pytest.approx(model.mean(values))


def test_scaling_takes_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kills: a tiny or unfinished run taken for the 8B shape; needed operations taken for executed ones."""
    monkeypatch.syspath_prepend(str(SCALING))
    model = importlib.import_module("model")
    row = {"mode": "one_pass", "workload": "pairs", "draws": 8, "seconds": [1.0], "executed_flops_per_second": 4e14}
    result = {"device": "some GPU", "peak_flops": 1e15, "settings": {"tiny": False}, "rows": [row]}
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result))
    found = model.measured(path)
    assert (found.peak, found.utilisation) == (1e15, 0.4)
    assert "some GPU" in found.utilisation_source
    for change in ({"peak_flops": None}, {"settings": {"tiny": True}}, {"rows": []}):
        path.write_text(json.dumps({**result, **change}))
        with pytest.raises(ValueError, match="no row of one_pass"):
            model.measured(path)


def test_gpu_8b_knows_no_default_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kills: an H100 with PCIe, whose peak is lower, taken for one with SXM; a default for unknown cards."""
    monkeypatch.syspath_prepend(str(GPU))
    bench = importlib.import_module("step")
    assert bench.peak_flops("NVIDIA H100 80GB HBM3", None) == bench.peak_flops("NVIDIA H200", None) == 989e12
    assert bench.peak_flops("some GPU", 500.0) == 500e12
    assert bench.peak_flops("cpu", None) is None
    for name in ("NVIDIA H100 PCIe", "some GPU"):
        with pytest.raises(ValueError, match="--peak_tflops"):
            bench.peak_flops(name, None)


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], str]:
    """Rows and tables of the GPU script of the matrix, tiny: experts, and a tied head with grouped queries."""
    folder = tmp_path_factory.mktemp("matrix")
    few = ("--families", "LLaDA-MoE-7B-A1B", "iLLaDA-8B", "--steps", "LLaDA-MoE-7B-A1B", "--peak_tflops", "1")
    done = script(MATRIX, "--tiny", "--device", "cpu", *few, "--output", str(folder))
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "gpu_result.json").read_text())["rows"], (folder / "gpu_table.md").read_text()


@pytest.mark.slow
def test_model_matrix_gpu_measures_every_row(matrix: tuple[list[dict[str, Any]], str]) -> None:
    """Kills: a family whose class or fields have moved; a checkpoint that comes back changed; a row not shown."""
    rows, table = matrix
    assert not [row for row in rows if "failed" in row or "skipped" in row]
    assert [row["experts"] for row in rows if row["part"] == "steps"] == ["grouped_mm", "eager", "batched_mm"]
    loads = [row for row in rows if row["part"] == "load"]
    assert [row["family"] for row in loads] == ["LLaDA-MoE-7B-A1B", "iLLaDA-8B"]
    assert all(row["load_equal"] and row["device_map_equal"] for row in loads)
    assert len([row for row in rows if row["part"] == "experts"]) == 2 * 3 * 3
    assert table.count("| step |") == 3
    assert table.count("| forward |") == 2 + 2  # of families; of the two numbers of tokens


@pytest.mark.slow
def test_model_matrix_counts_the_weights(matrix: tuple[list[dict[str, Any]], str], monkeypatch: Any) -> None:
    """Kills: a tied head counted twice; key heads taken for heads; the experts of one token taken for all of them."""
    monkeypatch.syspath_prepend(str(GPU))
    cost = importlib.import_module("cost")
    for row in matrix[0]:
        if row["part"] == "built":
            shape = cost.Shape(**row["shape"])
            assert row["weights"] == pytest.approx(shape.weights, rel=1e-3)
            assert row["trained"] == shape.adapter_weights


@pytest.mark.slow
def test_model_matrix_checks_find_no_difference(tmp_path: Path) -> None:
    """Kills: logits read at the wrong position; padding that is attended; rows of a call that see each other."""
    few = ("--parts", "checks", "--families", "Dream-7B", "LLaDA-8B", "--output", str(tmp_path))
    done = script(MATRIX, "--tiny", "--device", "cpu", *few)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "gpu_checks.json").read_text())["rows"]
    assert len(rows) == 2 * (2 + 2)
    assert all(row["ok"] for row in rows), rows


def test_model_matrix_has_every_family_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps instead of an epoch. Kills: a command whose fields have moved; a family that the table leaves out."""
    monkeypatch.syspath_prepend(str(MATRIX.parent))
    spec = importlib.util.spec_from_file_location("model_matrix_run", MATRIX.parent / "run.py")  # others are called run
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    assert {family.module for family in bench.FAMILIES.values()} == set(_CLASSES)
    monkeypatch.setattr(bench, "EPOCH", {"per_device_train_batch_size": 4, "max_steps": 2})
    monkeypatch.setattr(bench, "PAIRS", 8)
    monkeypatch.setattr(bench, "HELD_OUT", 8)
    monkeypatch.setattr(bench, "command", lambda *given: assert_done(main(list(given))))
    monkeypatch.setattr(sys, "argv", ["run.py", "--only", "LLaDA-MoE", "--output", str(tmp_path / "new" / "folder")])
    bench.main()
    (row,) = json.loads((tmp_path / "new" / "folder" / "matrix.json").read_text())["rows"]
    assert row["round_trip"]
    assert row["exported"]["names"]
    assert row["exported"]["difference"] < 1e-4
    assert "bit for bit" in (tmp_path / "new" / "folder" / "README.md").read_text()


def assert_done(code: int) -> None:
    assert code == 0
