"""An adapter goes on the model that it was trained on, whichever way that was stored, and on no other."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from tests.models.folders import tokenizer
from vrpo.models.adapter import with_adapter
from vrpo.models.base_model import FILE
from vrpo.models.load import load
from vrpo.models.tiny import from_config, train_tokenizer

SIZES = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "intermediate_size": 48}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter on it, and models of the same shapes."""
    place = tmp_path_factory.mktemp("bases")
    from_config(tokenizer(), **SIZES).save_pretrained(place / "base")
    words = train_tokenizer(["other words than those"] * 3, 320)
    from_config(words, **SIZES).save_pretrained(place / "vocabulary")
    from_config(tokenizer(), **SIZES, seed=1).save_pretrained(place / "weights")
    from_config(tokenizer(), **SIZES, architecture="LlamaForCausalLM", seed=0).save_pretrained(place / "architecture")
    moved = load(place / "base")
    moved.module.model.layers[0].mlp.up_proj.weight.data[5] *= 1.1
    moved.save_pretrained(place / "one row")
    with_adapter(load(place / "base"), LoraConfig(r=2, init_lora_weights=False), 1).save_pretrained(place / "adapter")
    return place


@pytest.mark.parametrize("other", ["weights", "one row", "architecture", "vocabulary"])
def test_an_adapter_of_another_model_is_refused(folders: Path, other: str) -> None:
    """Same shapes, same names of modules. Kills: nonsense without a word."""
    what = {"vocabulary": "with another vocabulary", "architecture": "as another"}.get(other, "on other weights")
    with pytest.raises(ValueError, match=f"adapter is no adapter of this model: it was trained {what}"):
        load(folders / other, adapter=folders / "adapter")


def test_a_base_that_changed_is_refused(folders: Path, tmp_path: Path) -> None:
    """The folder that the adapter names, trained again in place."""
    shutil.copytree(folders / "weights", tmp_path / "base")
    shutil.copytree(folders / "adapter", tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "base")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="on other weights"):
        load(tmp_path / "adapter")


def test_the_same_model_in_another_form_is_the_same(folders: Path, tmp_path: Path) -> None:
    """In another type, in shards, elsewhere; and what is loaded says the same again. Kills: a base refused for where it
    is, or how it is stored."""
    stored = load(folders / "base", dtype=torch.bfloat16)
    stored.save_pretrained(tmp_path / "elsewhere", max_shard_size="10KB")
    load(folders / "base", adapter=folders / "adapter", dtype=torch.float64)
    again = load(tmp_path / "elsewhere", adapter=folders / "adapter")
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / FILE).read_bytes() == (folders / "adapter" / FILE).read_bytes()


def test_of_other_tools_the_vocabulary_is_compared(folders: Path, tmp_path: Path) -> None:
    foreign = Path(shutil.copytree(folders / "adapter", tmp_path / "foreign"))
    (foreign / FILE).unlink()
    load(folders / "weights", adapter=foreign)  # it does not say
    with pytest.raises(ValueError, match="with another vocabulary"):
        load(folders / "vocabulary", adapter=foreign)
