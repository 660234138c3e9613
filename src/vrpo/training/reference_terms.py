"""`precompute_ref_log_probs`: the reference's terms, computed once under the draws of epoch 0, kept and replayed.

Draws are a function of the row's key, so terms computed today belong to the draws of tomorrow's run. Entries are named
by what they depend on in the data (key and tokens of both answers), the folder by the rest (weights, plan, precision):
whatever changed is found missing, and never silently replayed.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from vrpo.data.whole import write_whole
from vrpo.draws import fold
from vrpo.reference import GivenReference
from vrpo.types import Pairs, Tokens

SHARD = 64  # pairs that are computed and written together


def entry_names(tokens: Tokens, pairs: Pairs) -> Int[Tensor, " P"]:
    """64 bits per pair that stand for keys (seed, example, epoch) and tokens of both answers, padding left out."""
    place = (tokens.attention.cumsum(-1) - 1).clamp(min=0)
    content = fold(fold(tokens.ids, tokens.response.long()), place)
    row = fold(tokens.key, (content * tokens.attention).sum(-1))
    return fold(row[pairs.chosen], row[pairs.rejected])


@dataclass(frozen=True)
class Shards:
    """Datasets as shards of SHARD pairs, in their order; `batch` makes rows and structure of examples."""

    datasets: Sequence[Any]
    batch: Callable[[list[Any]], tuple[Tokens, Pairs]]

    def of(self, process: int, processes: int) -> Iterator[tuple[Tokens, Pairs]]:
        """Every so many of them."""
        places = [(data, start) for data in self.datasets for start in range(0, len(data), SHARD)]
        for data, start in places[process::processes]:
            yield self.batch([data[row] for row in range(start, min(start + SHARD, len(data)))])


@dataclass(frozen=True)
class TermStore:
    """A folder of reference terms: shards of pairs, and what they were computed with."""

    folder: Path
    settings: Mapping[str, str]

    def __post_init__(self) -> None:
        path = self.folder / "settings.json"
        if not path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, lambda part: part.write_text(json.dumps(dict(self.settings), indent=1) + "\n"))
        found = json.loads(path.read_text())
        changed = [name for name in {**found, **self.settings} if found.get(name) != self.settings.get(name)]
        if changed:
            parts = [f"{name} is now {self.settings.get(name)} and was {found.get(name)}" for name in changed]
            raise ValueError(
                f"{self.folder} holds reference terms of another run: {'; '.join(parts)}. Give another "
                "ref_terms_dir, or delete this one"
            )

    def path(self, names: Int[Tensor, " P"]) -> Path:
        """The shard of these pairs, in this order."""
        digest = torch.zeros((), dtype=torch.int64)
        for name in names.cpu():
            digest = fold(digest, name)
        return self.folder / f"{int(digest) & (1 << 64) - 1:016x}.safetensors"

    def complete(
        self,
        shards: Iterable[tuple[Tokens, Pairs]],
        compute: Callable[[Tokens, Pairs], Float[Tensor, "N 1 K"]],
        *,
        quiet: bool | None,
    ) -> None:
        """Compute and write those of the shards that are not there."""
        for tokens, pairs in tqdm(shards, desc="reference terms", unit="shard", disable=quiet):
            if not self.path(entry_names(tokens, pairs)).is_file():
                self.save(tokens, pairs, compute(tokens, pairs))

    def save(self, tokens: Tokens, pairs: Pairs, terms: Float[Tensor, "N 1 K"]) -> None:
        """Write a shard, whole or not at all."""
        names = entry_names(tokens, pairs)
        both = torch.stack([terms[pairs.chosen, 0], terms[pairs.rejected, 0]], 1)
        found = {"name": names.cpu(), "terms": both.cpu().contiguous()}
        write_whole(self.path(names), lambda part: save_file(found, part))

    def load(self, batches: Iterable[tuple[Tokens, Pairs]]) -> "KnownTerms":
        """The terms of these shards."""
        entries: dict[int, Float[Tensor, "2 K"]] = {}
        for tokens, pairs in batches:
            path = self.path(entry_names(tokens, pairs))
            if not path.is_file():
                raise ValueError(
                    f"{path} is missing: another process was interrupted while it computed reference terms"
                )
            shard = load_file(path)
            entries |= dict(zip(shard["name"].tolist(), shard["terms"], strict=True))
        return KnownTerms(self.folder, entries)


@dataclass(frozen=True)
class KnownTerms:
    """Reference terms in memory, by pair: 2 K numbers each."""

    folder: Path
    entries: Mapping[int, Float[Tensor, "2 K"]]

    def __call__(self, tokens: Tokens, pairs: Any) -> GivenReference:
        """The reference of a batch.

        Raises:
            ValueError: a pair of the batch is not among them.
        """
        names = entry_names(tokens, pairs).tolist()
        missing = [index for index, name in enumerate(names) if name not in self.entries]
        if missing:
            raise ValueError(
                f"{self.folder} has no reference terms for pair {missing[0]} of this batch: its tokens, its example id "
                "or draw_seed are not those that the terms were computed with"
            )
        both = torch.stack([self.entries[name] for name in names]).to(tokens.key.device)
        terms = both.new_zeros(len(tokens.key), 1, both.shape[-1])
        terms[pairs.chosen, 0], terms[pairs.rejected, 0] = both[:, 0], both[:, 1]
        return GivenReference(terms)
