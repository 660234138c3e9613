"""config.json as its authors wrote it: read into transformers' fields, and written back with everything else untouched.

What does not live here: which fields an architecture has (llada.py, dream.py, ...), names of tensors.
"""

import json
from collections.abc import Mapping
from copy import deepcopy
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub.errors import StrictDataclassError

_DTYPE = ("torch_dtype", "dtype")  # the field's name before and since transformers 4.56
_Mixin: Any = object  # for type checkers: the other bases have what is asked of self and super() here


class OfficialConfig(_Mixin):
    """Mixin of a configuration class of transformers that says what its config.json looks like; first of the bases.

    The class also declares, because transformers makes fields of the annotations in the class itself only:
    `official: dict[str, Any] | None = None`, the file it was read from, so that fields that we do not know survive;
    `is_causal: bool = False`; `shift_logits: bool`, whether the logits at a position are those of the next token; and
    `mask_token_id: int | None`, whose default is what files that lack it mean.
    """

    architecture: ClassVar[str]  # `architectures[0]` of a new file
    fields: ClassVar[Mapping[str, str]]  # official field -> transformers' field, of all that are read and written
    required: ClassVar[tuple[str, ...]]  # official fields without which there is no model
    fixed: ClassVar[Mapping[str, Any]]  # official fields with the one value that is implemented
    presentation: ClassVar[Mapping[str, Any]]  # what the official code expects in a new file, and nothing here needs
    understood: ClassVar[Mapping[str, Any]] = {}  # values of official fields that need not be written where they lack

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """From the official fields, or from transformers' own, as `to_dict` gives them.

        Raises:
            ValueError: a field is missing, or has a value that the official code supports and this adapter does not.
        """
        if "official" in config_dict:
            return super().from_dict(config_dict, **kwargs)
        for field, value in cls.fixed.items():
            if field in config_dict and config_dict[field] != value:
                raise ValueError(f"config.json: {field} = {config_dict[field]!r} is not supported, only {value!r}")
        cls._check_rope(config_dict)
        missing = [field for field in cls.required if field not in config_dict or config_dict[field] is None]
        if missing:
            raise ValueError(f"config.json lacks {', '.join(missing)}: not a configuration of {cls.architecture}")
        official = deepcopy(config_dict)  # transformers edits what it is given
        official.pop("_commit_hash", None)  # of no file: transformers before 5.20 passes it along
        known = cls.read(config_dict)
        if official.get("quantization_config") and "quantization_config" not in known:
            raise ValueError(
                "config.json: quantization_config: its weights are quantised, and would be read as if they were not: "
                "give the model it was made of, with load_in_4bit or load_in_8bit"
            )
        try:
            return super().from_dict({**known, "official": official}, **kwargs)
        except StrictDataclassError as error:  # of transformers' checks
            raise ValueError(f"config.json: {' '.join(str(error).split())}: copy or download it again") from error

    @classmethod
    def _check_rope(cls, official: dict[str, Any]) -> None:
        """transformers 5 writes angles into a field of their own: one that says more than `rope_theta` is not read."""
        if "rope_theta" in cls.required and official.get("rope_scaling"):
            raise ValueError(f"config.json: rope_scaling = {official['rope_scaling']!r} is not supported, only None")
        if "rope_theta" not in cls.required or not official.get("rope_parameters"):
            return
        angles = official["rope_parameters"]
        if not isinstance(angles, Mapping):
            raise ValueError(f"config.json: rope_parameters = {angles!r} is no table: copy or download it again")
        plain = {"rope_type": "default", "rope_theta": official.get("rope_theta")}
        if any(field in plain and value != plain[field] for field, value in angles.items()):
            raise ValueError(
                f"config.json: rope_parameters = {angles!r} is not supported, only rope_theta as a field of its own "
                f"and rope_type 'default': {plain!r}"
            )

    @classmethod
    def read(cls, official: dict[str, Any]) -> dict[str, Any]:
        """transformers' fields, from the official ones."""
        known = {ours: official[theirs] for theirs, ours in cls.fields.items() if theirs in official}
        for field in _DTYPE:
            if field in official:
                known["dtype"] = official[field]
        if "rope_theta" in official:
            known["rope_parameters"] = {"rope_type": "default", "rope_theta": float(official["rope_theta"])}
        return known

    def write(self) -> dict[str, Any]:
        """The official fields of a configuration, whichever way it was made. One that its file lacks is written only if
        it is no longer what that means."""
        known = {theirs: getattr(self, ours) for theirs, ours in self.fields.items()}
        dtype = {} if self.dtype is None else {_DTYPE[0]: str(self.dtype).removeprefix("torch.")}
        if "rope_theta" in self.required:
            known["rope_theta"] = self.rope_parameters["rope_theta"]
        official = self.official
        if official is None:
            names = {"architectures": [self.architecture], "model_type": self.model_type}
            return {**self.presentation, **self.fixed, **known, **dtype, **names}
        default, said = type(self)(), type(self).read(official)
        for theirs, ours in self.fields.items():
            lacking = theirs not in official and ours not in said
            meant = self.understood[theirs] if theirs in self.understood else getattr(default, ours)
            if lacking and known[theirs] == meant:
                del known[theirs]
        if dtype and _DTYPE[1] in official:
            dtype = {_DTYPE[1]: dtype[_DTYPE[0]]}
        return {**official, **known, **dtype}

    def to_json_file(self, json_file_path: str | PathLike[Any], use_diff: bool = True) -> None:
        """Write the official fields; what `save_pretrained` calls."""
        Path(json_file_path).write_text(json.dumps(self.write(), indent=2, sort_keys=True) + "\n")
