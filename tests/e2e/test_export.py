"""`vrpo export`: adapter in, official layout out; whole or not at all."""

import json
import platform
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from tests.models.folders import CONFIGS, checkpoint
from tests.models.test_load import logp
from tests.models.test_side_files import BESIDE, assert_same, contents
from vrpo import export as command
from vrpo.cli import main
from vrpo.models.adapter import with_adapter
from vrpo.models.load import load

EXPORT = ("export", "--model_name_or_path")


def adapter_on(base: Path, folder: Path) -> Path:
    config = LoraConfig(r=2, init_lora_weights=False)
    with_adapter(load(base), config, seed=1).save_pretrained(folder)
    return folder


@pytest.fixture(params=sorted(CONFIGS))
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return checkpoint(request.param, tmp_path / "base")


@pytest.fixture
def llada(tmp_path: Path) -> Path:
    return checkpoint("llada", tmp_path / "base")


def test_an_adapter_is_merged(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Official names, the source's files beside them, in shards. Kills: the base without its adapter."""
    adapter, out = adapter_on(base, tmp_path / "adapter"), tmp_path / "out"
    assert main([*EXPORT, str(adapter), "--output_dir", str(out), "--max_shard_size", "100KB"]) == 0
    assert_same(out, contents(base), BESIDE)
    names = {name for shard in out.glob("*.safetensors") for name in load_file(shard)}
    assert names == set(load_file(base / "model.safetensors"))
    assert len(list(out.glob("*.safetensors"))) > 1
    assert torch.equal(logp(load(out)), logp(load(adapter).merged()))
    assert not torch.equal(logp(load(out)), logp(load(base)))
    said = capsys.readouterr().err
    assert "model.safetensors.index.json" in said
    assert f"written: {out}" in said


def test_the_same_with_base_and_adapter(llada: Path, tmp_path: Path) -> None:
    adapter, out = adapter_on(llada, tmp_path / "adapter"), tmp_path / "out"
    assert main([*EXPORT, str(llada), "--adapter", str(adapter), "--output_dir", str(out)]) == 0
    assert torch.equal(logp(load(out)), logp(load(adapter).merged()))
    assert main([*EXPORT, str(adapter), "--adapter", str(adapter), "--output_dir", str(out)]) == 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_weights_are_rounded_once(llada: Path, tmp_path: Path, dtype: str) -> None:
    """Kills: an adapter merged into weights that were rounded before; config.json that says another type."""
    adapter, out = adapter_on(llada, tmp_path / "adapter"), tmp_path / "out"
    assert main([*EXPORT, str(adapter), "--output_dir", str(out), "--dtype", dtype]) == 0
    exact = load(adapter).merged().module.state_dict()
    found = load(out).module
    assert found.dtype == getattr(torch, dtype)
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == dtype
    assert all(torch.equal(tensor, exact[name].to(found.dtype)) for name, tensor in found.state_dict().items())


def test_adapter_only(llada: Path, tmp_path: Path) -> None:
    """Kills: names of ours; an adapter that our loader no longer reads; weights of the base beside it."""
    adapter, out = adapter_on(llada, tmp_path / "adapter"), tmp_path / "out"
    assert main([*EXPORT, str(adapter), "--adapter_only", "--output_dir", str(out)]) == 0
    assert not list(out.glob("model*"))
    assert any("blocks.0.attn_out.lora_A" in name for name in load_file(out / "adapter_model.safetensors"))
    assert torch.equal(logp(load(out)), logp(load(adapter)))
    again = tmp_path / "again"
    assert main([*EXPORT, str(llada), "--adapter_only", "--output_dir", str(again)]) == 2
    assert not again.exists()


def test_a_mask_token_is_written(tmp_path: Path) -> None:
    base = checkpoint("causal", tmp_path / "base", mask_token_id=None)
    fields = ["--mask_token_id", "7", "--shift_logits", "--output_dir", str(tmp_path / "out")]
    assert main([*EXPORT, str(base), *fields]) == 0
    loaded = load(tmp_path / "out")
    assert (loaded.mask_id, loaded.module.config.shift_logits) == (7, True)


def test_what_is_there_is_not_replaced_unasked(llada: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Kills: a folder of somebody's files removed; the source removed; files of an earlier export left."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    arguments = [*EXPORT, str(llada), "--output_dir", str(out)]
    assert main(arguments) == 2
    assert "not empty" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 2
    assert "a model in it only" in capsys.readouterr().err
    assert (out / "notes.txt").read_text() == "mine"
    (out / "config.json").write_text("{}")
    assert main([*arguments, "--overwrite"]) == 0
    assert not (out / "notes.txt").exists()
    assert torch.equal(logp(load(out)), logp(load(llada)))
    assert main([*EXPORT, str(llada), "--output_dir", str(llada), "--overwrite"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"]


def test_a_folder_that_holds_the_source_is_not_replaced(
    llada: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint exported over the run that it is in. Kills: the adapter, its other checkpoints and logs removed."""
    adapter_on(llada, tmp_path / "run")
    adapter_on(llada, tmp_path / "run" / "checkpoint-1")
    run = [
        "export",
        "--model_name_or_path",
        str(tmp_path / "run" / "checkpoint-1"),
        "--output_dir",
        str(tmp_path / "run"),
    ]
    assert main([*run, "--overwrite"]) == 2
    assert "would be replaced with it" in capsys.readouterr().err
    assert (tmp_path / "run" / "checkpoint-1" / "adapter_model.safetensors").exists()


def test_an_export_that_stops_leaves_nothing(llada: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kills: a folder that looks finished; what a killed process left, kept."""
    out = tmp_path / "out"
    killed = tmp_path / f".out.{platform.node()}.999999999.part"
    killed.mkdir()
    (killed / "config.json").write_text("{}")

    def stop(args: object, base: str, adapter: str | None, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_write_model", stop)
    assert main([*EXPORT, str(llada), "--output_dir", str(out)]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_quantised_weights_are_refused(llada: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = json.loads((llada / "config.json").read_text()) | {"quantization_config": {"load_in_4bit": True}}
    (llada / "config.json").write_text(json.dumps(fields))
    assert main([*EXPORT, str(llada), "--output_dir", str(tmp_path / "out")]) == 2
    assert "is quantised" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_quantised_weights_are_not_read_as_others(
    llada: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kills: a quantised folder taken for a plain one, or transformers' report of shapes."""
    fields = json.loads((llada / "config.json").read_text()) | {"quantization_config": {"quant_method": "fp8"}}
    (llada / "config.json").write_text(json.dumps(fields))
    assert main(["generate", "--model_name_or_path", str(llada), "--prompt", "one", "--device", "cpu"]) == 2
    assert "quantization_config" in capsys.readouterr().err


def test_a_device_and_a_map_of_devices_exclude_each_other(
    llada: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kills: a --device that is not where the model is."""
    where = ["--device", "cpu", "--device_map", "auto"]
    assert main(["generate", "--model_name_or_path", str(llada), "--prompt", "one", *where]) == 2
    assert "exclude each other" in capsys.readouterr().err
    asked = ["--models", str(llada), "--tasks", "gsm8k", "--output_dir", str(tmp_path / "out")]
    assert main(["eval", *asked, *where]) == 2
    assert "exclude each other" in capsys.readouterr().err
