"""`vrpo export`: a model in its official layout, with an adapter merged into it; or an adapter under official names."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers.configuration_utils import PreTrainedConfig

from vrpo.fields.options import BLOCK_HELP, MASK_HELP, SHIFT_HELP
from vrpo.models.adapter_names import export_adapter
from vrpo.models.hf import HFDenoiser
from vrpo.models.load import base_of, load, model_class
from vrpo.models.precision import weights_dtype
from vrpo.store import check_writable, write_whole_folder

_OF_A_MODEL = ("config.json", "adapter_config.json")  # a folder with one of them is what a model was saved in


@dataclass(kw_only=True)
class ExportArguments:
    """Which model is written, where, and as what."""

    model_name_or_path: str = field(
        metadata={
            "help": "Hub name or folder: a model, or an adapter of ours, which names its base. An adapter that was "
            "trained on a quantised base is merged into the base as stored."
        }
    )
    adapter: str | None = field(default=None, metadata={"help": "Adapter to put on the model."})
    output_dir: str = field(
        metadata={"help": "Where to write; a new or empty folder. It is there as a whole or not at all."}
    )
    adapter_only: bool = field(
        default=False,
        metadata={
            "help": "Merge nothing: write the adapter under the official module names, for tools that load the "
            "authors' code."
        },
    )
    dtype: str = field(
        default="auto", metadata={"help": "Type of the written weights: float32, bfloat16; auto: as stored."}
    )
    max_shard_size: str = field(default="5GB", metadata={"help": "Largest file of weights."})
    overwrite: bool = field(default=False, metadata={"help": "Replace a model that is in output_dir."})
    mask_token_id: int | None = field(default=None, metadata={"help": f"{MASK_HELP} Written to config.json."})
    shift_logits: bool | None = field(default=None, metadata={"help": f"{SHIFT_HELP} Written to config.json."})
    block_size: int | None = field(default=None, metadata={"help": BLOCK_HELP})

    def __post_init__(self) -> None:
        if not re.fullmatch(r"0*[1-9]\d*(KB|MB|GB|TB)", self.max_shard_size):
            raise ValueError(f"--max_shard_size {self.max_shard_size}: give a size such as 500MB or 5GB")


def export(args: ExportArguments) -> None:
    """Merge an adapter into its model and write the official layout: names, shards, the files beside the weights."""
    base, adapter = _parts(args)
    folder = _output(args, [base, adapter])
    write = _write_adapter if args.adapter_only else _write_model
    write_whole_folder(folder, lambda place: write(args, base, adapter, place))
    _say(folder)


def _write_model(args: ExportArguments, base: str, adapter: str | None, folder: Path) -> None:
    told = {name: getattr(args, name) for name in ("mask_token_id", "shift_logits", "block_size")}
    denoiser = merged(base, adapter, args.dtype, **told)
    denoiser.save_pretrained(folder, max_shard_size=args.max_shard_size)


def merged(base: str, adapter: str | None, dtype: str, **options: Any) -> HFDenoiser:
    """The model with its adapter merged, in the wider one of the wanted and the stored type; then in the wanted one, so
    that weights are rounded once."""
    model_class(base)  # says what is wrong with the name
    fields, _ = PreTrainedConfig.get_config_dict(base)
    if fields.get("quantization_config"):
        raise ValueError(
            f"{base} is quantised, which the official layout has no fields for: give the model it was made of"
        )
    wanted = weights_dtype("inference", dtype)
    denoiser = load(
        base, dtype=wanted if wanted in (torch.float32, torch.float64) else "auto", adapter=adapter, **options
    )
    found = denoiser if adapter is None else denoiser.merged()
    if isinstance(wanted, torch.dtype):
        found.module.to(wanted)
    return found


def _write_adapter(args: ExportArguments, base: str, adapter: str | None, folder: Path) -> None:
    assert adapter is not None
    export_adapter(adapter, model_class(base), folder)


def _parts(args: ExportArguments) -> tuple[str, str | None]:
    """The model, and the adapter if there is one.

    Raises:
        ValueError: there is none, and one is asked for; or there are two.
    """
    is_adapter = (Path(args.model_name_or_path) / "adapter_config.json").is_file()
    if is_adapter and args.adapter is not None:
        raise ValueError(
            f"--model_name_or_path {args.model_name_or_path} is an adapter itself: give its base instead, or leave "
            "--adapter out"
        )
    adapter = args.model_name_or_path if is_adapter else args.adapter
    if args.adapter_only and adapter is None:
        raise ValueError(f"--adapter_only: {args.model_name_or_path} is no adapter; give one as --adapter")
    return (base_of(args.model_name_or_path) if is_adapter else args.model_name_or_path), adapter


def _output(args: ExportArguments, sources: Sequence[str | None]) -> Path:
    """Where to write.

    Raises:
        ValueError: something is there that must not be replaced.
    """
    folder = Path(args.output_dir).resolve()
    if any(source is not None and Path(source).resolve() == folder for source in sources):
        raise ValueError(f"--output_dir {args.output_dir} is what is to be exported: choose another folder")
    for source in sources:
        if source is not None and folder in Path(source).resolve().parents:
            raise ValueError(
                f"--output_dir {args.output_dir} holds {source}, and would be replaced with it: choose another folder"
            )
    if folder.is_dir() and any(folder.iterdir()):
        if not args.overwrite:
            raise ValueError(f"--output_dir {args.output_dir} is not empty: choose another folder, or add --overwrite")
        if not any((folder / name).is_file() for name in _OF_A_MODEL):
            raise ValueError(f"--overwrite replaces a folder with a model in it only, and {args.output_dir} has none")
    elif folder.exists() and not folder.is_dir():
        raise ValueError(f"--output_dir {args.output_dir} is a file")
    check_writable(folder / "config.json" if folder.is_dir() else folder, "--output_dir")
    return folder


def _say(folder: Path) -> None:
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        print(f"{file.stat().st_size:>15,}  {file.relative_to(folder)}", file=sys.stderr)
    print(f"written: {folder}", file=sys.stderr)
