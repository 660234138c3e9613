"""What an adapter was trained with comes back with it, also where the base's folder does not say it."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from tests.models.folders import checkpoint
from tests.models.test_load import logp
from vrpo.cli import main
from vrpo.fields.parser import parse
from vrpo.models.adapter import with_adapter
from vrpo.models.conventions import FILE
from vrpo.models.hf import HFDenoiser
from vrpo.models.load import load, mask_id_of
from vrpo.training.arguments import ModelArguments

EXPORT = ("export", "--model_name_or_path")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A causal model whose folder says neither mask nor alignment."""
    return checkpoint("causal", tmp_path / "base", mask_token_id=None)


@pytest.fixture
def trained(base: Path) -> HFDenoiser:
    denoiser = load(base, mask_token_id=310, shift_logits=True)
    return with_adapter(denoiser, LoraConfig(r=2, init_lora_weights=False), seed=1)


def test_an_adapter_comes_back_as_it_was_trained(base: Path, trained: HFDenoiser, tmp_path: Path) -> None:
    """Kills: logits of the position read where the adapter learnt the next token's; the tokenizer's mask token."""
    trained.save_pretrained(tmp_path / "adapter")
    for again in (load(tmp_path / "adapter"), load(base, adapter=tmp_path / "adapter")):
        assert (again.mask_id, again.module.config.shift_logits) == (310, True)
        assert torch.equal(logp(again), logp(trained))
    assert mask_id_of(str(tmp_path / "adapter")) == 310
    assert mask_id_of(str(base), adapter=str(tmp_path / "adapter")) == 310
    assert main([*EXPORT, str(tmp_path / "adapter"), "--output_dir", str(tmp_path / "whole")]) == 0
    fields = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert (fields["mask_token_id"], fields["shift_logits"]) == (310, True)
    assert not (tmp_path / "whole" / FILE).exists()
    run = [
        "export",
        "--model_name_or_path",
        str(tmp_path / "adapter"),
        "--adapter_only",
        "--output_dir",
        str(tmp_path / "official"),
    ]
    assert main(run) == 0
    assert torch.equal(logp(load(tmp_path / "official")), logp(trained))


def test_another_value_than_it_was_trained_with_is_refused(base: Path, trained: HFDenoiser, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path / "adapter")
    assert load(tmp_path / "adapter", mask_token_id=310, shift_logits=True).mask_id == 310
    with pytest.raises(ValueError, match=r"shift_logits False: .* was trained with True"):
        load(tmp_path / "adapter", shift_logits=False)
    with pytest.raises(ValueError, match=r"mask_token_id 7: .* was trained with 310"):
        load(base, adapter=tmp_path / "adapter", mask_token_id=7)


def test_an_adapter_of_other_tools_is_what_its_base_says(trained: HFDenoiser, base: Path, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / FILE).unlink()
    again = load(tmp_path / "adapter", mask_token_id=300)
    assert (again.mask_id, again.module.config.shift_logits) == (300, False)


def test_no_such_adapter_is_named(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"adapter .*nowhere: neither a folder"):
        load(base, adapter=tmp_path / "nowhere", mask_token_id=5)


def test_blocks_are_told_once_by_a_command(golden: Path, tmp_path: Path) -> None:
    """Kills: a block diffusion model whose folder does not say its blocks and that only Python can load."""
    run = [*EXPORT, str(golden / "sdar_moe"), "--mask_token_id", "158", "--output_dir"]
    assert main([*run, str(tmp_path / "none")]) == 2
    assert main([*run, str(tmp_path / "whole"), "--block_size", "4"]) == 0
    assert load(tmp_path / "whole").block_size == 4
    (fields,) = parse((ModelArguments,), ["--block_size", "4"], prog="")
    assert fields.loading["block_size"] == 4


@pytest.mark.parametrize(
    ("field", "value"), [("mask_token_id", "seven"), ("mask_token_id", -1), ("shift_logits", 1), ("block_size", 0)]
)
def test_conventions_that_cannot_be_are_refused(trained: HFDenoiser, tmp_path: Path, field: str, value: object) -> None:
    """Kills: whatever stands in the file put in."""
    trained.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(ValueError, match=f"{FILE}: {field} is {value}"):
        load(tmp_path / "adapter")
