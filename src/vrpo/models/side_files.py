"""The files beside a model's weights that others wrote: tokenizer, template, generation settings, modelling code.

Where a model is saved they are what they were, byte for byte, for other tools read them too. What deliberately does not
live here: config.json (official.py) and names of tensors.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

logger = logging.get_logger(__name__)

_OF_TOKENIZER = (  # patterns below the folder of a model
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.*",
    "additional_chat_templates/*",
    "*.model",
    "*.tiktoken",
)
_GENERATION = "generation_config.json"
_RELATIVE_IMPORT = re.compile(r"^\s*from\s+\.(\w+)\s+import\s", re.MULTILINE)


@dataclass(frozen=True)
class SideFiles:
    """What to write beside a model's weights, in memory: it may be saved into the folder that it came from.

    Args:
        contents: by path below the folder.
        tokenizer: one that is not in the contents, written by its own method; None: there is none.
    """

    contents: dict[str, bytes]
    tokenizer: PreTrainedTokenizerBase | None

    def write(self, folder: Path) -> None:
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(str(folder))
        for name, content in self.contents.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


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
        if of_weights:
            contents |= dict(_matching(folder, (_GENERATION,)))
            contents |= self._code(folder, ("config.json", "tokenizer_config.json") if same else ("config.json",))
        return SideFiles(contents, None if same else tokenizer)

    def _code(self, folder: Path, files: tuple[str, ...]) -> dict[str, bytes]:
        """Python files that an auto_map names, and those that these import from beside them."""
        waiting = sorted({name for file in files for name in _modules(folder / file, self._is_local)})
        found: dict[str, bytes] = {}
        while waiting:
            name = waiting.pop()
            path = self._file(folder, name)
            if name in found or path is None:
                continue
            found[name] = path.read_bytes()
            waiting += [f"{module}.py" for module in _RELATIVE_IMPORT.findall(found[name].decode(errors="replace"))]
        return found

    @property
    def _is_local(self) -> bool:
        return Path(self.name_or_path).is_dir()

    def _file(self, folder: Path, name: str) -> Path | None:
        """A file of the source; one of the hub that is not here yet is fetched, if it can be."""
        if (folder / name).is_file():
            return folder / name
        if self._is_local:
            return None  # nor was it in the source
        try:
            return Path(hf_hub_download(self.name_or_path, name))
        except OSError:
            logger.warning(
                f"{name} of {self.name_or_path} is not in the hub's cache and cannot be fetched now: tools that run "
                "the authors' code need it beside the tokenizer"
            )
            return None


def origin_of(name_or_path: str, tokenizer: PreTrainedTokenizerBase | None) -> Origin:
    """The origin of a model that was just loaded with its tokenizer."""
    return Origin(name_or_path, tokenizer, _state(tokenizer))


def source_folder(name_or_path: str) -> Path | None:
    """A folder, or where the hub's cache has a model; None: neither is there."""
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    try:
        cached = try_to_load_from_cache(name_or_path, "config.json")
    except HFValidationError:  # the path of a folder
        return None
    return Path(cached).parent if isinstance(cached, str) else None


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
            yield path.relative_to(folder).as_posix(), path.read_bytes()


def _modules(file: Path, local: bool) -> Iterator[str]:
    """Python files beside this one that its auto_map names; of a model of the hub, config.json's are named by
    repository when it is saved."""
    if not file.is_file() or (file.name == "config.json" and not local):
        return
    for named in json.loads(file.read_text()).get("auto_map", {}).values():
        for each in named if isinstance(named, list) else [named]:
            if each is not None and "--" not in each:
                yield f"{each.rpartition('.')[0]}.py"


def _state(tokenizer: PreTrainedTokenizerBase | None) -> tuple[str, ...]:
    """What of a tokenizer people change after it was loaded."""
    if tokenizer is None:
        return ()
    added = sorted(tokenizer.get_added_vocab().items())
    return (str(tokenizer.chat_template), str(tokenizer.special_tokens_map), str(added))
