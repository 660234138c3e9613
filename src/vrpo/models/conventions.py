"""What a model was run with that its folder need not say, kept beside an adapter, where there is no config.json.

An adapter that learnt to predict the next token (`shift_logits`) would otherwise come back on a base that says nothing
of it, and every logit would be read at the wrong position without an error.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from vrpo.models.folder import fields_of

FILE = "diffusion.json"
_KINDS = {"mask_token_id": (int, 0), "shift_logits": (bool, False), "block_size": (int, 1)}  # with the least value


@dataclass(frozen=True)
class Conventions:
    """The mask token, whether logits are the next token's, and tokens per block; None: the base says it."""

    mask_token_id: int | None
    shift_logits: bool | None
    block_size: int | None

    def of_adapter(self, adapter: str | None) -> "Conventions":
        """As given, and where nothing is given as the adapter was trained.

        Raises:
            ValueError: the adapter was trained with another value than the given one.
        """
        found = None if adapter is None else _file_of(adapter)
        if found is None:
            return self
        said = fields_of(found.parent, FILE)
        if said.keys() != asdict(self).keys():
            raise ValueError(f"{found} does not say {', '.join(asdict(self))}, or something else: copy it again")
        for name, (kind, least) in _KINDS.items():
            if said[name] is not None and (type(said[name]) is not kind or said[name] < least):
                raise ValueError(f"{found}: {name} is {str(said[name])[:40]}, which it cannot be: copy the file again")
        trained = Conventions(**said)
        merged: dict[str, Any] = asdict(trained)
        for name, given in asdict(self).items():
            if given is None:
                continue
            if merged[name] != given:
                raise ValueError(f"{name} {given}: {adapter} was trained with {merged[name]} ({FILE}): leave it out")
        return Conventions(**merged)

    def written(self) -> bytes:
        return (json.dumps(asdict(self), indent=1) + "\n").encode()


def _file_of(adapter: str) -> Path | None:
    """The file beside an adapter, of a folder or the hub; None: an adapter of other tools has none."""
    if Path(adapter).is_dir():
        return Path(adapter) / FILE if (Path(adapter) / FILE).is_file() else None
    try:
        return Path(hf_hub_download(adapter, FILE))
    except EntryNotFoundError:
        return None
