"""Folders that somebody else wrote: nothing of theirs is read or written elsewhere, and what is broken is named."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from tests.loops import each
from tests.models.folders import checkpoint
from vrpo.cli import main
from vrpo.models import limits
from vrpo.models.adapter import with_adapter
from vrpo.models.folder import INDEX, inside
from vrpo.models.load import load
from vrpo.models.side_files import SideFiles
from vrpo.models.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint("llada", tmp_path_factory.mktemp("made") / "model")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A model beside a file that is none of its business."""
    (tmp_path / "secret.json").write_text('{"token": "hf_1"}')
    (tmp_path / "yaml.py").write_text("# hostile\n")
    return Path(shutil.copytree(made, tmp_path / "model"))


def said(folder: Path, file: str, **fields: Any) -> None:
    path = folder / file
    now = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(now | fields))


def linked(name: str, target: str) -> Callable[[Path], None]:
    def link(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(target)

    return link


def mapped(file: str, value: Any) -> Callable[[Path], None]:
    return lambda folder: said(folder, file, auto_map=value)


def indexed(name: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder.parent / "away.safetensors")
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": name}))

    return write


def tensor(name: str) -> Callable[[Path], None]:
    return lambda folder: save_file({name: torch.zeros(1)}, folder / "model.safetensors")


def huge(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            file.truncate(1 << 33)

    return write


def template_folder(folder: Path) -> None:
    (folder.parent / "others").mkdir()
    (folder.parent / "others" / "x.jinja").write_text("secret")
    (folder / "additional_chat_templates").symlink_to("../others")


HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "auto_map upwards": (mapped("config.json", {"AutoConfig": "../yaml.Config"}), r"config.json.*'../yaml.Config'"),
    "auto_map absolute": (mapped("config.json", {"AutoModel": "/tmp/x.Config"}), r"config.json.*'/tmp/x.Config'"),
    "auto_map of dots": (mapped("config.json", {"AutoModel": "..yaml.Config"}), r"config.json.*'..yaml.Config'"),
    "auto_map in a list": (
        mapped("tokenizer_config.json", {"AutoTokenizer": [None, "a/../../yaml.T"]}),
        r"tokenizer_config.json.*'a/../../yaml.T'",
    ),
    "auto_map of a repository": (mapped("config.json", {"AutoConfig": "x/y--../yaml.Config"}), "no module"),
    "auto_map of a backslash": (mapped("config.json", {"AutoConfig": "..\\yaml.Config"}), "no module"),
    "auto_map of a newline": (mapped("config.json", {"AutoConfig": "yaml\n.Config"}), "no module"),
    "auto_map of a number": (mapped("config.json", {"AutoConfig": 7}), "no module"),
    "auto_map a string": (mapped("config.json", "../yaml.Config"), "no module"),
    "a template that is a link": (linked("chat_template.jinja", "/etc/passwd"), "chat_template.jinja is a link"),
    "a backup that is a link": (linked("chat_template.bak", "/etc/passwd"), "chat_template.bak is a link"),
    "a relative link": (linked("special_tokens_map.json", "../secret.json"), "special_tokens_map.json is a link"),
    "generation_config.json a link": (linked("generation_config.json", "../secret.json"), "is a link"),
    "code that is a link": (linked("parts_tiny.py", "../yaml.py"), "parts_tiny.py is a link"),
    "weights that are a device": (linked("model.safetensors", "/dev/zero"), "no weights in safetensors"),
    "config.json a device": (linked("config.json", "/dev/zero"), "config.json is no ordinary file"),
    "a link to itself": (linked("merges.txt", "merges.txt"), "merges.txt"),
    "a further template": (linked("additional_chat_templates/x.jinja", "/etc/passwd"), "x.jinja is a link"),
    "further templates": (template_folder, "additional_chat_templates"),
    "a template's name": (
        lambda folder: said(folder, "tokenizer_config.json", chat_template=[{"name": "../../x", "template": "x"}]),
        r"tokenizer_config.json names '../../x'",
    ),
    "shards upwards": (indexed({"a": "../away.safetensors"}), r"names '../away.safetensors'"),
    "shards of no table": (indexed(["../away.safetensors"]), "weight_map is no table"),
    "shards that are pickled": (indexed({"a": "model.bin"}), "only weights in safetensors are read"),
    "an empty index": (indexed({}), "names no tensors"),
    "an index without metadata": (
        lambda folder: (
            indexed({"a": "x.safetensors"})(folder),
            (folder / INDEX).write_text('{"weight_map": {"a": 1}}'),
        ),
        "only weights in safetensors|has no metadata",
    ),
    "a tensor that commands a terminal": (tensor("\x1b[2Jwte"), r"has a tensor '\\x1b\[2Jwte'"),
    "a tensor with a long name": (tensor("a" * 500), "which is no name of one"),
    "a huge tokenizer": (huge("tokenizer.json"), "tokenizer.json has 8,589,934,592 bytes"),
    "a huge template": (huge("chat_template.jinja"), "chat_template.jinja has 8,589,934,592 bytes"),
    "a number of many digits": (
        lambda folder: (folder / "config.json").write_text('{"a": ' + "9" * 5000 + "}"),
        "config.json is no JSON",
    ),
    "padding beyond the embedding": (
        lambda folder: said(folder, "config.json", pad_token_id=10**6),
        "config.json: pad_token_id is '1000000' and must be below",
    ),
    "generation settings of another kind": (
        lambda folder: said(folder, "generation_config.json", max_new_tokens="x"),
        r"generation_config.json: .*Remove the field",
    ),
    "generation settings nobody knows": (
        lambda folder: said(folder, "generation_config.json", cache_implementation="x"),
        r"generation_config.json: Invalid `cache_implementation`",
    ),
    "a shard that is not there": (indexed({"a": "model-1-of-1.safetensors"}), "lacks model-1-of-1.safetensors"),
    "weights upwards": (
        lambda folder: said(folder, "config.json", transformers_weights="../away.safetensors"),
        r"names '../away.safetensors'",
    ),
    "tokenizers upwards": (
        lambda folder: said(folder, "tokenizer_config.json", fast_tokenizer_files=["../tokenizer.9.json"]),
        r"names '../tokenizer.9.json'",
    ),
    "a kernel of the hub": (
        lambda folder: said(folder, "config.json", attn_implementation="somebody/kernel"),
        "names code of the hub",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_leaves_a_folder_is_refused(folder: Path, what: str) -> None:
    """At loading, so that no run ends with it. Kills: files of others written beside the output and run later; files
    of the user copied into what is published."""
    hostile, message = HOSTILE[what]
    hostile(folder)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_a_hostile_checkpoint_writes_nothing_elsewhere(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published attack, from the command line: ./yaml.py is what the next `python -m vrpo` would import."""
    said(folder, "config.json", auto_map={"AutoConfig": "../yaml.Config"})
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert main(["export", "--model_name_or_path", str(folder), "--output_dir", "out"]) == 2
    assert "'../yaml.Config'" in capsys.readouterr().err
    assert not list((tmp_path / "work").iterdir())


@each("name", ["../x", "/x", "a/../../x", "a\\..\\x", "link", "deep/x"])
def test_names_are_resolved_where_files_are_written_too(tmp_path: Path, name: str) -> None:
    """Links that stand in the output count as much. Kills: a check at reading alone."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link").symlink_to("../elsewhere")
    (tmp_path / "out" / "deep").symlink_to("..")
    with pytest.raises(ValueError, match="outside of the folder"):
        SideFiles({name: b"x"}, None).write(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_the_hubs_cache_consists_of_links(folder: Path, tmp_path: Path) -> None:
    """To its own blobs, and nowhere else; also where a snapshot is named as a folder. Kills: every model of the hub
    refused."""
    repository = tmp_path / "models--a--b"
    snapshot = Path(shutil.copytree(folder, repository / "snapshots" / "1234"))
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(repository / "blobs" / str(number))
        path.symlink_to(os.path.join("..", "..", "blobs", str(number)))
    load(snapshot).save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    (snapshot / "merges.txt").symlink_to("../../../secret.json")
    with pytest.raises(ValueError, match="is a link"):
        load(snapshot)


def test_a_link_within_a_folder_is_none_out_of_it(folder: Path, tmp_path: Path) -> None:
    """Nor is one to weights and config.json, which are parsed. Kills: a folder of links to large files refused."""
    for name in ("config.json", "model.safetensors"):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
    (folder / "tokenizer.json").rename(folder / "words")
    (folder / "tokenizer.json").symlink_to("words")
    (tmp_path / "alias").symlink_to("model")
    load(tmp_path / "alias").save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "tokenizer.json").is_symlink()
    assert inside(tmp_path / "alias", "tokenizer.json") == folder / "words"


def test_code_is_left_behind_where_it_is_not_wanted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With VRPO_COPY_CODE=0 nothing is copied, and no file says that there is code. Kills: an auto_map of nothing."""
    said(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["parts_tiny.T", None]})
    load(folder).save_pretrained(tmp_path / "with")
    monkeypatch.setenv("VRPO_COPY_CODE", "0")
    load(folder).save_pretrained(tmp_path / "without")
    assert {path.name for path in (tmp_path / "with").glob("*.py")} == {
        "configuration_tiny.py",
        "modeling_tiny.py",
        "parts_tiny.py",
    }
    assert not list((tmp_path / "without").glob("*.py"))
    for file in ("config.json", "tokenizer_config.json"):
        assert "auto_map" in json.loads((tmp_path / "with" / file).read_text())
        assert "auto_map" not in json.loads((tmp_path / "without" / file).read_text())
    load(tmp_path / "without")


NUMBERS: dict[str, tuple[dict[str, Any], str]] = {
    "no layer": ({"n_layers": 0}, "n_layers is '0'"),
    "fewer than none": ({"n_layers": -1}, "n_layers is '-1'"),
    "text": ({"n_layers": "2"}, "n_layers is '2' and must be a whole number"),
    "a fraction": ({"d_model": 2.5}, "d_model is '2.5'"),
    "no number": ({"n_heads": True}, "n_heads is 'True'"),
    "more layers than tensors": ({"n_layers": 10**9}, "n_layers is '1000000000' and does not fit the weights"),
    "wider than the tensors": ({"mlp_hidden_size": 10**30}, "mlp_hidden_size .* does not fit the weights"),
    "too many heads": ({"n_heads": 3}, "3 attention heads do not divide a width of 64"),
    "too many groups": ({"n_kv_heads": 3}, "3 heads of keys do not divide 4"),
    "other widths": ({"mlp_hidden_size": 64}, "mismatched keys: .*mlp"),
    "another vocabulary": ({"embedding_size": 100}, "mismatched keys"),
    "another number of layers": ({"n_layers": 1}, "n_layers = 2, and config.json says 1"),
    "no number at all": ({"rms_norm_eps": float("nan")}, "rms_norm_eps is 'nan'"),
    "no angle": ({"rope_theta": 0}, "rope_theta is '0'"),
    "no token": ({"eos_token_id": "x"}, "eos_token_id is 'x'"),
    "no mask token": ({"mask_token_id": [1]}, "mask_token_id is \\[1\\]"),
    "no type": ({"torch_dtype": "load"}, "torch_dtype is 'load' and must be one of"),
    "no name": ({"architectures": -5}, "architectures is '-5'"),
}


@pytest.mark.parametrize("kind", [torch.int64, torch.int8, torch.bool])
def test_what_is_no_weight_is_named(folder: Path, kind: torch.dtype) -> None:
    """Kills: whole numbers that are turned into weights without a word."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = next(iter(weights))
    save_file({**weights, name: torch.ones_like(weights[name]).to(kind)}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"model.safetensors: {re.escape(name)} is stored as"):
        load(folder)


@pytest.mark.parametrize("what", NUMBERS)
def test_numbers_that_cannot_be_are_refused_in_a_line(folder: Path, what: str) -> None:
    """Before a model is built. Kills: a traceback; hours spent on a billion of layers."""
    fields, message = NUMBERS[what]
    said(folder, "config.json", **fields)
    with pytest.raises(ValueError, match=message) as raised:
        load(folder)
    assert "\n" not in str(raised.value)
    assert "config.json" in str(raised.value)


HEADER = b'{"a":{"dtype":"F32","shape":[10,10],"data_offsets":[0,4]}}'
CONTENTS = {
    "half": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: b"",
    "garbage": lambda whole: bytes(range(256)),
    "deep": lambda whole: b"[" * 100_000 + b"]" * 100_000,
    "a list": lambda whole: b"[1]",
    "a lie": lambda whole: len(HEADER).to_bytes(8, "little") + HEADER + b"0000",
}
FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors")


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("file", FILES)
def test_broken_files_are_named(folder: Path, file: str, content: str) -> None:
    """Kills: SafetensorError, RecursionError, whatever a tokenizer raises."""
    (folder / file).write_bytes(CONTENTS[content]((folder / file).read_bytes()))
    with pytest.raises(ValueError, match=file) as raised:
        load(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("file", [*FILES[:4], "merges.txt"])
@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_named(folder: Path, file: str, kind: str) -> None:
    (folder / file).unlink(missing_ok=True)
    (os.mkdir if kind == "folder" else os.mkfifo)(folder / file)
    with pytest.raises(ValueError, match=f"{file} is no ordinary file"):
        load(folder)


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ messages | unknown }}", "TemplateAssertionError"),
        ("{{ ().__class__.__base__ }}", "SecurityError"),
        ("{% for i in range(10**9) %}{% endfor %}", "OverflowError"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(folder: Path, template: str, fault: str) -> None:
    """Kills: a traceback where the template is first used."""
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match=rf"its chat template cannot be used \({fault}: .*give another"):
        load_tokenizer(folder)


def test_a_template_that_does_not_end_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_SECONDS", 1)
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(loop)
    with pytest.raises(ValueError, match="its chat template takes more than 1 s"):
        load(folder)


@pytest.fixture(scope="module")
def trained(made: Path) -> Path:
    """An adapter on the model."""
    with_adapter(load(made), LoraConfig(r=2, init_lora_weights=False), 1).save_pretrained(made.parent / "adapter")
    return made.parent / "adapter"


ADAPTERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "half a config": (
        lambda folder: (folder / "adapter_config.json").write_text("{"),
        "adapter_config.json is no JSON",
    ),
    "no kind": (lambda folder: said(folder, "adapter_config.json", peft_type="X"), "adapter_config.json that peft"),
    "a prompt": (
        lambda folder: said(folder, "adapter_config.json", peft_type="PROMPT_TUNING", num_virtual_tokens=2),
        "not put on modules",
    ),
    "code": (lambda folder: said(folder, "adapter_config.json", megatron_config={"a": 1}), "names code to import"),
    "a rank": (lambda folder: said(folder, "adapter_config.json", r=10**12), "is no rank"),
    "another rank": (lambda folder: said(folder, "adapter_config.json", r=3), "no adapter of this model"),
    "no pattern": (lambda folder: said(folder, "adapter_config.json", target_modules="(("), "no adapter of this model"),
    "a pattern for ever": (
        lambda folder: said(folder, "adapter_config.json", rank_pattern={"((.*)*)*x": 2}),
        "patterns of modules take more than 1 s",
    ),
    "half the weights": (
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"\x10"),
        "adapter_model.safetensors is no whole safetensors file",
    ),
    "pickles": (
        lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin"),
        "lacks adapter_model.safetensors",
    ),
    "no conventions": (lambda folder: (folder / "diffusion.json").write_text('{"x": 1}'), "diffusion.json"),
    "a base that is an adapter": (
        lambda folder: said(folder, "adapter_config.json", base_model_name_or_path=str(folder)),
        "which is one itself",
    ),
}


@pytest.mark.parametrize("what", ADAPTERS)
def test_broken_adapters_are_named(trained: Path, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_SECONDS", 1)
    folder = Path(shutil.copytree(trained, tmp_path / "adapter"))
    broken, message = ADAPTERS[what]
    broken(folder)
    with pytest.raises(ValueError, match=message) as raised:
        load(folder)
    assert "\n" not in str(raised.value)
