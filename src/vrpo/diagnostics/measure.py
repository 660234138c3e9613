"""Measuring pair by pair, with everything kept on disk: interrupted is not lost, and the same again is free.

A file holds what one pair gave under one design, without beta, so that a report at another beta, at other budgets of
the same designs or on more pairs measures only what is not there yet.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from vrpo.diagnostics.designs import Design
from vrpo.diagnostics.replicates import Replicates, replicate
from vrpo.models.fingerprint import digest_of
from vrpo.reference import Reference
from vrpo.sketch import Sketch
from vrpo.store import write_whole
from vrpo.types import Denoiser, Tokens

_PARTS = ("policy", "reference", "gradient")
_ABOUT = "about"  # one entry of metadata: safetensors puts several in an order of chance, and files would differ


@dataclass(frozen=True)
class Meter:
    """What measures: the models, the parameters that gradients are taken of, and how often and how finely."""

    policy: Denoiser
    reference: Reference
    parameters: Sequence[nn.Parameter]
    num_replicates: int
    sketch: Sketch
    max_tokens: int

    def __call__(self, pair: Tokens, design: Design, progress: Callable[[int], object]) -> Replicates:
        return replicate(
            self.policy,
            self.reference,
            pair,
            design.plan,
            parameters=self.parameters,
            num_replicates=self.num_replicates,
            sketch=self.sketch,
            max_tokens=self.max_tokens,
            progress=progress,
        )

    def passes(self, designs: Iterable[Design]) -> int:
        """Forward passes of the policy (each with a backward pass) for one pair; the reference needs as many."""
        return 2 * self.num_replicates * sum(design.draws for design in designs)


@dataclass(frozen=True)
class Store:
    """A folder of measurements, made under one set of settings."""

    folder: Path

    @staticmethod
    def open(folder: Path, settings: Mapping[str, Any]) -> "Store":
        """The folder's store; new, or made with the same settings.

        Raises:
            ValueError: the folder holds measurements made with other settings; names what differs.
        """
        path = folder / "settings.json"
        (folder / "pairs").mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            write_whole(path, lambda part: part.write_text(json.dumps(settings, indent=2) + "\n"))
        found = json.loads(path.read_text())
        changed = [name for name in settings if name not in found or found[name] != settings[name]]
        if changed or len(found) != len(settings):
            parts = [f"{name} is now {settings[name]!r} and was {found.get(name)!r}" for name in changed]
            raise ValueError(
                f"{folder} holds measurements made with other settings: {'; '.join(parts)}. Use these again, or "
                "another --output_dir"
            )
        return Store(folder)

    def path(self, example: int, design: Design) -> Path:
        return self.folder / "pairs" / f"{example}-{design.name}.safetensors"

    def save(self, replicates: Replicates, example: int, design: Design, pair: Tokens) -> None:
        tensors = {name: getattr(replicates, name) for name in _PARTS}
        whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        about = {_ABOUT: json.dumps({"tokens": fingerprint(pair), "plan": repr(design.plan)})}
        write_whole(self.path(example, design), lambda part: save_file(whole, part, about))

    def load(self, example: int, design: Design, pair: Tokens) -> Replicates | None:
        """What is there for this pair and design, or None.

        Raises:
            ValueError: it was measured on other tokens (other data, or other cuts), or under another plan.
        """
        path = self.path(example, design)
        if not path.is_file():
            return None
        with safe_open(path, "pt") as file:
            _check(path, json.loads(file.metadata()[_ABOUT]), fingerprint(pair), repr(design.plan))
            return Replicates(*(file.get_tensor(name) for name in _PARTS))


def _check(path: Path, about: Mapping[str, str], tokens: str, plan: str) -> None:
    if about["tokens"] != tokens:
        raise ValueError(
            f"{path} was measured on other tokens than this example has now: the data, or how they are cut, have "
            "changed. Use these again, or another --output_dir"
        )
    if about["plan"] != plan:
        raise ValueError(
            f"{path} was measured under {about['plan']}, which is now {plan}: delete it, or use another --output_dir"
        )


def measured(
    meter: Meter,
    store: Store,
    pair: Tokens,
    example: int,
    designs: Sequence[Design],
    progress: Callable[[int], object],
) -> list[Replicates]:
    """The replicates of one pair under each design, from disk where they are there."""
    found = []
    for design in designs:
        replicates = store.load(example, design, pair)
        if replicates is None:
            store.save(meter(pair, design, progress), example, design, pair)
            replicates = store.load(example, design, pair)
            assert replicates is not None
        else:
            progress(meter.passes([design]))
        found.append(replicates)
    return found


def fingerprint(pair: Tokens) -> str:
    """A hash of everything that a measurement reads of a pair: tokens, what is response, keys."""
    return digest_of([pair.ids, pair.response, pair.attention, pair.key])
