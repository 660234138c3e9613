"""`precompute_ref_log_probs`: the references' terms, computed once under the draws of epoch 0, kept and replayed.

Draws are a function of the row's key, so terms computed today belong to the draws of tomorrow's run. Entries are rows,
named by what their terms depend on in the data (key and tokens of the row, and of its partner in a pair), the folder by
the rest (weights, plan, precision): whatever changed is found missing, and never silently replayed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from vrpo.draws import fold
from vrpo.reference import GivenReference
from vrpo.store import Store, locked
from vrpo.types import Pairs, Structure, Tokens

SHARD = 64  # examples that are computed and written together


def entry_names(tokens: Tokens, structure: Structure) -> Int[Tensor, " N"]:
    """64 bits per row that stand for its key (seed, example, side, epoch) and tokens, padding left out; of a row of a
    pair, whose draws may be coupled (`plans.Paired`), for those of both answers."""
    place = (tokens.attention.cumsum(-1) - 1).clamp(min=0)
    content = fold(fold(tokens.ids, tokens.response.long()), place)
    row = fold(tokens.key, (content * tokens.attention).sum(-1))
    if not isinstance(structure, Pairs):
        return row
    chosen, rejected = structure.chosen, structure.rejected
    pair = fold(row[chosen], row[rejected])
    return fold(row, torch.zeros_like(row).index_add(0, chosen, pair).index_add(0, rejected, pair))


@dataclass(frozen=True)
class Shards:
    """Datasets as shards of SHARD examples, in their order; `batch` makes rows and structure of examples."""

    datasets: Sequence[Any]
    batch: Callable[[list[Any]], tuple[Tokens, Structure]]

    def of(self, process: int, processes: int) -> Iterator[tuple[Tokens, Structure]]:
        """Every so many of them."""
        places = [(data, start) for data in self.datasets for start in range(0, len(data), SHARD)]
        for data, start in places[process::processes]:
            yield self.batch([data[row] for row in range(start, min(start + SHARD, len(data)))])


@dataclass(frozen=True)
class TermStore:
    """A folder of reference terms: shards of rows, and what they were computed with."""

    folder: Path
    settings: Mapping[str, str]

    @cached_property
    def _store(self) -> Store:
        return Store(
            self.folder, self.settings, f"Give another ref_terms_dir, or delete {self.folder}", "*.safetensors"
        )

    def __post_init__(self) -> None:
        try:
            self._store.open()
        except OSError as error:
            raise ValueError(f"ref_terms_dir: {self.folder} cannot be written: {error.strerror}") from error

    def path(self, names: Int[Tensor, " N"]) -> Path:
        """The shard of these rows, in this order."""
        digest = torch.zeros((), dtype=torch.int64)
        for name in names.cpu():
            digest = fold(digest, name)
        return self.folder / f"{int(digest) & (1 << 64) - 1:016x}.safetensors"

    def complete(
        self,
        shards: Iterable[tuple[Tokens, Structure]],
        compute: Callable[[Tokens, Structure], Float[Tensor, "N R K"]],
        *,
        quiet: bool | None,
        main: bool,
    ) -> None:
        """Compute and write those of the shards that are not there.

        Args:
            main: whether this is the main process of the run, which holds the folder.
        """
        with locked(self.folder) if main else nullcontext():
            for tokens, structure in tqdm(shards, desc="reference terms", unit="shard", disable=quiet):
                names = entry_names(tokens, structure)
                if not self.path(names).is_file():
                    self.save(names, compute(tokens, structure))

    def save(self, names: Int[Tensor, " N"], terms: Float[Tensor, "N R K"]) -> None:
        """Write a shard, whole or not at all."""
        found = {"name": names.cpu(), "terms": terms.cpu().contiguous()}
        self._store.write(self.path(names).name, lambda part: save_file(found, part))

    def load(self, batches: Iterable[tuple[Tokens, Structure]]) -> "KnownTerms":
        """The terms of these shards."""
        entries: dict[int, Float[Tensor, "R K"]] = {}
        for tokens, structure in batches:
            path = self.path(entry_names(tokens, structure))
            if not path.is_file():
                raise ValueError(
                    f"{path} is missing: another process was interrupted while it computed reference terms"
                )
            try:
                shard = load_file(path)
            except SafetensorError as error:
                raise ValueError(f"{path} is broken: {error}. Delete it, and its terms are computed again") from error
            entries |= dict(zip(shard["name"].tolist(), shard["terms"], strict=True))
        return KnownTerms(self.folder, entries)


@dataclass(frozen=True)
class KnownTerms:
    """Reference terms in memory, by row: R K numbers each."""

    folder: Path
    entries: Mapping[int, Float[Tensor, "R K"]]

    def __call__(self, tokens: Tokens, structure: Structure) -> GivenReference:
        """The references of a batch.

        Raises:
            ValueError: a row of the batch is not among them.
        """
        names = entry_names(tokens, structure).tolist()
        missing = [index for index, name in enumerate(names) if name not in self.entries]
        if missing:
            raise ValueError(
                f"{self.folder} has no reference terms for row {missing[0]} of this batch: its tokens, its example id "
                "or draw_seed are not those that the terms were computed with"
            )
        return GivenReference(torch.stack([self.entries[name] for name in names]).to(tokens.key.device))
