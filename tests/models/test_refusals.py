"""What config.json and tokenizer say about the mask token and about angles, and what is refused of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.loops import each
from tests.models import folders
from vrpo.models.dream import DreamConfig
from vrpo.models.llada import LLaDAConfig
from vrpo.models.llada2 import LLaDA2Config
from vrpo.models.load import load, mask_id_of


def changed(folder: Path, without: str = "", **fields: Any) -> Path:
    """The folder with other fields in its config.json."""
    file = folder / "config.json"
    official = json.loads(file.read_text()) | fields
    official.pop(without, None)
    file.write_text(json.dumps(official))
    return folder


@each("token", ["<|eot_id|>", "<|endoftext|>"])
def test_a_mask_token_that_ends_an_answer_is_refused(tmp_path: Path, token: str) -> None:
    """In config.json or as given, before weights are read. Kills: Ling's tokenizer beside LLaDA-MoE, where every answer
    that nothing is written of has ended already."""
    folder = folders.checkpoint("causal", tmp_path)
    end = folders.tokenizer().convert_tokens_to_ids(token)
    with pytest.raises(ValueError, match=rf"mask token {end}, '<.{token[2:-2]}.>' is what ends"):
        mask_id_of(str(folder), end)
    with pytest.raises(ValueError, match=rf"mask token {end}, "):
        load(changed(folder, mask_token_id=end))


@each("family", ["llada", "dream", "illada", "llada_moe", "causal"])
def test_a_folder_that_does_not_say_its_mask_token_is_told(tmp_path: Path, family: str) -> None:
    """As given, or as its tokenizer says; and saved, since other code would not know it. Kills: a field that is missed
    before it is looked up elsewhere."""
    folder = changed(folders.checkpoint(family, tmp_path / "a"), without="mask_token_id")
    assert load(folder).mask_id == folders.tokenizer().mask_token_id
    told = load(folder, mask_token_id=300)
    assert told.mask_id == 300
    told.save_pretrained(tmp_path / "b")
    assert load(tmp_path / "b").mask_id == 300


def test_the_table_says_the_mask_token_last() -> None:
    """Of Dream's files, whose own code has it as its default; LLaDA's has another one, so there it is written."""
    assert DreamConfig.understood == {"mask_token_id": 151666}
    assert LLaDAConfig.understood == {}


def test_angles_in_a_field_of_their_own_are_not_ignored(golden: Path) -> None:
    """Kills: rope_parameters, as transformers 5 writes them, read as if they were not there."""
    official = json.loads((golden / "dream" / "config.json").read_text())
    plain = {"rope_type": "default", "rope_theta": official["rope_theta"]}
    assert DreamConfig.from_dict({**official, "rope_parameters": plain}).rope_parameters["rope_theta"] == 1e6
    for angles in ({**plain, "rope_theta": 7.0}, {**plain, "rope_type": "yarn", "factor": 4.0}):
        with pytest.raises(ValueError, match="rope_parameters"):
            DreamConfig.from_dict({**official, "rope_parameters": angles})


def test_what_old_transformers_do_differently(golden: Path) -> None:
    """5.10 passes `_commit_hash` along with the file's fields, and its GLM has no output_router_logits. Kills: a field
    in saved files that nobody wrote; a configuration that cannot be written there."""
    official = json.loads((golden / "llada_dense" / "config.json").read_text())
    assert "_commit_hash" not in LLaDAConfig.from_dict({**official, "_commit_hash": None}).write()
    assert "output_router_logits" not in LLaDA2Config.fields
