"""The files of a folder with a model or an adapter, which others wrote: looked at before anything is done with them.

Names that stand in files become paths here and nowhere else. What does not live here: what the fields of config.json
mean (official.py), and which files are written beside weights (side_files.py).
"""

import json
import os
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from transformers import GenerationConfig

from vrpo.models.plausible import check_plausible

INDEX = "model.safetensors.index.json"
_FIELDS = (  # JSON objects that are read, here or by transformers and peft
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "diffusion.json",
    "base_model.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "vocab.json",
    INDEX,
)
_COPIED = (  # patterns of what is written again elsewhere as it is, and must be in the folder itself
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "diffusion.json",
    "base_model.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.*",
    "additional_chat_templates",
    "additional_chat_templates/*",
    "*.model",
    "*.tiktoken",
    "*.py",
)
_MODULE = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_PLAIN = re.compile(r"[\w.\- ]+", re.ASCII)
_TYPES = ("F64", "F32", "BF16", "F16")  # of weights, as safetensors names them
_LONGEST = 400  # characters of a tensor's name
_LARGEST = 1 << 28  # bytes of a file that is read as a whole; the largest tokenizer.json have a tenth of it


def inside(folder: Path, name: str) -> Path:
    """The path of a file of the folder, from a name that stands in another file.

    Raises:
        ValueError: it would be elsewhere, by its name or by a link. The hub's cache consists of links, to its blobs.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name:
        raise ValueError(f"{folder}: {name!r}, which one of its files names, is outside of the folder: do not use it")
    try:
        root, path = folder.resolve(), (folder / name).resolve()
    except (OSError, RuntimeError) as error:  # a name too long, a link to itself
        raise ValueError(f"{folder}: {name!r} leads nowhere: {error}. Remove it") from error
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    if not (path.is_relative_to(root) or path.is_relative_to(blobs)):
        raise ValueError(
            f"{folder}/{name} is a link to {path}, outside of the folder: copy the file into the folder, or remove it"
        )
    return path


def content_of(folder: Path, name: str) -> bytes:
    """What a file of the folder holds.

    Raises:
        ValueError: it cannot be read, is no ordinary file, or has no sensible size.
    """
    path = folder / name
    try:
        if not path.is_file():
            raise ValueError(f"{folder}/{name} is no ordinary file: put the model's own file in its place")
        _check_size(path)
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{folder}/{name} cannot be read: {error.strerror}. Look at its permissions") from error


def _check_size(path: Path) -> None:
    size = path.stat().st_size
    if size > _LARGEST:
        raise ValueError(f"{path} has {size:,} bytes, more than any such file of a model: do not use it")


def _check_readable(folder: Path, name: str) -> None:
    path = folder / name
    if not path.is_file() and name != "additional_chat_templates":
        raise ValueError(f"{path} is no ordinary file: put the model's own file in its place, or remove it")
    if not os.access(path, os.R_OK):
        raise ValueError(f"{path} cannot be read: Permission denied. Look at its permissions")
    _check_size(path)


def fields_of(folder: Path, name: str) -> dict[str, Any]:
    """The fields of a JSON file of the folder.

    Raises:
        ValueError: it is none; names the file.
    """
    content = content_of(folder, name)
    try:
        found = json.loads(content.decode("utf-8"))
    except RecursionError as error:
        raise ValueError(f"{folder}/{name} is nested too deeply for a file of a model: do not use it") from error
    except ValueError as error:  # no UTF-8, no JSON, a number of too many digits
        raise ValueError(f"{folder}/{name} is no JSON: {error}. Copy or download the file again") from error
    if not isinstance(found, dict):
        raise ValueError(
            f"{folder}/{name} holds a {type(found).__name__}, no JSON object: copy or download the file again"
        )
    return found


def source_folder(name_or_path: str) -> Path | None:
    """A folder, or where the hub's cache has a model or an adapter; None: neither is there."""
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    for file in ("config.json", "adapter_config.json"):
        try:
            cached = try_to_load_from_cache(name_or_path, file)
        except HFValidationError:  # the path of a folder
            return None
        if isinstance(cached, str):
            return Path(cached).parent
    return None


def check_folder(name_or_path: str) -> None:
    """Look at all files of a model or an adapter that will be read, as far as they are here.

    Weights and config.json may be links to somewhere else, for they are parsed; what would be copied as it is may not.

    Raises:
        ValueError: one is a link out of the folder, cannot be read, is no JSON, names a file elsewhere, or holds no
            weights; names the file.
    """
    folder = source_folder(name_or_path)
    if folder is None:
        return
    there = [
        path.relative_to(folder).as_posix() for path in (*folder.glob("*"), *folder.glob("additional_chat_templates/*"))
    ]
    for name in sorted(there):
        if any(fnmatchcase(name, pattern) for pattern in _COPIED):
            inside(folder, name)
            _check_readable(folder, name)
        if name in _FIELDS:
            _check_names(folder, name, fields_of(folder, name))
    shapes = {name: shape for path in shards_of(folder) for name, shape in shapes_of(path).items()}
    if (folder / "config.json").is_file():
        check_plausible(fields_of(folder, "config.json"), shapes, f"{folder}/config.json")


def check_generation(name_or_path: str) -> None:
    """transformers reads a file that is not used here.

    Raises:
        ValueError: it will refuse it.
    """
    folder, name = source_folder(name_or_path), "generation_config.json"
    if folder is None or not (folder / name).is_file():
        return
    fields = fields_of(folder, name)
    try:
        GenerationConfig.from_dict(fields)
    except (AttributeError, TypeError, ValueError) as error:
        what = " ".join(str(error).split())
        raise ValueError(f"{folder}/{name}: {what}. Remove the field, or copy or download the file again") from error


def modules_of(folder: Path, name: str) -> list[str]:
    """Python files beside a configuration that its auto_map names; code of a repository (`owner/name--module.Class`) is
    not beside it.

    Raises:
        ValueError: a module has no name of one.
    """
    named = fields_of(folder, name).get("auto_map") or {}
    classes = list(named.values()) if isinstance(named, dict) else [named]
    flat = [each for value in classes for each in (value if isinstance(value, list) else [value]) if each is not None]
    for each in flat:
        if not isinstance(each, str) or not _MODULE.fullmatch(each.rpartition("--")[2]):
            raise ValueError(f"{folder}/{name}: auto_map names {each!r}, which is no module beside it: do not use it")
    return sorted({f"{each.rpartition('.')[0]}.py" for each in flat if "--" not in each and "." in each})


def _check_names(folder: Path, file: str, fields: dict[str, Any]) -> None:
    """Refuse names of files in a file that are more than names."""
    modules_of(folder, file)
    for name in _shards(fields) if "weight_map" in fields else ():
        if not str(name).endswith(".safetensors"):
            raise ValueError(f"{folder}/{file} names {name!r}: only weights in safetensors are read, convert them")
    for name in _named(fields):
        if not isinstance(name, str) or not _PLAIN.fullmatch(name) or name.startswith("."):
            raise ValueError(f"{folder}/{file} names {name!r}, which is no file beside it: do not use it")
    kernel = fields.get("attn_implementation"), fields.get("_attn_implementation"), fields.get("experts_implementation")
    if any("/" in str(each) for each in kernel):
        raise ValueError(f"{folder}/{file} names code of the hub, {kernel}, which is never run: remove the field")


def _named(fields: dict[str, Any]) -> Iterator[Any]:
    """What transformers makes a path of: shards, weights, versions of a tokenizer, names of chat templates."""
    yield from _shards(fields) if "weight_map" in fields else []
    yield from fields.get("fast_tokenizer_files") or []
    if fields.get("transformers_weights") is not None:
        yield fields["transformers_weights"]
    templates = fields.get("chat_template")
    if isinstance(templates, list):
        yield from (each.get("name") if isinstance(each, dict) else each for each in templates)


def _shards(fields: dict[str, Any]) -> list[Any]:
    """The file of each tensor, as an index says."""
    named = fields.get("weight_map")
    if not isinstance(named, dict):
        raise ValueError(f"{INDEX}: weight_map is no table of tensors and files: copy or download it again")
    if not named or not isinstance(fields.get("metadata"), dict):
        raise ValueError(f"{INDEX} names no tensors, or has no metadata: copy or download it again")
    return list(named.values())


def shards_of(folder: Path) -> list[Path]:
    """The files with a model's weights that are here.

    Raises:
        ValueError: one that the index names is not; a local folder has all of its files.
    """
    if (folder / INDEX).is_file() and not (folder / "model.safetensors").is_file():
        named = sorted(set(_shards(fields_of(folder, INDEX))))
        missing = [name for name in named if not (folder / name).is_file()]
        if missing and folder.parent.name != "snapshots":  # of the hub: they are fetched
            raise ValueError(f"{folder} lacks {missing[0]}, which {INDEX} names: copy or download it again")
        return [folder / name for name in named if name not in missing]
    return [path for path in (folder / "model.safetensors", folder / "adapter_model.safetensors") if path.is_file()]


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a file, from its header.

    Raises:
        ValueError: it is no whole file of safetensors, or holds what is no weight.
    """
    try:
        with safe_open(str(path), "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(each.get_shape()) for name, each in slices.items()}
            types = {name: each.get_dtype() for name, each in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is no whole safetensors file: {str(error).splitlines()[0]}. Copy or download it again"
        ) from error
    odd = [name for name in shapes if not name.isprintable() or not 0 < len(name) <= _LONGEST]
    if odd:  # transformers prints them
        raise ValueError(f"{path} has a tensor {odd[0][:40]!r}, which is no name of one: do not use it")
    whole = [name for name, kind in types.items() if kind not in _TYPES]
    if whole:  # transformers turns them into numbers without a word
        raise ValueError(
            f"{path}: {whole[0]} is stored as {types[whole[0]]}, and weights as one of {', '.join(_TYPES)}: give the "
            "model before it was quantised, or copy or download the file again"
        )
    return shapes


def parts_of(name_or_path: str, adapter: str | Path | None) -> tuple[str, str | None]:
    """The model, and the adapter to put on it, which may be what the name is of; their files have been looked at.

    Raises:
        ValueError: a file of theirs is not fit to be read (models/folder.py).
    """
    if adapter is None and (Path(name_or_path) / "adapter_config.json").is_file():
        name_or_path, adapter = base_of(name_or_path), name_or_path
    for each in (name_or_path, adapter):
        if each is not None:
            check_folder(str(each))
    return name_or_path, None if adapter is None else str(adapter)


def base_of(adapter: str) -> str:
    """The model that a saved adapter is of.

    Raises:
        ValueError: it does not say, or says something else.
    """
    base = fields_of(Path(adapter), "adapter_config.json").get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise ValueError(
            f"{adapter}/adapter_config.json names no base_model_name_or_path: load the base, pass adapter="
        )
    if (Path(base) / "adapter_config.json").is_file():
        raise ValueError(f"{adapter} is an adapter on {base}, which is one itself: merge that first (vrpo export)")
    return base
