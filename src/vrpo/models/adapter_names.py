"""Adapters under the official module names: written for other people's tools, and read where they wrote them.

peft names what an adapter is on by the modules of the model it was trained with, which here are transformers'. The
official code of some models calls them otherwise (LLaDA: `attn_out` for `self_attn.o_proj`). The names are converted
by the table that the weights are renamed by (`register_checkpoint_conversion_mapping`), there is no second one.
"""

import copy
import math
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from peft import LoraConfig, PeftConfig, PeftModel, PeftType
from peft.utils import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file
from torch import Tensor
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming

from vrpo.models.base_model import FILE as BASE
from vrpo.models.conventions import FILE as CONVENTIONS
from vrpo.models.limits import check_patterns

State = Mapping[str, Tensor]
Rename = Callable[[str], str]

_LARGEST_RANK = 1 << 16
_PREFIX = "base_model.model."  # peft's, before every name
_NOT_CONVERTED = ("target_parameters", "trainable_token_indices", "layer_replication", "megatron_config")


def official_name(architecture: type, name: str) -> str:
    """The official name of a tensor or module that our class calls `name`."""
    return _renamed([each.reverse_transform() for each in reversed(_renamings(architecture))], name)


def own_name(architecture: type, name: str) -> str:
    """Our class's name of a tensor or module, from the official one; ours stay as they are."""
    return _renamed(_renamings(architecture), name)


def _renamings(architecture: type) -> list[WeightRenaming]:
    """What is renamed one to one; tensors that are also put together (experts) are no modules of an adapter."""
    known = get_checkpoint_conversion_mapping(architecture.__name__) or []
    return [each for each in known if type(each) is WeightRenaming]


def _is_part(architecture: type, module: str) -> bool:
    """Whether the module's weight is officially stored in one with others': queries, keys and values of LLaDA2."""
    known = get_checkpoint_conversion_mapping(architecture.__name__) or []
    patterns = [pattern for each in known if type(each) is WeightConverter for pattern in each.target_patterns]
    return any(re.search(pattern, f"{module}.weight") for pattern in patterns)


def _renamed(renamings: list[Any], name: str) -> str:
    """A module's name ends where the patterns want a point."""
    found = f"{name}."
    for each in renamings:
        found = each.rename_source_key(found)[0]
    return str(found).removesuffix(".")


def export_adapter(adapter: str, architecture: type, folder: Path) -> None:
    """Write an adapter of ours under the official names, in peft's two files.

    Raises:
        ValueError: it is no LoRA, or on something that the official model has no module for.
    """
    saved = load_peft_weights(adapter, device="cpu")
    parts = sorted({module for module in map(_module_of, saved) if _is_part(architecture, module)})
    if parts:
        raise ValueError(
            f"{adapter} is on {', '.join(parts[:3])}, ... which are officially parts of one module: merge it "
            "(vrpo export without --adapter_only)"
        )
    config, state = converted(
        PeftConfig.from_pretrained(adapter), saved, lambda name: official_name(architecture, name)
    )
    config.auto_mapping = None  # names our class
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    for name in (CONVENTIONS, BASE):
        if (Path(adapter) / name).is_file():
            (folder / name).write_bytes((Path(adapter) / name).read_bytes())
    save_file(dict(state), str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})


def check_adapter(adapter: str) -> None:
    """Look at what an adapter says of itself, before its model is loaded.

    Raises:
        ValueError: there is none, its weights are pickled, or it is of a kind that is not put on modules here.
    """
    try:
        config: Any = PeftConfig.from_pretrained(adapter)
    except Exception as error:  # whatever peft runs into with a file that others wrote
        why = " ".join(str(error).split())
        raise ValueError(
            f"adapter {adapter}: neither a folder with an adapter_config.json that peft reads nor one that the hub "
            f"gave: {why}"
        ) from error
    if config.peft_type is None or config.is_prompt_learning or config.peft_type == PeftType.XLORA:
        raise ValueError(f"adapter {adapter} is of the kind {config.peft_type}, which is not put on modules: merge it")
    if getattr(config, "megatron_config", None):
        raise ValueError(f"adapter {adapter} names code to import (megatron_core): remove megatron_config")
    if Path(adapter).is_dir() and not (Path(adapter) / "adapter_model.safetensors").is_file():
        raise ValueError(f"adapter {adapter} lacks adapter_model.safetensors (pickled ones, .bin, are not read)")
    if isinstance(config, LoraConfig):
        _check_fields(config, f"adapter {adapter}: adapter_config.json")


def _check_fields(config: LoraConfig, place: str) -> None:
    """
    Raises:
        ValueError: a field is of another type than peft's, a rank is none, or a scale would switch the adapter off.
    """
    for field, hint in get_type_hints(LoraConfig).items():
        if hint is bool and type(value := getattr(config, field)) is not bool:
            raise ValueError(f"{place}: {field} is {value!r}, and takes true or false")
    for field in ("rank_pattern", "alpha_pattern"):
        if not isinstance(value := getattr(config, field), dict | None):
            raise ValueError(f"{place}: {field} is {value!r}, and takes names of modules with a number each")
    ranks = [config.r, *(config.rank_pattern or {}).values()]
    if any(type(rank) is not int or not 1 <= rank <= _LARGEST_RANK for rank in ranks):
        raise ValueError(f"{place}: r or rank_pattern is no rank: {ranks[:5]}")
    scales = [config.lora_alpha, *(config.alpha_pattern or {}).values()]
    if any(type(scale) not in (int, float) or not 0 < abs(scale) < math.inf for scale in scales):
        raise ValueError(f"{place}: lora_alpha or alpha_pattern is no scale: {scales[:5]}. Give numbers other than 0")


def _patterns(config: Any) -> list[str]:
    """What peft looks for in names of modules as regular expressions."""
    found = [*(getattr(config, "rank_pattern", None) or {}), *(getattr(config, "alpha_pattern", None) or {})]
    for field in ("target_modules", "exclude_modules", "layers_pattern"):
        given = getattr(config, field, None) or []
        found += [given] if isinstance(given, str) else given if field == "layers_pattern" else []
    return [each for each in found if isinstance(each, str)]


def with_saved_adapter(module: Any, adapter: str) -> PeftModel:
    """The module with a saved adapter on it, its parameters frozen, whichever names it was saved under.

    Raises:
        ValueError: it is an adapter of another model.
    """
    state = load_peft_weights(adapter, device="cpu")
    names = [name for name, _ in module.named_modules()]
    check_patterns(_patterns(PeftConfig.from_pretrained(adapter)), names, f"{adapter}/adapter_config.json")
    try:
        wrapped, unplaced = _wrapped(module, adapter, state)
    except Exception as error:  # whatever peft runs into with a file of others
        raise ValueError(f"{adapter} is no adapter of this model: {' '.join(str(error).split())}") from error
    if unplaced:
        raise ValueError(f"{adapter} is no adapter of this model, which has no place for {unplaced[:5]}")
    return wrapped


def _wrapped(module: Any, adapter: str, state: State) -> tuple[PeftModel, list[str]]:
    """The module with the adapter, and what of the one was not found in the other."""
    architecture = type(module)
    if all(_under_prefix(name, lambda path: own_name(architecture, path)) == name for name in state):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys")
            wrapped = PeftModel.from_pretrained(module, adapter)
        placed = get_peft_model_state_dict(wrapped, save_embedding_layers=False)  # peft leaves out the rest silently
        return wrapped, [name for name in state if ".lora_" in name and name not in placed]
    given = PeftConfig.from_pretrained(adapter)
    config, renamed = converted(given, state, lambda name: own_name(architecture, name))
    config.inference_mode = True
    wrapped = PeftModel(module, config)
    missed: Any = set_peft_model_state_dict(wrapped, dict(renamed))
    return wrapped, [*(name for name in missed.missing_keys if "lora_" in name), *missed.unexpected_keys]


def converted(config: PeftConfig, state: State, rename: Rename) -> tuple[LoraConfig, State]:
    """An adapter under other names: every module that it is on is named in full, for `ff_out`, LLaDA's down projection,
    is also what its head is called.

    Raises:
        ValueError: it is no LoRA, or has something that is no module's.
    """
    if not isinstance(config, LoraConfig):
        raise ValueError(f"only LoRA adapters are converted to other module names, not {config.peft_type}")
    given = [field for field in _NOT_CONVERTED if getattr(config, field, None)]
    if given:
        raise ValueError(f"adapter_config.json: {', '.join(given)} names no modules that have another name: merge it")
    renamed = {_under_prefix(name, rename): tensor for name, tensor in state.items()}
    modules = sorted({_module_of(name) for name in state if ".lora_" in name})
    whole = sorted({_module_of(name) for name in state if ".lora_" not in name})
    found: Any = copy.deepcopy(config)
    found.target_modules = {rename(module) for module in modules}
    found.modules_to_save = [rename(module) for module in whole] or None
    found.layers_to_transform = found.layers_pattern = found.exclude_modules = None
    found.rank_pattern = _by_module(config.rank_pattern or {}, modules, rename)
    found.alpha_pattern = _by_module(config.alpha_pattern or {}, modules, rename)
    return found, renamed


def _under_prefix(name: str, rename: Rename) -> str:
    """A tensor of an adapter: the name of its module is renamed, what peft wrote behind it stays."""
    path = name.removeprefix(_PREFIX)
    module = _module_of(name)
    return name[: len(name) - len(path)] + rename(module) + path[len(module) :]


def _module_of(name: str) -> str:
    """The module that a tensor of an adapter is of: layers.0.q_proj of layers.0.q_proj.lora_A.weight."""
    path = name.removeprefix(_PREFIX)
    return path.partition(".lora_")[0] if ".lora_" in path else path.rpartition(".")[0]


def _by_module(pattern: Mapping[str, Any], modules: list[str], rename: Rename) -> dict[str, Any]:
    """Ranks, or scales, that differ: by what of the pattern matches each module, as peft looks it up."""
    keys = list(pattern)
    matched = {module: get_pattern_key(keys, module) for module in modules} if keys else {}
    return {rename(module): pattern[key] for module, key in matched.items() if key in pattern}
