"""What others wrote beside the weights is the same bytes where a model is saved."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import CONFIG_MAPPING

from tests.loops import each
from tests.models.folders import AUTO_MAP, CONFIGS, checkpoint, tokenizer
from tests.models.test_load import logp
from tests.training.runs import answers, sft_config
from vrpo.models.adapter import with_adapter
from vrpo.models.load import _ADAPTERS, adapt, load
from vrpo.models.side_files import by_repository
from vrpo.training.sft import SFTTrainer

WORDS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
CODE = ("configuration_tiny.py", "modeling_tiny.py", "parts_tiny.py")
BESIDE = (*WORDS, "generation_config.json")


def is_known(source: dict[str, bytes]) -> bool:
    return json.loads(source["config.json"])["model_type"] in CONFIG_MAPPING


@pytest.fixture(params=sorted(CONFIGS))
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return checkpoint(request.param, tmp_path / "source")


@pytest.fixture
def llada(tmp_path: Path) -> Path:
    return checkpoint("llada", tmp_path / "source")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def assert_same(saved: Path, source: dict[str, bytes], names: tuple[str, ...]) -> None:
    """Code comes with what transformers cannot run by itself."""
    here = contents(saved)
    if names == BESIDE and not is_known(source):
        names += CODE
    assert {name: here[name] for name in names} == {name: source[name] for name in names}


def test_saving_copies_them(source: Path, tmp_path: Path) -> None:
    """In every family, and in shards. Kills: a tokenizer written anew; transformers' generation_config.json; code that
    modelling code imports left behind; code that nothing names taken along."""
    before = contents(source)
    load(source).save_pretrained(tmp_path / "saved", max_shard_size="100KB")
    assert_same(tmp_path / "saved", before, BESIDE)
    assert not (tmp_path / "saved" / "unrelated.py").exists()
    assert len(list((tmp_path / "saved").glob("model-*.safetensors"))) > 1
    index = json.loads((tmp_path / "saved" / "model.safetensors.index.json").read_text())
    assert all((tmp_path / "saved" / shard).is_file() for shard in index["weight_map"].values())
    fields = [json.loads((place / "config.json").read_text()) for place in (source, tmp_path / "saved")]
    added = {}
    if is_known(before):  # for transformers to run it both ways, by its own code
        added, _ = {"is_causal": False}, fields[0].pop("auto_map")
        assert not set(CODE) & contents(tmp_path / "saved").keys()
    assert {**fields[1], "transformers_version": None} == {**fields[0], **added, "transformers_version": None}
    assert torch.equal(logp(load(tmp_path / "saved")), logp(load(source)))
    assert contents(source) == before


def test_saving_into_the_source_folder(source: Path) -> None:
    """Kills: files read after transformers wrote over them; weights read from the file that is being written."""
    before, denoiser = contents(source), load(source)
    expected = logp(denoiser)
    denoiser.save_pretrained(source)
    assert_same(source, before, BESIDE)
    assert torch.equal(logp(load(source)), expected)


def test_training_copies_them(source: Path, tmp_path: Path) -> None:
    """Checkpoints and final model. Kills: files that transformers' Trainer writes by itself."""
    before, config = contents(source), sft_config(tmp_path / "run", max_steps=2, save_strategy="steps", save_steps=1)
    trainer = SFTTrainer(load(source), args=config, train_dataset=answers(4))
    trainer.train()
    trainer.save_model()
    for folder in ("checkpoint-1", "checkpoint-2", "."):
        assert_same(tmp_path / "run" / folder, before, BESIDE)
    assert trainer.processing_class is trainer.denoiser.tokenizer is not None


def test_an_adapter_has_the_tokenizer_only(llada: Path, tmp_path: Path) -> None:
    """From save_pretrained and from a run. Kills: settings and code of a model beside what is none."""
    before = contents(llada)
    denoiser = with_adapter(load(llada), LoraConfig(r=2), seed=1)
    denoiser.save_pretrained(tmp_path / "saved")
    trainer = SFTTrainer(
        load(llada),
        args=sft_config(tmp_path / "run", max_steps=1),
        train_dataset=answers(4),
        peft_config=LoraConfig(r=2),
    )
    trainer.train()
    trainer.save_model()
    for folder in ("saved", "run"):
        assert_same(tmp_path / folder, before, WORDS)
        assert not {"generation_config.json", "modeling_tiny.py"} & contents(tmp_path / folder).keys()
    load(tmp_path / "run").merged().save_pretrained(tmp_path / "merged")
    assert_same(tmp_path / "merged", before, BESIDE)


def test_another_tokenizer_saves_itself(llada: Path, tmp_path: Path) -> None:
    """A tokenizer that was not loaded from there. Kills: the source's files in place of the given one's."""
    before, loaded = contents(llada), load(llada)
    given = tokenizer()
    given.chat_template = "{{ messages[0]['content'] }}"
    adapt(loaded.module, given, loaded.origin).save_pretrained(tmp_path / "saved")
    trainer = SFTTrainer(
        loaded, args=sft_config(tmp_path / "run", max_steps=1), train_dataset=answers(4), processing_class=given
    )
    trainer.train()
    trainer.save_model()
    for folder in ("saved", "run"):
        assert load(tmp_path / folder).tokenizer.chat_template == given.chat_template
        assert contents(tmp_path / folder)["tokenizer.json"] != before["tokenizer.json"]
        assert_same(tmp_path / folder, before, ("generation_config.json", "modeling_tiny.py"))


def test_a_tokenizer_that_was_changed_saves_itself(llada: Path, tmp_path: Path) -> None:
    """Kills: a template that the user has set, lost."""
    loaded = load(llada)
    loaded.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    loaded.save_pretrained(tmp_path / "saved")
    assert load(tmp_path / "saved").tokenizer.chat_template == "{{ messages[0]['content'] }}"


def test_a_source_that_is_gone_is_named(llada: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Kills: a model without a tokenizer, in silence; a crash at the end of a run."""
    loaded = load(llada)
    shutil.rmtree(llada)
    transformers_logger = logging.getLogger("transformers")
    transformers_logger.addHandler(caplog.handler)
    try:
        loaded.save_pretrained(tmp_path / "saved")
    finally:
        transformers_logger.removeHandler(caplog.handler)
    assert any(str(llada) in message and "is gone" in message for message in caplog.messages)
    assert load(tmp_path / "saved").tokenizer.encode("one") == loaded.tokenizer.encode("one")


def test_a_model_made_here_saves_its_own(tmp_path: Path) -> None:
    from vrpo.models.tiny import from_config

    made = from_config(tokenizer(), hidden_size=32, num_layers=1, num_heads=2, intermediate_size=48)
    made.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()


@each("architecture", [each for each in _ADAPTERS if not each.startswith("A2D")])
def test_a_new_configuration_names_no_code(architecture: str) -> None:
    """Kills: AutoTokenizer asking whether to run a repository's code, of a folder that was made here."""
    klass: Any = _ADAPTERS[architecture]
    assert "auto_map" not in klass.config_class.presentation


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A hub cache with one repository, and no network."""
    name, cache = "somebody/tiny", tmp_path / "hub"
    repository = cache / "models--somebody--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    checkpoint("dream", repository / "snapshots" / ("0" * 40))
    words = repository / "snapshots" / ("0" * 40) / "tokenizer_config.json"
    fields = json.loads(words.read_text()) | {"auto_map": {"AutoTokenizer": ["tokenization_tiny.Tiny", None]}}
    words.write_text(json.dumps(fields))
    (words.parent / "tokenization_tiny.py").write_text("# words\n")
    for module in ("huggingface_hub.constants", "transformers.utils.hub"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(cache), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return name


def test_a_model_of_the_hub(hub: str, tmp_path: Path) -> None:
    """Its code is named by repository, as transformers does; what stands beside it comes from the cache. Kills: an
    auto_map that names files which are not there; tokenizer code left behind."""
    snapshot = tmp_path / "hub" / "models--somebody--tiny" / "snapshots" / ("0" * 40)
    load(hub).save_pretrained(tmp_path / "saved")
    assert_same(tmp_path / "saved", contents(snapshot), (*WORDS, "generation_config.json", "tokenization_tiny.py"))
    named = json.loads((tmp_path / "saved" / "config.json").read_text())["auto_map"]
    assert named == {key: f"{hub}--{value}" for key, value in AUTO_MAP.items()}
    assert not (tmp_path / "saved" / "modeling_tiny.py").exists()
    load(tmp_path / "saved").save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["auto_map"] == named


def test_code_that_has_a_repository_keeps_it() -> None:
    assert by_repository({"A": ["m.X", None], "B": "a/b--m.Y"}, "c/d") == {"A": ["c/d--m.X", None], "B": "a/b--m.Y"}
