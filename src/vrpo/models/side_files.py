"""The files beside a model's weights that others wrote: tokenizer, template, generation settings, modelling code.

Where a model is saved they are what they were, byte for byte, for other tools read them too. Modelling code goes along
only where transformers cannot run the model without it, and never with VRPO_COPY_CODE=0 in the environment. What
deliberately does not live here: config.json (official.py), names of tensors, which names are paths (folder.py).
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from transformers import CONFIG_MAPPING, PreTrainedTokenizerBase
from transformers.utils import logging

from vrpo.models.folder import check_folder, content_of, fields_of, inside, modules_of, source_folder
from vrpo.models.tokenizer import check_templates

logger = logging.get_logger(__name__)

_OF_TOKENIZER = (  # patterns below the folder of a model
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "*.model",
    "*.tiktoken",
)
_GENERATION = "generation_config.json"
_WITH_CODE = ("config.json", "tokenizer_config.json")  # what can have an auto_map
_RELATIVE_IMPORT = re.compile(r"^\s*from\s+\.(\w+)\s+import\s", re.MULTILINE)


@dataclass(frozen=True)
class SideFiles:
    """What to write beside a model's weights, in memory: it may be saved into the folder that it came from.

    Args:
        contents: by path below the folder.
        tokenizer: one that is not in the contents, written by its own method; None: there is none.
        without_code: leave no auto_map that names code which is not there.
    """

    contents: dict[str, bytes]
    tokenizer: PreTrainedTokenizerBase | None
    without_code: bool = False

    def write(self, folder: Path) -> None:
        """
        Raises:
            ValueError: a file would be outside of the folder, by its name or by a link that is there.
        """
        if self.tokenizer is not None:
            check_templates(self.tokenizer, str(folder))
            self.tokenizer.save_pretrained(str(folder))
        for name, content in self.contents.items():
            path = inside(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        for name in _WITH_CODE:
            if self.without_code and (folder / name).is_file():
                _drop_absent_code(folder, name)


@dataclass(frozen=True)
class Origin:
    """Where a model was loaded from, with its tokenizer as it was then: later changes of that are to be saved.

    Make it with `origin_of`.
    """

    name_or_path: str
    tokenizer: PreTrainedTokenizerBase | None
    state: tuple[str, ...]

    def side_files(self, tokenizer: PreTrainedTokenizerBase | None, *, of_weights: bool) -> SideFiles:
        """The files of the source; a tokenizer that is not the one that was loaded from there saves itself.

        Args:
            of_weights: also what goes with weights, and not with an adapter: generation settings and modelling code.
        """
        folder = source_folder(self.name_or_path)
        if folder is None:
            logger.warning(
                f"{self.name_or_path}, which the model was loaded from, is gone: its tokenizer is written anew, and "
                f"its {_GENERATION} and modelling code are not copied"
            )
            return SideFiles({}, tokenizer)
        same = tokenizer is self.tokenizer and _state(tokenizer) == self.state
        contents = dict(_matching(folder, _OF_TOKENIZER)) if same else {}
        coded = needs_code(folder)
        if of_weights:
            contents |= dict(_matching(folder, (_GENERATION,)))
        if of_weights and coded:
            contents |= self._code(folder, _WITH_CODE if same else _WITH_CODE[:1])
        return SideFiles(contents, None if same else tokenizer, without_code=not coded)

    def _code(self, folder: Path, files: tuple[str, ...]) -> dict[str, bytes]:
        """Python files that an auto_map names, and those that these import from beside them."""
        waiting = sorted({name for file in files for name in _modules(folder, file, self._is_local)})
        found: dict[str, bytes] = {}
        while waiting:
            name = waiting.pop()
            if name in found or not self._is_here(folder, name):
                continue
            found[name] = content_of(folder, name)
            waiting += [f"{module}.py" for module in _RELATIVE_IMPORT.findall(found[name].decode(errors="replace"))]
        return found

    @property
    def _is_local(self) -> bool:
        return Path(self.name_or_path).is_dir()

    def _is_here(self, folder: Path, name: str) -> bool:
        """Whether the source has a file; one of the hub that is not here yet is fetched, if it can be."""
        if inside(folder, name).is_file() or self._is_local:
            return (folder / name).is_file()
        try:
            hf_hub_download(self.name_or_path, name)
            return (folder / name).is_file()
        except OSError:
            logger.warning(
                f"{name} of {self.name_or_path} is not in the hub's cache and cannot be fetched now: tools that run "
                "the authors' code need it beside the tokenizer"
            )
            return False


def origin_of(name_or_path: str, tokenizer: PreTrainedTokenizerBase | None) -> Origin:
    """The origin of a model that was just loaded with its tokenizer.

    Raises:
        ValueError: it came from the hub, with files that are not fit to be written elsewhere.
    """
    if not Path(name_or_path).is_dir():
        check_folder(name_or_path)
    return Origin(name_or_path, tokenizer, _state(tokenizer))


def needs_code(folder: Path) -> bool:
    """Whether the authors' code belongs to the official layout: transformers does not know the model; and whoever runs
    this lets it be copied."""
    known = fields_of(folder, "config.json").get("model_type") in CONFIG_MAPPING
    return not known and os.environ.get("VRPO_COPY_CODE") != "0"


def by_repository(auto_map: Any, name: str) -> Any:
    """An auto_map of a model of the hub, good beside weights that are saved elsewhere: its code stays where it is."""
    if isinstance(auto_map, dict):
        return {key: by_repository(value, name) for key, value in auto_map.items()}
    if isinstance(auto_map, list):
        return [by_repository(value, name) for value in auto_map]
    return auto_map if auto_map is None or "--" in auto_map else f"{name}--{auto_map}"


def _matching(folder: Path, patterns: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            inside(folder, name)
            yield name, content_of(folder, name)


def _modules(folder: Path, file: str, local: bool) -> list[str]:
    """Python files beside this one that its auto_map names; of a model of the hub, config.json's are named by
    repository when it is saved."""
    if not (folder / file).is_file() or (file == "config.json" and not local):
        return []
    return modules_of(folder, file)


def _drop_absent_code(folder: Path, file: str) -> None:
    """Take names of code that is not there out of an auto_map: AutoTokenizer would ask whether to run it."""
    absent = [name for name in modules_of(folder, file) if not (folder / name).is_file()]
    if not absent:
        return
    fields = fields_of(folder, file)
    named = {key: value for key, value in fields.pop("auto_map").items() if not _is_of(value, absent)}
    text = json.dumps(
        {**fields, **({"auto_map": named} if named else {})}, indent=2, sort_keys=True, ensure_ascii=False
    )
    (folder / file).write_text(text + "\n", encoding="utf-8")


def _is_of(value: Any, modules: list[str]) -> bool:
    named = value if isinstance(value, list) else [value]
    return any(each is not None and f"{each.rpartition('.')[0]}.py" in modules for each in named)


def _state(tokenizer: PreTrainedTokenizerBase | None) -> tuple[str, ...]:
    """What of a tokenizer people change after it was loaded."""
    if tokenizer is None:
        return ()
    added = sorted(tokenizer.get_added_vocab().items())
    return (str(tokenizer.chat_template), str(tokenizer.special_tokens_map), str(added))
