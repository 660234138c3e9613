"""The models of `vrpo eval`: how they are named, which files they are, and that one of them is loaded at a time."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftConfig

from vrpo.models.fingerprint import files_fingerprint
from vrpo.models.hf import HFDenoiser
from vrpo.models.load import base_of, load, longest_of


@dataclass(frozen=True)
class NamedModel:
    """A checkpoint, with or without an adapter, under the name that tables call it by."""

    name: str
    path: str
    adapter: str | None

    @property
    def about(self) -> dict[str, Any]:
        """What kept answers depend on: not where the files are, but what is in them."""
        prints = {"weights": files_fingerprint(self.path), "adapter": files_fingerprint(self.adapter)}
        if (Path(self.path) / "adapter_config.json").is_file():  # an adapter by itself, which names its base
            prints["base"] = files_fingerprint(base_of(self.path))
        return {"model": self.name, **prints}

    def longest(self, mask_token_id: int | None) -> int:
        """Positions that it was made for. Looks at configurations only.

        Raises:
            ValueError: there is no such model, or no such adapter.
        """
        if self.adapter is not None:
            try:
                PeftConfig.from_pretrained(self.adapter)
            except (ValueError, OSError) as error:
                raise ValueError(f"--models {self.name}: no adapter at {self.adapter}: {error}") from error
        return longest_of(self.path, mask_token_id, self.adapter)


def named(text: str) -> NamedModel:
    """name=path or name=path:adapter; just a path is named by its last part.

    Raises:
        ValueError: the name or the path is empty.
    """
    name, separator, path = text.partition("=")
    if not separator:
        name, path = Path(text.partition(":")[0]).name, text
    base, _, adapter = (
        (path, "", "") if Path(path).exists() else path.rpartition(":") if ":" in path else (path, "", "")
    )
    if not name or not base or set("/|") & set(name) or name.startswith("."):
        raise ValueError(f"--models {text}: expected name=path or name=path:adapter, without / or | in the name")
    return NamedModel(name, base, adapter or None)


def several(texts: list[str]) -> list[NamedModel]:
    """
    Raises:
        ValueError: two models have the same name.
    """
    models = [named(text) for text in texts]
    for model in models:
        if sum(other.name == model.name for other in models) > 1:
            raise ValueError(f"--models: two are called {model.name}; give each a name: before=... after=...")
    return models


@dataclass
class Shelf:
    """Loads a model when it is first needed, and lets go of it when another one is."""

    options: dict[str, Any]
    _name: str | None = field(default=None, init=False)
    _loaded: HFDenoiser | None = field(default=None, init=False)

    def get(self, model: NamedModel) -> HFDenoiser:
        if self._loaded is None or self._name != model.name:
            self._loaded = None
            self._loaded, self._name = load(model.path, adapter=model.adapter, **self.options), model.name
        return self._loaded
